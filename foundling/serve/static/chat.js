// SPDX-License-Identifier: Apache-2.0
// The chat: sends messages, shows answers as they arrive, and makes versions of both.
import { post } from "./api.js";
import { ROOT, add, ancestors, messages, path, plainText, turn } from "./conversation.js";
import { generate, textOf, Timing, tokenize } from "./generate.js";
import { clearNotice, notify } from "./notice.js";
import { Thread } from "./thread.js";
import { save } from "./library.js";

export class Chat {
  /** `options()`: {sampling, maxTokens, seed, schema} of the next answer. `onstate`: something began or ended. */
  constructor(store, container, options, onstate) {
    Object.assign(this, { store, options, onstate, container, running: null });
    this.prompts = new Map();
    this.thread = new Thread(container, {
      turn: (node, step) => this.turn(node, step), edit: (node, text) => this.edit(node, text),
      regenerate: (node) => this.answer(node.parent), resume: (node) => this.resume(node),
      choose: (node, at) => store.set({ chosen: { node, at } }),
    });
    store.subscribe(["chosen"], ({ chosen }) => this.markChosen(chosen));
  }

  open(conversation) {
    this.stop();
    this.prompts.clear();
    this.conversation = conversation;
    this.store.set({ chosen: null });
    this.thread.show(conversation);
    this.onstate();
  }

  get last() {
    return path(this.conversation).at(-1) ?? null;
  }

  send(text) {
    const node = add(this.conversation, this.last?.id ?? ROOT, { role: "user", text });
    return this.answer(node.id);
  }

  /** A new answer to a message, beside those that it has. */
  answer(parent) {
    return this.start(this.store.get().model, parent, [], (model, node) => this.source(model, node));
  }

  /** The same answer up to token `at`, then another token, then what follows it. `ends`: ids that end an answer. */
  branch(node, at, token, ends) {
    const tokens = [...node.tokens.slice(0, at), { ...token, isEnd: ends.includes(token.id) }];
    return this.start(this.modelOf(node), node.parent, tokens, (model, fresh) => this.rest(fresh), node.text.startsWith(" "));
  }

  /** What goes on after the tokens of an answer; null after an end. */
  async rest(node) {
    if (node.tokens.at(-1)?.isEnd) return null;
    return { tokens: [...await this.promptOf(node), ...node.tokens.map(({ id }) => id)] };
  }

  /** The next token, as the user chose it: the first of an answer to the draft or to the last message, or one more of
   * the last answer. */
  extend(draft, token, ends) {
    if (this.running) return;
    if (draft.trim()) add(this.conversation, this.last?.id ?? ROOT, { role: "user", text: draft });
    const { last } = this;
    if (last?.role === "user") this.start(this.store.get().model, last.id, [{ ...token, isEnd: ends.includes(token.id) }], (model, fresh) => this.rest(fresh));
    else if (last?.tokens?.length) this.branch(last, last.tokens.length, token, ends);
  }

  /** The ids after which the next token would stand: of the draft, or at the end of the conversation. */
  async nextPrefix(draft) {
    const { model } = this.store.get();
    if (!model) throw new Error("No model is chosen.");
    const { last, conversation } = this;
    const before = last?.id ?? ROOT;
    if (!draft.trim() && last?.tokens?.length) return [...await this.promptOf(last), ...last.tokens.map(({ id }) => id)];
    const draftTurn = draft.trim() ? [{ role: "user", content: draft }] : [];
    const from = answersChats(model) ? { messages: [...messages(conversation, before), ...draftTurn] }
      : { prompt: plainText(conversation, before) + draft };
    if (!(from.messages?.length || from.prompt)) throw new Error("Write something first: then the token after it is shown.");
    return (await tokenize(model, from)).map(({ id }) => id);
  }

  /** More tokens of an answer that was cut. */
  resume(node) {
    return this.run(node, () => this.rest(node));
  }

  edit(node, text) {
    if (this.running) return;
    const fresh = add(this.conversation, node.parent, { role: node.role, text, ...(node.model ? { model: node.model } : {}) });
    if (node.role === "user") this.answer(fresh.id);
    else this.changed();
  }

