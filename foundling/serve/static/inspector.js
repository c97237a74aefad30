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
  /** `positionOf(chosen)` -> {model, prefix: ids, token or null}; `onbranch(chosen, token, ends)` continues from one. */
  constructor(store, element, positionOf, onbranch) {
    Object.assign(this, { store, element, positionOf, onbranch, distribution: null, controller: null });
    this.heading = h("h2", { id: "inspector-title", text: "Next token" });
    this.close = h("button", { type: "button", class: "close", text: "Close", onclick: () => this.hide() });
    this.facts = h("dl", { class: "facts-list" });
    this.status = h("p", { class: "quiet", role: "status" });
    this.next = h("button", { type: "button", id: "show-next", text: "Show the next token", onclick: () => this.showNext() });
    this.controls = samplingControls(store.get().sampling, (sampling) => store.set({ sampling }));
    this.rows = h("tbody");
    this.column = h("th", { scope: "col", text: "drawn" });
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
    this.reset();
  }

  reset() {
    this.controller?.abort();
    this.distribution = this.chosen = null;
    this.heading.textContent = "Next token";
    this.facts.replaceChildren();
    this.facts.hidden = true;
    this.table.hidden = true;
    this.next.hidden = false;
    this.inside.reset();
    this.status.replaceChildren("Choose a token of an answer to see what else could have stood there, or look at what would follow.");
  }

  /** On a narrow page, where it lies over the end of the chat. */
  open() {
    this.element.classList.add("open");
    if (getComputedStyle(this.element).position !== "fixed") return;
    document.querySelector(".token[aria-pressed]")?.scrollIntoView({ block: "start" });
  }

  hide() {
    if (this.element.contains(document.activeElement)) (document.querySelector(".token[aria-pressed]") ?? document.getElementById("draft")).focus();
    this.element.classList.remove("open");
  }

  showNext() {
    this.store.set({ chosen: null });
    return this.show(null);
  }

  async show(chosen) {
    this.controller?.abort();
    const { signal } = (this.controller = new AbortController());
    this.chosen = chosen;
    this.open();
    this.next.hidden = chosen === null;
    const token = chosen?.node.tokens[chosen.at] ?? null;
    this.heading.replaceChildren(...(token ? ["Token ", h("code", { text: showToken(token.text) })] : ["Next token"]));
    this.list(token);
    this.status.textContent = "Reading the logits …";
    try {
      const place = await this.positionOf(chosen);
      const answer = await post("/playground/next", { model: place.model.id, tokens: place.prefix, n: 40 }, signal);
      if (signal.aborted) return;
      this.texts = new Map(answer.top.map(({ id, text }) => [id, text]));
      if (token) this.texts.set(token.id, token.text);
      this.ends = answer.ends;
      this.distribution = Distribution.from(answer);
      this.token = token;
      this.list(token);
      this.listRows();
      this.draw();
      this.inside.at(place.model, place.prefix, token);
    } catch (error) {
      if (signal.aborted || error.kind === "stopped") return;
      this.table.hidden = true;
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

  /** Rows of the most likely tokens, and of the chosen one. */
  listRows() {
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
        "aria-label": `Continue with ${showToken(text)}`,
        onclick: () => this.onbranch(this.chosen, { id, text, logprob }, this.ends) });
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
      this.status.textContent = draw.n === 1 ? "Only the most likely token can be drawn."
        : `${count(draw.n)} of ${count(distribution.complete ? distribution.size : draw.n)} tokens can be drawn.`;
    }
    for (const { rank, bar, drawn } of this.bars) {
      const p = draw && rank < draw.n ? draw.probs[rank] : 0;
      bar.style.width = `${p > 0 ? (100 * p) / draw.probs[0] : 0}%`; // beside the most likely: a flat one has a shape too
      bar.parentElement.dataset.p = p;
      drawn.textContent = draw ? percent(p) : "";
    }
  }
}
