// SPDX-License-Identifier: Apache-2.0
// Requests to this page's own server, and its errors as one line with a way out.

/** `kind`: login, busy, model, offline, cut, stopped or request; it decides the way out that the page offers. */
export class ServerError extends Error {
  constructor(kind, message, { retryAfter = 0, status = 0 } = {}) {
    super(message);
    Object.assign(this, { kind, retryAfter, status });
  }
}

export async function get(path) {
  return (await send(path, { method: "GET" })).json();
}

export async function post(path, body, signal) {
  return (await send(path, { method: "POST", body, signal })).json();
}

/** The objects of a stream of server-sent events. ServerError "cut" where the connection ends before [DONE]. */
export async function* events(path, body, signal) {
  const response = await send(path, { method: "POST", body, signal });
  const reader = response.body.getReader(), decoder = new TextDecoder();
  let rest = "", ended = false;
  try {
    while (true) {
      const { done, value } = await read(reader, signal);
      if (done && ended) return;
      if (done) throw cut();
      rest += decoder.decode(value, { stream: true });
      const lines = rest.split(/\r?\n/);
      rest = lines.pop();
      for (const line of lines) {
        if (!line.startsWith("data:")) continue;
        const data = line.slice(5).trim();
        if (data === "[DONE]") ended = true;
        if (ended) continue;
        const event = JSON.parse(data);
        if (event.error) throw refused(event.error.status ?? 500, event.error, 0);
        yield event;
      }
    }
  } finally {
    if (!ended) reader.cancel().catch(() => {}); // an abandoned stream frees the model at once
  }
}

async function read(reader, signal) {
  try {
    return await reader.read();
  } catch {
    throw signal?.aborted ? new ServerError("stopped", "stopped") : cut();
  }
}

function cut() {
  return new ServerError("cut", "The connection was lost. What had arrived is kept.");
}

async function send(path, { method, body, signal }) {
  const headers = body === undefined ? {} : { "Content-Type": "application/json" };
  let response;
  try {
    response = await fetch(path, { method, headers, body: body && JSON.stringify(body), signal });
  } catch {
    if (signal?.aborted) throw new ServerError("stopped", "stopped");
    throw new ServerError("offline", "The server cannot be reached. Check that foundling serve is still running.");
  }
  if (response.ok) return response;
  let error = {};
  try {
    error = (await response.json()).error ?? {};
  } catch {
    // no JSON: the status says it
  }
  throw refused(response.status, error, Number(response.headers.get("Retry-After")) || 0);
}

function refused(status, error, retryAfter) {
  const message = error.message || `the server answered ${status}`;
  if (status === 401) return new ServerError("login", "The server needs a key. Sign in to go on.", { status });
  if (error.code === "model_not_loaded") return new ServerError("model", `${capital(message)}.`, { status });
  if (status === 429 || status === 503) {
    const seconds = Math.max(1, Math.ceil(retryAfter));
    const about = error.code === "insufficient_quota" ? `${capital(message)}.` : "The server is busy.";
    return new ServerError("busy", about, { status, retryAfter: seconds });
  }
  return new ServerError(status === 404 ? "model" : "request", `${capital(message)}.`, { status });
}

function capital(message) {
  return message.charAt(0).toUpperCase() + message.slice(1).replace(/\.$/, "");
}