  turn(node, step) {
    if (this.running) return;
    const id = turn(this.conversation, node.id, step);
    this.changed();
    this.thread.viewOf(this.conversation.nodes[id])?.versions.querySelector("button:enabled")?.focus();
  }

  stop() {
    this.running?.abort();
  }

  changed() {
    this.store.set({ chosen: null });
    this.thread.show(this.conversation);
    this.keep();
    this.onstate();
  }

  keepIfAny() {
    if (this.last) this.keep();
  }

  keep() {
    if (!save(this.conversation)) notify(new Error("This browser has no space left for the conversation; delete others or export it."));
  }

  /** Makes a version of an answer that begins with some tokens, and lets the model go on. */
  async start(model, parent, tokens, from, spaced = false) {
    if (!model || this.running) return;
    const { system } = this.conversation.settings;
    const text = await textOf(model, tokens.filter(({ isEnd }) => !isEnd));
    const node = add(this.conversation, parent, {
      role: "assistant", model: model.id, system, text: spaced ? text : text.trimStart(), tokens: [...tokens],
    });
    this.store.set({ chosen: null });
    this.thread.show(this.conversation);
    await this.run(node, from);
  }

  async run(node, from) {
    const model = this.modelOf(node), view = this.thread.viewOf(node);
    if (!view || this.running) return;
    if (!model) {
      view.summarize(notLoaded(node));
      return;
    }
    const controller = this.running = new AbortController();
    const options = this.options(), conversation = this.conversation;
    clearNotice();
    this.onstate();
    view.busy(true);
    view.summarize();
    this.container.setAttribute("aria-busy", "true");
    document.scrollingElement.scrollTop = document.scrollingElement.scrollHeight;
    let error = null;
    try {
      await this.stream(node, view, model, from, options, controller.signal);
    } catch (problem) {
      error = problem;
      node.finish = problem.kind === "stopped" ? "stopped" : node.text || node.tokens.length ? "cut" : null;
    }
    this.running = null;
    if (options.schema && node.text) node.verdict = await this.check(options.schema, node);
    if (conversation === this.conversation) this.keep();
    else save(conversation);
    view.busy(false);
    view.summarize(error, () => this.again(node));
    this.container.setAttribute("aria-busy", "false");
    this.onstate();
  }

  /** Passes an answer on to its node at once and to the page once a frame. */
  async stream(node, view, model, from, options, signal) {
    const timing = new Timing();
    let text = "", tokens = [], frame = 0;
    const paint = () => {
      cancelAnimationFrame(frame);
      frame = 0;
      if (text || tokens.length) this.thread.follow(() => view.append(text, tokens));
      [text, tokens] = ["", []];
    };
    try {
      const source = await from(model, node);
      if (!source) return;
      const request = source.messages ? options : { ...options, schema: node.tokens.length ? null : options.schema };
      for await (const part of generate(model, source, request, signal)) {
        if (part.text || part.tokens.length) timing.count(part.tokens.length || 1);
        node.text += part.text;
        node.tokens.push(...part.tokens);
        node.finish = part.finish ?? node.finish;
        node.usage = part.usage ?? node.usage;
        text += part.text;
        tokens.push(...part.tokens);
        frame ||= requestAnimationFrame(paint);
      }
    } finally {
      paint();
      node.timing = timing.values;
    }
  }

  /** The way out of an error: what has arrived goes on, and what is empty begins anew. */
  again(node) {
    if (node.tokens.length) return this.resume(node);
    return node.text ? this.answer(node.parent) : this.run(node, (model) => this.source(model, node));
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
    const key = `${node.model} ${node.parent} ${node.system ?? ""}`;
    if (!this.prompts.has(key)) {
      const turns = ancestors(this.conversation, node.parent).map(({ role, text }) => ({ role, content: text }));
      if (node.system) turns.unshift({ role: "system", content: node.system });
      const from = answersChats(model) ? { messages: turns } : { prompt: plainText(this.conversation, node.parent) };
      this.prompts.set(key, (await tokenize(model, from)).map(({ id }) => id));
    }
    return this.prompts.get(key);
  }

  async check(schema, node) {
    if (node.finish === "length") return { valid: false, reason: "it was cut at the longest answer" };
    try {
      return await post("/playground/check", { schema, text: node.text });
    } catch (error) {
      return { valid: false, reason: error.message };
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
