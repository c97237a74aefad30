// SPDX-License-Identifier: Apache-2.0
// The chat: sends messages, shows answers as they arrive, and makes versions of both.
import { post } from "./api.js";
import { ROOT, add, ancestors, messages, newId, path, plainText, turn } from "./conversation.js";
import { generate, textOf, Timing, tokenize } from "./generate.js";
import { save } from "./library.js";
import { clearNotice, notify } from "./notice.js";
import { Thread } from "./thread.js";

export class Chat {
  /** `options()`: {sampling, maxTokens, seed, schema} of the next answer; it throws where there can be none.
   * `onstate(view)`: something began, or ended in this view. */
  constructor(store, container, options, onstate) {
    Object.assign(this, { store, options, onstate, container, running: null, edited: false, dropped: new WeakSet() });
    this.thread = new Thread(container, {
      turn: (node, step) => this.turn(node, step), edit: (node, text) => this.edit(node, text),
      regenerate: (node) => this.answer(node.parent), resume: (node) => this.resume(node),
      choose: (node, at) => store.set({ chosen: { node, at } }), isBusy: () => this.running !== null,
    });
    store.subscribe(["chosen"], ({ chosen }) => this.markChosen(chosen));
  }

  open(conversation) {
    this.stop();
    this.keepIfUnsaved();
    Object.assign(this, { conversation, edited: false, prompts: new Map() });
    this.store.set({ chosen: null });
    this.thread.show(conversation);
    this.onstate();
  }

  get last() {
    return path(this.conversation).at(-1) ?? null;
  }

  /** Whether something is shown that is not stored. */
  get unsaved() {
    return this.edited || (this.running !== null && this.running.conversation === this.conversation);
  }

  // --- what a user does: each action says whether it began ------------------------------------------------------------

  /** The settings of an answer that may begin now; null, after saying why, where none may. */
  ready(model = this.store.get().model) {
    if (this.running || !model) return null;
    try {
      return this.options();
    } catch (error) {
      notify(error);
      return null;
    }
  }

  send(text) {
    const options = this.ready();
    if (!options) return false;
    const node = add(this.conversation, this.last?.id ?? ROOT, { role: "user", text });
    return this.answer(node.id, options);
  }

  /** A new answer to a message, beside those that it has. */
  answer(parent, options = this.ready()) {
    return this.start(this.store.get().model, parent, [], options, (model, node) => this.source(model, node));
  }

  /** The same answer up to token `at`, then another token, then what follows it. `ends`: ids that end an answer. */
  branch(node, at, token, ends) {
    if (this.conversation.nodes[node.id] !== node) return false;
    return this.version(node, [...node.tokens.slice(0, at), { ...token, isEnd: ends.includes(token.id) }]);
  }

  /** Another version of an answer, which begins with these tokens. */
  version(node, tokens) {
    const model = this.modelOf(node);
    if (!model) notify(notLoaded(node));
    return this.start(model, node.parent, tokens, this.ready(model), (_, fresh) => this.rest(fresh), node.text.startsWith(" "));
  }

  /** What goes on after the tokens of an answer; null after an end. */
  async rest(node) {
    if (node.tokens.at(-1)?.isEnd) return null;
    return { tokens: [...await this.promptOf(node), ...node.tokens.map(({ id }) => id)] };
  }

  /** The next token at a place of `nextPlace`, as the user chose it: the first of an answer to the draft or to the last
   * message, or one more of the last answer. */
  extend({ model, conversation, last, draft, at }, token, ends) {
    if (conversation !== this.conversation || last !== this.last) return false;
    if (!draft && last?.role === "assistant") return this.branch(last, at, token, ends);
    const options = this.ready(model);
    if (!options) return false;
    const message = draft ? add(conversation, last?.id ?? ROOT, { role: "user", text: draft }) : last;
    return this.start(model, message.id, [{ ...token, isEnd: ends.includes(token.id) }], options, (_, fresh) => this.rest(fresh));
  }

