// SPDX-License-Identifier: Apache-2.0
// What the model reads: the tokens of a text, the same sentence in several languages, and a word against its letters.
import { ServerError } from "./api.js";
import { count, debounce, h, plural, showToken } from "./dom.js";
import { tokenize } from "./generate.js";
import { ARTICLE } from "./languages.js";
import { cost } from "./message.js";
import { notify } from "./notice.js";

const SAMPLE = "The quick brown fox jumps over 12345 lazy dogs.\nUnbelievable! 🦊 naïve";

export class TokenizerView {
  constructor(store, element) {
    Object.assign(this, { store, element });
    this.text = h("textarea", { id: "tokenizer-text", rows: 4, value: SAMPLE, maxlength: 20000 });
    this.ids = h("button", { type: "button", text: "Show ids", "aria-pressed": "false", onclick: () => this.toggleIds() });
    this.tokens = h("div", { class: "tokens", "aria-live": "off" });
    this.facts = h("p", { class: "quiet", role: "status" });
    this.languages = h("tbody");
    this.priced = h("th", { scope: "col", class: "n", text: "$ per million", hidden: true });
    this.word = h("input", { id: "tokenizer-word", value: "strawberry", maxlength: 60, autocomplete: "off", spellcheck: "false" });
    this.letters = h("div", { class: "spelling" });
    this.reason = h("p", { role: "status" });
    element.append(
      h("div", { class: "column" }, h("h2", { text: "A text as the model reads it" }), h("label", { for: "tokenizer-text", text: "Text" }), this.text,
        this.tokens, h("div", { class: "row spread" }, this.facts, this.ids),
        h("h2", { text: "Why reversing a word is hard" }),
        h("p", { class: "row" }, h("label", { for: "tokenizer-word", text: "Word" }), this.word), this.letters, this.reason),
      h("div", { class: "column" },
        h("h2", { text: "The same sentence in ten languages" }),
        h("p", { class: "quiet", text: "The first article of the Universal Declaration of Human Rights. More tokens for the same meaning cost more, take longer and fill the context sooner." }),
        h("div", { class: "wide" }, h("table", { class: "languages" }, h("thead", {}, h("tr", {}, h("th", { scope: "col", text: "language" }),
          h("th", { scope: "col", class: "n", text: "tokens" }), h("th", { scope: "col", text: "relative to English" }),
          h("th", { scope: "col", class: "n extra", text: "characters per token" }), this.priced)), this.languages))),
    );
    this.text.addEventListener("input", debounce(() => this.show(), 250));
    this.word.addEventListener("input", debounce(() => this.show(), 250));
    store.subscribe(["model"], () => !element.hidden && this.show());
  }

  async show() {
    const { model } = this.store.get();
    if (!model) return;
    try {
      if (model.foundling.kind === "upstream") throw new ServerError("request", `${model.id} is behind another server: its tokenizer is not here.`);
      await this.showText(model);
      await this.showWord(model);
      if (this.shown !== model) await this.showLanguages(model);
    } catch (error) {
      if (this.isChosen(model)) notify(error, () => this.show());
    }
  }

  isChosen(model) {
    return this.store.get().model === model;
  }

  async tokensOf(model, text) {
    return text ? tokenize(model, { prompt: text, add_special_tokens: false }) : [];
  }

  async showText(model) {
    const text = this.text.value;
    const tokens = await this.tokensOf(model, text);
    if (text !== this.text.value || !this.isChosen(model)) return;
    const nodes = tokens.flatMap(({ id, text: piece, bytes }) => [
      h("span", { title: `id ${id}` }, h("span", { text: spelled(piece, bytes) }), h("small", { text: id })), piece.includes("\n") ? h("br") : null,
    ]);
    this.tokens.replaceChildren(...nodes.filter(Boolean));
    const bytes = new TextEncoder().encode(text).length;
    const facts = [plural(tokens.length, "token"), plural([...text].length, "character"), plural(bytes, "byte")];
    if (tokens.length) facts.push(`${(bytes / tokens.length).toFixed(2)} bytes per token`);
    this.facts.textContent = facts.join(" · ");
  }

  toggleIds() {
    const on = this.tokens.classList.toggle("with-ids");
    this.ids.setAttribute("aria-pressed", String(on));
  }

  async showLanguages(model) {
    const rows = [];
    for (const { language, code, text } of ARTICLE) rows.push({ language, code, text, n: (await this.tokensOf(model, text)).length });
    if (!this.isChosen(model)) return;
    this.shown = model;
    const most = Math.max(...rows.map(({ n }) => n)), english = rows[0].n, { price } = model.foundling;
    this.priced.hidden = !price;
    this.languages.replaceChildren(...rows.map(({ language, code, text, n }) => {
      const bar = h("i");
      bar.style.width = `calc((100% - 3.2rem) * ${n / most})`;
      return h("tr", {}, h("th", { scope: "row" }, h("details", {}, h("summary", { text: language }), h("p", { class: "quiet", lang: code, dir: "auto", text }))),
        h("td", { class: "n", text: count(n) }), h("td", { class: "ratio" }, h("span", { text: `${(n / english).toFixed(1)} ×` }), bar),
        h("td", { class: "n extra", text: ([...text].length / n).toFixed(1) }),
        price ? h("td", { class: "n", text: cost(n * price.prompt) }) : null);
    }));
  }

  async showWord(model) {
    const word = this.word.value.trim();
    const letters = [...new Intl.Segmenter(undefined, { granularity: "grapheme" }).segment(word)].map(({ segment }) => segment);
    const reversed = letters.toReversed().join("");
    const tokens = await this.tokensOf(model, word), back = await this.tokensOf(model, reversed);
    if (word !== this.word.value.trim() || !this.isChosen(model)) return;
    const row = (name, parts, kind) => [h("span", { class: "quiet", text: name }), h("span", { class: `tokens ${kind}` }, parts.map((part) => h("span", { text: part })))];
    this.letters.replaceChildren(...(word ? [
      ...row("you see", letters, "letters"), ...row("the model reads", tokens.map(({ text, bytes }) => spelled(text, bytes)), ""),
      ...row("reversed, it must write", back.map(({ text, bytes }) => spelled(text, bytes)), ""),
    ] : []));
    const shared = back.filter(({ id }) => tokens.some((token) => token.id === id)).length;
    const same = shared === 0 ? "none of them" : shared === back.length ? "all of them" : `${shared} of them`;
    this.reason.textContent = !word ? "" : tokens.length === letters.length && shared === back.length
      ? "Each letter is a token of its own, so that reversing this word is reversing a list: no spelling has to be known."
      : `The model reads ${plural(tokens.length, "number")}, not ${plural(letters.length, "letter")}: no id says which letters it stands for. `
        + `The reversed word is ${plural(back.length, "token")}, ${same} in the word itself. To write ${back.length === 1 ? "it" : "them"}, the model must have learnt how each token is spelled.`;
  }
}

/** A token that has only a part of a character is written with its bytes. */
function spelled(text, bytes) {
  if (!text.includes("\ufffd") || !bytes) return showToken(text);
  return bytes.map((byte) => (byte < 0x80 ? showToken(String.fromCharCode(byte)) : `<${byte.toString(16).toUpperCase()}>`)).join("");
}
