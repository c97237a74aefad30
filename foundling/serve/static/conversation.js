// SPDX-License-Identifier: Apache-2.0
// A conversation is a tree: each message may have several versions, and one of them is chosen. Pure functions.
//
// A node: {id, parent, role, text, children: [id], chosen: index of a child}; an answer has besides {model, tokens:
// [{id, text, logprob, bytes?}], finish, usage, timing, verdict, free: written without the schema}. The root "0" has no
// text.

export const ROOT = "0";

export function create(fields = {}) {
  return {
    id: newId(), revision: 0, changed: Date.now(), next: 1, settings: {},
    nodes: { [ROOT]: { id: ROOT, parent: null, role: "root", text: "", children: [], chosen: 0 } }, ...fields,
  };
}

export function newId() {
  return [...crypto.getRandomValues(new Uint32Array(3))].map((part) => part.toString(36)).join("");
}

/** Adds a message below a node and chooses it. */
export function add(conversation, parent, fields) {
  const id = String(conversation.next);
  conversation.next += 1;
  const above = conversation.nodes[parent];
  above.chosen = above.children.push(id) - 1;
  conversation.nodes[id] = { id, parent, role: "user", text: "", children: [], chosen: 0, ...fields };
  conversation.changed = Date.now();
  return conversation.nodes[id];
}

/** The messages that are shown: from the first to the last of the chosen versions. */
export function path(conversation) {
  const nodes = [];
  let node = conversation.nodes[ROOT];
  while (node.children.length) {
    node = conversation.nodes[node.children[node.chosen]];
    nodes.push(node);
  }
  return nodes;
}

/** From the first message to this node. */
export function ancestors(conversation, id) {
  const nodes = [];
  for (let node = conversation.nodes[id]; node && node.id !== ROOT; node = conversation.nodes[node.parent]) nodes.push(node);
  return nodes.reverse();
}

/** {at, total} of the versions of a message. */
export function version(conversation, id) {
  const { children } = conversation.nodes[conversation.nodes[id].parent];
  return { at: children.indexOf(id), total: children.length };
}

/** Chooses the version `step` beside this one. */
export function turn(conversation, id, step) {
  const above = conversation.nodes[conversation.nodes[id].parent];
  above.chosen = Math.max(0, Math.min(above.children.length - 1, above.children.indexOf(id) + step));
  return above.children[above.chosen];
}

/** As the server reads a conversation up to a node. */
export function messages(conversation, id) {
  const { system } = conversation.settings;
  const turns = ancestors(conversation, id).map(({ role, text }) => ({ role, content: text }));
  return system ? [{ role: "system", content: system }, ...turns] : turns;
}

/** As a model that continues text reads it. */
export function plainText(conversation, id) {
  return ancestors(conversation, id).map(({ text }) => text).join("");
}

export function title(conversation) {
  const first = path(conversation)[0];
  const text = (first?.text ?? "").trim().split("\n")[0];
  return text.length > 60 ? text.slice(0, 59) + "…" : text || "New conversation";
}

/** All versions, as JSON for other programs: the chosen messages first, then the whole tree. */
export function exported(conversation) {
  const shown = path(conversation).at(-1)?.id ?? ROOT;
  return JSON.stringify({
    format: "foundling.conversation/1", settings: conversation.settings, messages: messages(conversation, shown),
    nodes: Object.values(conversation.nodes).filter((node) => node.id !== ROOT),
  }, null, 2);
}