  /** The place after the draft, or at the end of the conversation: {model, prefix: ids that stand before it, …}. */
  async nextPlace(draft) {
    const { conversation, last } = this, written = draft.trim() ? draft : "";
    const grows = !written && last?.role === "assistant";
    const model = grows ? this.modelOf(last) : this.store.get().model;
    if (!model) throw grows ? notLoaded(last) : new Error("No model is chosen.");
    if (grows && !last.tokens?.length) throw new Error("The tokens of this answer are not known. Write a message: then the token after it is shown.");
    const place = { model, conversation, last, draft: written, at: last?.tokens?.length };
    if (grows) {
      const ids = last.tokens.map(({ id }) => id);
      return { ...place, prefix: [...await this.promptOf(last), ...ids] };
    }
    const before = last?.id ?? ROOT, more = written ? [{ role: "user", content: written }] : [];
    const from = answersChats(model) ? { messages: [...messages(conversation, before), ...more] } : { prompt: plainText(conversation, before) + written };
    if (!(from.messages?.length || from.prompt)) throw new Error("Write something first: then the token after it is shown.");
    return { ...place, prefix: (await tokenize(model, from)).map(({ id }) => id) };
  }

  /** More tokens of an answer that was cut; a version of one that has been answered. */
  resume(node) {
    if (node.children.length) return this.version(node, [...node.tokens]);
    return this.again(node, () => this.rest(node));
  }

  edit(node, text) {
    if (this.running) return false;
    const model = this.store.get().model, options = node.role === "user" ? this.ready(model) : {};
    if (!options) return false;
    const fresh = add(this.conversation, node.parent, { role: node.role, text, ...(node.model ? { model: node.model } : {}) });
    if (node.role === "user") return this.answer(fresh.id, options);
    this.changed();
    this.thread.viewOf(fresh)?.focus();
    return true;
  }

  turn(node, step) {
    if (this.running) return;
    const id = turn(this.conversation, node.id, step);
    this.changed();
    this.thread.viewOf(this.conversation.nodes[id])?.focusVersion(step);
  }

  stop() {
    this.running?.controller.abort();
  }

  changed() {
    this.store.set({ chosen: null });
    this.thread.show(this.conversation);
    this.keep();
    this.onstate();
  }

  // --- storing --------------------------------------------------------------------------------------------------------

  /** What is shown is deleted, and what an answer still brings is not stored; `every`: nor that of another one. */
  drop(every) {
    this.dropped.add(this.conversation);
    if (every && this.running) this.dropped.add(this.running.conversation);
    this.edited = false;
    this.stop();
  }

  keepIfUnsaved() {
    if (this.conversation && this.unsaved && this.last) this.keep();
  }

  keep(conversation = this.conversation) {
    if (this.dropped.has(conversation)) return;
    let outcome = save(conversation);
    if (outcome === "changed") {
      Object.assign(conversation, { id: newId(), revision: 0 });
      outcome = save(conversation);
      notify(new Error("Another window has changed this conversation. What was written here is now one of its own."));
    }
    if (conversation === this.conversation) this.edited = false;
    if (outcome === "removed") notify(new Error("Another window has deleted this conversation: it is not stored any more. Export it to keep it."));
    if (outcome === "full") notify(new Error("This browser has no space for the conversation, or keeps nothing for this page; delete others or export it."));
  }

  // --- answers --------------------------------------------------------------------------------------------------------

  /** Makes a version of an answer that begins with some tokens, and lets the model go on. */
  start(model, parent, tokens, options, from, spaced = false) {
    if (!model || !options || this.running) return false;
    const running = this.begin(), { system } = this.conversation.settings;
    const text = tokens.filter(({ isEnd }) => !isEnd).map((token) => token.text).join("");
    const node = add(this.conversation, parent, {
      role: "assistant", model: model.id, system, text: answersChats(model) && !spaced ? text.trimStart() : text, tokens: [...tokens],
    });
    this.store.set({ chosen: null });
    this.thread.show(this.conversation);
    this.run(node, from, options, running);
    return true;
  }

  /** The same node once more; `from`: what goes on. */
  again(node, from) {
    const options = this.ready(this.modelOf(node) ?? null);
    if (options) this.run(node, from, options, this.begin());
    else if (!this.modelOf(node)) this.thread.viewOf(node)?.summarize(notLoaded(node));
    return Boolean(options);
  }

  /** From here on no other action begins. */
  begin() {
    this.running = { controller: new AbortController(), conversation: this.conversation };
    clearNotice();
    this.onstate();
    return this.running;
  }

