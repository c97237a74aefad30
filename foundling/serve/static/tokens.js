// SPDX-License-Identifier: Apache-2.0
// A row of tokens, each one a button; the row is one tab stop, and arrows move inside it.
import { h, move, percent, roving, showToken } from "./dom.js";

export class TokenRow {
  /** `onchoose(at)`: a token was chosen by click or by keyboard. */
  constructor(label, onchoose) {
    this.element = h("div", { class: "token-row", role: "group", "aria-label": label });
    this.n = 0;
    this.element.addEventListener("click", (event) => {
      const button = event.target.closest(".token");
      if (!button) return;
      move(this.element, ".token", button);
      onchoose(Number(button.dataset.at));
    });
    roving(this.element, ".token");
  }

  append(tokens) {
    for (const token of tokens) {
      const p = Math.exp(token.logprob);
      const button = h("button", {
        type: "button", class: "token", tabindex: this.n ? -1 : 0, "data-at": this.n, "data-p": level(p),
        title: `${percent(p)}, log-probability ${token.logprob.toFixed(3)}, id ${token.id}`,
        "aria-label": `token ${showToken(token.text)}, ${percent(p)}`,
      }, h("span", { class: "text", text: showToken(token.text) }), h("span", { class: "p", text: short(p), "aria-hidden": "true" }));
      this.element.append(button);
      if (/\n/.test(token.text)) this.element.append(h("br"));
      this.n += 1;
    }
  }

  choose(at) {
    for (const button of this.element.querySelectorAll("[aria-pressed]")) button.removeAttribute("aria-pressed");
    const button = this.element.querySelector(`[data-at="${at}"]`);
    if (!button) return;
    button.setAttribute("aria-pressed", "true");
    move(this.element, ".token", button);
  }

  mark(at, name) {
    this.element.querySelector(`[data-at="${at}"]`)?.classList.add(name);
  }
}

/** Fives of probability, which the style colours. */
function level(p) {
  return p >= 0.9 ? 5 : p >= 0.5 ? 4 : p >= 0.2 ? 3 : p >= 0.05 ? 2 : 1;
}

function short(p) {
  return p >= 0.995 ? "100" : p >= 0.095 ? (100 * p).toFixed(0) : p >= 0.01 ? (100 * p).toFixed(1) : "<1";
}
