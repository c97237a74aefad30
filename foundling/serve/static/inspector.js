// SPDX-License-Identifier: Apache-2.0
// Beside the chat: the distribution at a token or after the last one, the sliders that reshape it, and what the model
// did inside.
import { post } from "./api.js";
import { samplingControls } from "./controls.js";
import { count, h, percent, showToken } from "./dom.js";
import { InsideView } from "./inside.js";
import { explain } from "./notice.js";
import { Distribution } from "./sampling.js";

const ROWS = 8;

export class Inspector {
  /** `opener`: the button that opens it on a narrow page. `positionOf(chosen)` -> place {model, prefix: ids, …};
   * `onbranch(place, token, ends)` continues there. */
  constructor(store, element, opener, positionOf, onbranch) {
    Object.assign(this, { store, element, opener, positionOf, onbranch, distribution: null, controller: null, isNext: false, idle: true });
    this.heading = h("h2", { id: "inspector-title", tabindex: -1, text: "Next token" });
    this.close = h("button", { type: "button", class: "close", text: "Close", onclick: () => this.hide() });
    this.facts = h("dl", { class: "facts-list" });
    this.status = h("p", { class: "quiet", role: "status" });
    this.next = h("button", { type: "button", id: "show-next", text: "Show the next token", onclick: () => this.showNext() });
    this.controls = samplingControls(store.get().sampling, (sampling) => store.set({ sampling }));
    this.rows = h("tbody");
    this.column = h("th", { scope: "col", text: "sampled" });
    this.table = h("table", { class: "distribution", hidden: true },
      h("caption", { class: "unseen", text: "The most likely tokens. Choose one to continue from it." }),
      h("thead", {}, h("tr", {}, h("th", { scope: "col", text: "token" }), h("th", { scope: "col", class: "n", text: "logit" }),
        h("th", { scope: "col", class: "n", text: "model" }), this.column)), this.rows);
    this.inside = new InsideView();
    element.append(
      h("div", { class: "row spread" }, this.heading, this.close), this.facts,
      this.controls.element, this.table, this.status, h("p", { class: "row" }, this.next), this.inside.element,
    );
    store.subscribe(["chosen"], ({ chosen }) => (chosen ? this.show(chosen) : this.reset()));
    store.subscribe(["sampling"], () => this.draw());
    store.subscribe(["model"], () => this.forgetNext());
    this.reset();
  }

  /** The numbers of another place are never shown. */
  clear() {
    this.controller?.abort();
    this.distribution = this.token = null;
    this.table.hidden = true;
    this.inside.reset();
  }

  /** The next token stood after a draft, a model and messages, of which one has changed. */
  forgetNext() {
    if (this.isNext) this.reset();
  }

  reset() {
    this.clear();
    this.isNext = false;
    this.heading.textContent = "Next token";
    this.facts.replaceChildren();
    this.facts.hidden = true;
    this.next.hidden = false;
    this.status.replaceChildren("Choose a token of an answer to see what else could have stood there, or look at what would follow.");
  }

  /** Whether another answer may begin. */
  enable(is) {
    this.idle = is;
    for (const button of this.rows.querySelectorAll("button")) button.disabled = !is;
  }

  /** On a narrow page, where it lies over the end of the chat. */
  open() {
    this.element.classList.add("open");
    this.opener.setAttribute("aria-expanded", "true");
    if (getComputedStyle(this.element).position !== "fixed") return;
    document.querySelector(".token[aria-pressed]")?.scrollIntoView({ block: "start" });
    if (this.element.contains(document.activeElement)) return;
    this.back = document.activeElement;
    this.heading.focus({ preventScroll: true });
  }

  /** The focus goes back to where it was. */
  hide() {
    const leaves = getComputedStyle(this.element).position === "fixed" && this.element.contains(document.activeElement);
    this.element.classList.remove("open");
    this.opener.setAttribute("aria-expanded", "false");
    if (leaves) (this.back?.isConnected && this.back !== document.body ? this.back : this.opener).focus();
  }

  showNext() {
    this.store.set({ chosen: null });
    return this.show(null);
  }

