// SPDX-License-Identifier: Apache-2.0
// One forward pass: which tokens each head reads, and what each layer would predict (logit lens).
import { post } from "./api.js";
import { count, h, move, percent, roving, showToken } from "./dom.js";
import { explain } from "./notice.js";
import { floats } from "./sampling.js";

const LOOK_TOKENS = 256; // foundling/limits.py

export class InsideView {
  constructor() {
    this.attention = h("div", { class: "attention" });
    this.lens = h("div", { class: "wide" });
    this.parts = [this.attention, this.lens].map((part, at) => h("details", {}, h("summary", { text: at ? "Logit lens" : "Attention" }), part));
    for (const part of this.parts) part.addEventListener("toggle", () => part.open && this.load());
    this.element = h("div", { class: "inside", hidden: true }, this.parts);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.record && this.drawHeads());
  }

  reset() {
    this.controller?.abort();
    this.element.hidden = true;
    this.record = this.place = this.loading = null;
    this.attention.replaceChildren();
    this.lens.replaceChildren();
  }

  /** `prefix`: the ids that the model had read when it chose `token`. */
  at(model, prefix, token) {
    this.controller?.abort();
    this.place = { model, prefix, token };
    this.record = this.loading = null;
    this.element.hidden = !prefix.length || model.foundling.kind !== "generate";
    if (this.parts.some((part) => part.open)) this.load();
  }

  async load(layer = this.record?.layer ?? null, tail = false) {
    const { place } = this;
    const key = `${layer} ${tail}`; // both parts may be open, and one answer is for both
    if (!place || this.loading === key) return;
    this.controller?.abort(); // the layer that was chosen last is shown, in whatever order the answers come
    this.loading = null;
    if (this.record && this.record.layer === layer) return;
    const most = Math.min(LOOK_TOKENS, place.model.foundling.max_seq_len ?? LOOK_TOKENS);
    const tokens = tail ? place.prefix.slice(-most) : place.prefix;
    this.tail = tail;
    if (tokens.length > most) {
      const way = h("button", { type: "button", text: `Look at the last ${most} alone`, onclick: () => this.load(layer, true) });
      this.say(`${count(tokens.length)} tokens stand before this place; at most ${most} can be looked at. `, way);
      return;
    }
    if (!this.record) this.say("Computing …");
    const { signal } = (this.controller = new AbortController());
    this.loading = key;
    try {
      const record = await post("/playground/look", { model: place.model.id, tokens, layer }, signal);
      if (signal.aborted) return;
      const heads = record.heads.map((head) => ({ ...head, rows: rowsOf(head.weights, tokens.length) }));
      this.record = { ...record, heads, layer: heads[0]?.layer ?? layer };
      this.show();
    } catch (error) {
      if (!signal.aborted) this.say(explain(error, () => this.load(layer, tail)));
    }
    if (!signal.aborted) this.loading = null;
  }

  say(...parts) {
    this.attention.replaceChildren(h("div", { class: "quiet", role: "status" }, parts));
    this.lens.replaceChildren();
  }

  show() {
    const { record } = this;
    this.head = Math.min(this.head ?? 0, record.heads.length - 1);
    this.showAttention();
    const predicted = h("code", { text: showToken(record.predicted) });
    const rows = record.lens.map((row) => h("tr", {}, h("th", { scope: "row", text: row.name }), h("td", { class: "n", text: count(row.rank) }),
      h("td", {}, row.best.slice(0, 3).map(([token, p]) => h("span", { class: "best" }, h("code", { text: showToken(token) }), h("span", { class: "quiet", text: ` ${percent(p)} ` }))))));
    this.lens.replaceChildren(
      h("p", { class: "quiet" }, "What the model would predict here if it ended after each layer; the rank is that of ", predicted, "."),
      h("table", {}, h("thead", {}, h("tr", {}, h("th", { scope: "col", text: "after" }), h("th", { scope: "col", class: "n", text: "rank" }), h("th", { scope: "col", text: "most likely" }))), h("tbody", {}, rows)),
      ...record.notes.map((note) => h("p", { class: "quiet", text: note })));
  }

  showAttention() {
    const { record } = this;
    const layers = h("select", { "aria-label": "Layer", onchange: () => this.load(Number(layers.value), this.tail) },
      record.attending.map((layer) => h("option", { text: layer, value: String(layer) })));
    layers.value = String(record.layer);
    this.caption = h("p", { class: "quiet", role: "status" });
    this.thumbs = h("div", { class: "thumbs", role: "group", "aria-label": "Heads" });
    this.text = h("div", { class: "weights", role: "group", "aria-label": "Tokens; the chosen one reads those that are dark" });
    this.thumbs.append(...record.heads.map((head, at) => h("button", { type: "button", class: "thumb", tabindex: at === this.head ? 0 : -1,
      "aria-pressed": String(at === this.head), "aria-label": `Head ${head.head}`, "data-at": at, onclick: () => this.chooseHead(at) },
      h("canvas", { width: record.tokens.length, height: record.tokens.length, class: record.tokens.length > 52 ? "smooth" : null, "aria-hidden": "true" }), h("span", { text: head.head }))));
    this.text.append(...record.tokens.map((token, at) => h("button", { type: "button", tabindex: at === record.tokens.length - 1 ? 0 : -1,
      class: "key", "data-at": at, onclick: () => this.choose(at), onfocus: () => this.choose(at) }, h("span", { text: showToken(token) }))));
    roving(this.thumbs, ".thumb", (button) => this.chooseHead(Number(button.dataset.at)));
    roving(this.text, ".key");
    this.attention.replaceChildren(
      h("p", { class: "row" }, h("label", {}, "layer ", layers), h("span", { class: "quiet", text: "and a head:" })),
      this.thumbs, this.text, this.caption);
    if (this.tail) this.attention.append(h("p", { class: "quiet", text: "Only the last tokens were read, without those before them." }));
    this.keys = [...this.text.children];
    this.drawHeads();
    this.choose(record.tokens.length - 1);
  }

  chooseHead(at) {
    this.head = at;
    for (const [other, button] of [...this.thumbs.children].entries()) button.setAttribute("aria-pressed", String(other === at));
    move(this.thumbs, ".thumb", this.thumbs.children[at]);
    this.choose(this.query);
  }

  /** The token that reads; the others are as dark as it reads them. */
  choose(query) {
    this.query = query;
    const head = this.record.heads[this.head];
    for (const [key, button] of this.keys.entries()) {
      const weight = head.rows[query][key] ?? 0;
      button.style.setProperty("--weight", (0.62 * Math.sqrt(weight)).toFixed(3));
      button.classList.toggle("query", key === query);
      button.title = weight.toFixed(2);
    }
    move(this.text, ".key", this.keys[query]);
    const strongest = head.rows[query].reduce((best, weight, key, row) => (weight > row[best] ? key : best), 0);
    const name = (at) => showToken(this.record.tokens[at]);
    this.caption.textContent = `Layer ${head.layer}, head ${head.head}: ${name(query)} (outlined) reads most of ${name(strongest)}, ${percent(head.rows[query][strongest])}.`;
  }

  drawHeads() {
    const ink = getComputedStyle(document.documentElement).getPropertyValue("--accent");
    for (const [at, button] of [...this.thumbs.children].entries()) {
      const canvas = button.firstChild, { rows } = this.record.heads[at];
      const paint = canvas.getContext("2d"); // a pixel for each pair of tokens, which the style scales
      paint.clearRect(0, 0, canvas.width, canvas.height);
      paint.fillStyle = ink;
      rows.forEach((row, query) => row.forEach((weight, key) => {
        if (weight < 0.005) return;
        paint.globalAlpha = Math.min(1, Math.sqrt(weight)); // most weight is often on the first token
        paint.fillRect(key, query, 1, 1);
      }));
    }
  }
}

/** A list of rows, of base64 of little-endian float32. */
function rowsOf(weights, n) {
  const all = floats(weights);
  return Array.from({ length: n }, (_, row) => all.subarray(row * n, (row + 1) * n));
}