  async run(node, from, options, { controller: { signal }, conversation }) {
    const view = this.thread.viewOf(node), model = this.modelOf(node);
    node.free = options.schema !== null && node.tokens.length > 0;
    this.keep(conversation);
    this.thread.enable(false);
    view.busy(true);
    view.summarize();
    this.container.setAttribute("aria-busy", "true");
    document.scrollingElement.scrollTop = document.scrollingElement.scrollHeight;
    let error = null;
    try {
      await this.complete(node, view, model, signal);
      await this.stream(node, view, model, from, options, signal);
    } catch (problem) {
      error = problem;
      node.finish = problem.kind === "stopped" ? "stopped" : node.text || node.tokens.length ? "cut" : null;
    }
    node.verdict = options.schema !== null && node.text ? await this.check(options.schema, node, signal) : null;
    this.keep(conversation);
    this.running = null;
    view.busy(false);
    view.summarize(error, () => this.repeat(node));
    this.thread.enable(true);
    this.container.setAttribute("aria-busy", "false");
    this.onstate(view);
  }

  /** The text of the tokens that an answer begins with, where one is only a part of a character. */
  async complete(node, view, model, signal) {
    if (!node.text.includes("\ufffd")) return;
    const text = await textOf(model, node.tokens.filter(({ isEnd }) => !isEnd), signal);
    node.text = node.text.startsWith(" ") || !answersChats(model) ? text : text.trimStart();
    view.rewrite();
  }

  /** Passes an answer on to its node at once and to the page once a frame. */
  async stream(node, view, model, from, options, signal) {
    const timing = new Timing();
    let text = "", arrived = false, frame = 0;
    const paint = () => {
      cancelAnimationFrame(frame);
      frame = 0;
      if (arrived) this.thread.follow(() => view.append(text));
      [text, arrived] = ["", false];
    };
    try {
      const source = await from(model, node);
      if (!source) return;
      const request = node.free ? { ...options, schema: null } : options;
      for await (const part of generate(model, source, request, signal)) {
        if (part.text || part.tokens.length) timing.count(part.tokens.length || 1);
        node.text += part.text;
        node.tokens.push(...part.tokens);
        node.finish = part.finish ?? node.finish;
        node.usage = part.usage ?? node.usage;
        text += part.text;
        arrived ||= Boolean(part.text || part.tokens.length);
        frame ||= requestAnimationFrame(paint);
      }
    } finally {
      paint();
      node.timing = timing.values;
    }
  }

  /** The way out of an error: what has arrived goes on, and what is empty begins anew. */
  repeat(node) {
    if (node.tokens.length) return this.resume(node);
    return node.text ? this.answer(node.parent) : this.again(node, (model) => this.source(model, node));
  }

  /** What a model answers to. One that was not taught to answer continues the text of all messages. */
  async source(model, node) {
    if (answersChats(model)) return { messages: messages(this.conversation, node.parent) };
    return { tokens: await this.promptOf(node) };
  }

  /** The ids that stand before an answer. */
  async promptOf(node) {
    const model = this.modelOf(node);
    if (!model) throw notLoaded(node);
    const { prompts } = this, key = `${node.model} ${node.parent} ${node.system ?? ""}`;
    if (!prompts.has(key)) {
      const turns = ancestors(this.conversation, node.parent).map(({ role, text }) => ({ role, content: text }));
      if (node.system) turns.unshift({ role: "system", content: node.system });
      const from = answersChats(model) ? { messages: turns } : { prompt: plainText(this.conversation, node.parent) };
      prompts.set(key, (await tokenize(model, from)).map(({ id }) => id));
    }
    return prompts.get(key);
  }

  /** {valid, reason}; `valid` is null where nobody could tell. */
  async check(schema, node, signal) {
    const cut = { length: "it was cut at max tokens", stopped: "it was stopped", cut: "it was cut off" }[node.finish];
    if (cut) return { valid: false, reason: cut };
    try {
      return await post("/playground/check", { schema, text: node.text }, signal);
    } catch (error) {
      return { valid: null, reason: error.message };
    }
  }

  /** The model that wrote an answer, if it is still served. */
  modelOf(node) {
    return this.store.get().models.find(({ id }) => id === node.model);
  }

  markChosen(chosen) {
    for (const view of this.thread.views) {
      if (!view.tokens) continue;
      view.tokens.choose(chosen?.node === view.node ? chosen.at : -1);
    }
  }
}

function notLoaded(node) {
  return new Error(`The model ${node.model} is not served any more. Choose another one for a new answer.`);
}

export function answersChats(model) {
  return model.foundling.kind === "upstream" || Boolean(model.foundling.chats);
}
