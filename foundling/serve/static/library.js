// SPDX-License-Identifier: Apache-2.0
// Conversations in this browser's localStorage, one entry each. Nothing else is stored.
//
// `revision` counts how often a conversation was stored: one that another window has stored or removed since this one
// read it is not overwritten.

export const PREFIX = "foundling.conversation.";
const MAX_CONVERSATIONS = 50;
const MAX_CHARS = 4_000_000; // browsers allow some five million

/** localStorage; null where the browser blocks it. */
function storage() {
  try {
    return window.localStorage;
  } catch {
    return null;
  }
}

/** All that can be read, the newest first. */
export function load() {
  return keys().map((key) => read(key)).filter(Boolean).sort((a, b) => b.changed - a.changed);
}

export function loadOne(id) {
  return read(PREFIX + id);
}

function read(key) {
  try {
    const conversation = JSON.parse(storage()?.getItem(key) ?? null);
    return conversation?.nodes?.["0"] && key === PREFIX + conversation.id ? conversation : null;
  } catch {
    storage().removeItem(key);
    return null;
  }
}

/** "saved"; "full" where the browser has no space for it or blocks storage; "changed" or "removed" where another window
 * did that since this one read it. The oldest others make room, but only for what is then stored. */
export function save(conversation) {
  const key = PREFIX + conversation.id, before = read(key), revision = conversation.revision ?? 0;
  if (before ? (before.revision ?? 0) !== revision : revision > 0) return before ? "changed" : "removed";
  const text = JSON.stringify({ ...conversation, revision: revision + 1 }, rounded);
  if (text.length > MAX_CHARS) return "full";
  const others = load().filter((other) => other.id !== conversation.id);
  if (!write(key, text, others)) return "full";
  conversation.revision = revision + 1;
  let size = text.length + others.reduce((sum, other) => sum + lengthOf(other), 0);
  while (others.length && (others.length >= MAX_CONVERSATIONS || size > MAX_CHARS)) {
    const oldest = others.pop();
    size -= lengthOf(oldest);
    remove(oldest.id);
  }
  return "saved";
}

/** Whether the text was stored. Takes the oldest of the others away where the browser is full, and puts them back where
 * that does not help. */
function write(key, text, others) {
  const removed = [];
  while (true) {
    try {
      storage().setItem(key, text);
      return true;
    } catch {
      const oldest = others.pop();
      if (!oldest) break;
      removed.push([PREFIX + oldest.id, storage().getItem(PREFIX + oldest.id)]);
      remove(oldest.id);
    }
  }
  for (const [name, value] of removed) storage().setItem(name, value);
  return false;
}

export function remove(id) {
  storage()?.removeItem(PREFIX + id);
}

export function removeAll() {
  for (const key of keys()) storage().removeItem(key);
}

function keys() {
  return Object.keys(storage() ?? {}).filter((key) => key.startsWith(PREFIX));
}

function lengthOf(conversation) {
  return storage().getItem(PREFIX + conversation.id)?.length ?? 0;
}

/** Four digits of a log-probability are more than the page shows. */
function rounded(name, value) {
  return name === "logprob" && typeof value === "number" ? Number(value.toFixed(4)) : value;
}
