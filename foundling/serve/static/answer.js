// SPDX-License-Identifier: Apache-2.0
// One answer outside of the chat: it streams into a place of its own and sums itself up.
import { h, plural } from "./dom.js";
import { generate, Timing } from "./generate.js";
import { explain } from "./notice.js";
import { TokenRow } from "./tokens.js";
import { cost } from "./message.js";

export class AnswerView {
  constructor(label) {
    this.body = h("div", { class: "text plain" });
    this.row = new TokenRow(`Tokens of ${label}`, () => {});
    this.foot = h("p", { class: "foot", role: "status" });
    this.toggle = h("button", { type: "button", text: "Tokens", hidden: true, onclick: () => this.showTokens(!this.body.hidden) });
    this.element = h("div", { class: "answer" }, this.body, this.row.element, h("div", { class: "row spread" }, this.foot, this.toggle));
  }

  /** The tokens, or the text as it reads. */
  showTokens(shown) {
    this.body.hidden = shown;
    this.row.element.hidden = !shown;
    this.toggle.setAttribute("aria-pressed", String(shown));
  }

  /** Resolves when the answer has ended, in whatever way, to its tokens. */
  async run(model, source, options, signal) {
    const timing = new Timing();
    this.tokens = [];
    this.text = "";
    this.row.element.replaceChildren();
    this.row.n = 0;
    this.body.replaceChildren();
    this.showTokens(false);
    this.toggle.hidden = true;
    this.foot.textContent = "…";
    this.element.setAttribute("aria-busy", "true");
    let usage = null, finish = null, error = null;
    try {
      for await (const part of generate(model, source, options, signal)) {
        if (part.text || part.tokens.length) timing.count(part.tokens.length || 1);
        this.text += part.text;
        this.body.append(part.text);
        this.row.append(part.tokens);
        this.tokens.push(...part.tokens);
        usage = part.usage ?? usage;
        finish = part.finish ?? finish;
      }
    } catch (problem) {
      error = problem;
    }
    this.toggle.hidden = !this.tokens.length;
    this.showTokens(this.tokens.length > 0);
    this.element.setAttribute("aria-busy", "false");
    const { rate, first } = timing.values, n = this.tokens.length || usage?.completion_tokens || 0;
    const sum = this.tokens.reduce((total, { logprob }) => total + logprob, 0);
    const facts = [plural(n, "token"), rate && `${rate.toFixed(rate < 10 ? 1 : 0)} tokens/s`, first !== undefined && `${first.toFixed(2)} s to the first`,
      this.tokens.length && `perplexity ${Math.exp(-sum / this.tokens.length).toFixed(2)}`, usage?.cost !== undefined && `$${cost(usage.cost)}`,
      { length: "cut at max tokens", stop: "" }[finish], error?.kind === "stopped" && "stopped"].filter(Boolean);
    this.foot.textContent = n ? facts.join(" · ") : "";
    if (error && error.kind !== "stopped") this.foot.append(explain(error));
    return this.tokens;
  }
}
