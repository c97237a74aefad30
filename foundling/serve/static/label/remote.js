// SPDX-License-Identifier: Apache-2.0
// Requests to this page's own server. A decision has an id of its own, so that sending it again changes nothing.

export class Refused extends Error {
  constructor(status, error) {
    super(error?.message ?? `the server answered ${status}`);
    Object.assign(this, { status, code: error?.code });
  }
}

export const newId = () => [...crypto.getRandomValues(new Uint8Array(16))].map((n) => n.toString(16).padStart(2, "0")).join("");

/** null where the server cannot be reached, or did not answer in time; Refused where it refuses. */
export async function request(path, body) {
  const options = body === undefined ? {} : { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
  let response, value;
  try {
    response = await fetch(path, { ...options, cache: "no-store", signal: AbortSignal.timeout(15000) });
    value = await response.json();
  } catch {
    if (!response || response.ok) return null; // no answer, or only a part of one
  }
  if (!response.ok) {
    if (response.status >= 500) return null; // it is stopping or overloaded: as good as no answer
    throw new Refused(response.status, value?.error);
  }
  return value;
}
