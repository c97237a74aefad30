// SPDX-License-Identifier: Apache-2.0
// Conversations in this browser's localStorage, one entry each, so that two windows do not overwrite each other. Nothing
// else is stored.

const PREFIX = "foundling.conversation.";
const MAX_CONVERSATIONS = 50;
const MAX_CHARS = 4_000_000; // browsers allow some five million

/** All that can be read, the newest first. */
export function load() {
  const all = [];
  for (const key of keys()) {
    try {
      const conversation = JSON.parse(localStorage.getItem(key));
      if (conversation?.nodes?.["0"] && key === PREFIX + conversation.id) all.push(conversation);
    } catch {
      localStorage.removeItem(key);
    }
  }
  return all.sort((a, b) => b.changed - a.changed);
}

/** False where the browser has no space for it. The oldest others make room. */
export function save(conversation) {
  const text = JSON.stringify(conversation, stored);
  const others = load().filter((other) => other.id !== conversation.id);
  let size = text.length + others.reduce((sum, other) => sum + lengthOf(other), 0);
  while (others.length && (others.length >= MAX_CONVERSATIONS || size > MAX_CHARS)) {
    const oldest = others.pop();
    size -= lengthOf(oldest);
    localStorage.removeItem(PREFIX + oldest.id);
  }
  try {
    localStorage.setItem(PREFIX + conversation.id, text);
    return true;
  } catch {
    return false;
  }
}

export function removeAll() {
  for (const key of keys()) localStorage.removeItem(key);
}

function keys() {
  return Object.keys(localStorage).filter((key) => key.startsWith(PREFIX));
}

function lengthOf(conversation) {
  return localStorage.getItem(PREFIX + conversation.id)?.length ?? 0;
}

/** Alternatives of tokens are not stored: the server computes them again. */
function stored(name, value) {
  return name === "top" || name === "prompt" ? undefined : value;
}