  async show(chosen) {
    this.clear();
    const { signal } = (this.controller = new AbortController());
    this.isNext = chosen === null;
    this.open();
    this.next.hidden = chosen === null;
    const token = chosen?.node.tokens[chosen.at] ?? null;
    this.heading.replaceChildren(...(token ? ["Token ", h("code", { text: showToken(token.text) })] : ["Next token"]));
    this.list(token);
    this.status.textContent = "Reading the logits …";
    try {
      const place = await this.positionOf(chosen);
      if (signal.aborted) return;
      const answer = await post("/playground/next", { model: place.model.id, tokens: place.prefix, n: 40 }, signal);
      if (signal.aborted) return;
      this.texts = new Map(answer.top.map(({ id, text }) => [id, text]));
      if (token) this.texts.set(token.id, token.text);
      Object.assign(this, { distribution: Distribution.from(answer), also: answer.also, token });
      this.list(token);
      this.listRows(place, answer.ends);
      this.draw();
      this.inside.at(place.model, place.prefix, token);
    } catch (error) {
      if (signal.aborted || error.kind === "stopped") return;
      this.status.replaceChildren(explain(error, () => this.show(chosen)));
    }
  }

  /** The numbers of the chosen token. */
  list(token) {
    this.facts.hidden = !token;
    if (!token) return;
    const rank = this.distribution && this.token === token ? this.distribution.rankOf(token.id) : -1;
    const facts = [
      ["logit", rank >= 0 ? this.distribution.logits[rank].toFixed(3) : "…"],
      ["probability", percent(Math.exp(token.logprob))], ["log-probability", token.logprob.toFixed(3)],
      ["rank", rank >= 0 ? count(rank + 1) : "…"], ["id", String(token.id)],
    ];
    this.facts.replaceChildren(...facts.map(([name, value]) => h("div", {}, h("dt", { text: name }), h("dd", { text: value }))));
  }

  /** Rows of the most likely tokens, and of the chosen one; a choice continues at `place`. */
  listRows(place, ends) {
    const { distribution, token } = this;
    const ranks = [...Array(Math.min(ROWS, distribution.size)).keys()];
    const own = token ? distribution.rankOf(token.id) : -1;
    if (own >= ROWS) ranks.push(own);
    this.bars = ranks.map((rank) => {
      const id = distribution.ids[rank];
      const text = this.texts.get(id) ?? `#${id}`;
      const logprob = distribution.logprob(rank);
      const bar = h("i"), drawn = h("span");
      const button = h("button", { type: "button", class: "alternative", text: showToken(text), title: "Continue from here",
        "aria-label": `Continue with ${showToken(text)}`, disabled: !this.idle,
        onclick: () => this.onbranch(place, { id, text, logprob }, ends) });
      this.rows.append(h("tr", { class: rank === own ? "own" : null }, h("th", { scope: "row" }, button),
        h("td", { class: "n", text: distribution.logits[rank].toFixed(2) }), h("td", { class: "n", text: percent(Math.exp(logprob)) }),
        h("td", { class: "drawn" }, bar, drawn)));
      return { rank, bar, drawn };
    });
    this.rows.replaceChildren(...[...this.rows.children].slice(-ranks.length));
  }

  /** Redraws what the sliders change. */
  draw() {
    const { distribution } = this;
    if (!distribution) return;
    this.table.hidden = !distribution.size;
    const draw = distribution.draw(this.store.get().sampling);
    if (!draw) {
      this.status.textContent = distribution.size
        ? `The server shows only ${distribution.size} logits of each position: the sliders work with top-k up to ${distribution.size}.`
        : "The server shows no log-probabilities.";
    } else {
      this.status.textContent = draw.n === 1 ? "Only the most likely token can be sampled."
        : `${count(draw.n)} of ${count(distribution.complete ? distribution.size : draw.n)} tokens can be sampled.`;
    }
    if (this.also.length) this.status.append(` The model's own settings change this further, which the column leaves out: ${this.also.join(", ")}.`);
    for (const { rank, bar, drawn } of this.bars) {
      const p = draw && rank < draw.n ? draw.probs[rank] : 0;
      bar.style.width = `calc((100% - 3.6rem) * ${p > 0 ? p / draw.probs[0] : 0})`; // beside the most likely: a flat one has a shape too
      bar.parentElement.dataset.p = p;
      drawn.textContent = draw ? percent(p) : "";
    }
  }
}
