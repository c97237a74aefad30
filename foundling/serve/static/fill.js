// SPDX-License-Identifier: Apache-2.0
// Fill in the middle: what stands between a beginning and an end.
import { AnswerView } from "./answer.js";
import { h } from "./dom.js";

export class FillView {
  /** `settings()`: {sampling, maxTokens, seed} of the chat. */
  constructor(store, element, settings) {
    Object.assign(this, { store, element, settings, controller: null });
    this.before = h("textarea", { id: "fill-before", class: "mono", rows: 6, spellcheck: "false", value: "def mean(values):\n    " });
    this.after = h("textarea", { id: "fill-after", class: "mono", rows: 3, spellcheck: "false", value: "\n    return total / len(values)\n" });
    this.button = h("button", { class: "primary", text: "Fill in" });
    this.cancel = h("button", { type: "button", text: "Stop", hidden: true, onclick: () => this.controller?.abort() });
    this.note = h("p", { class: "quiet", role: "status" });
    this.used = h("p", { class: "quiet" });
    this.answer = new AnswerView("the middle");
    this.whole = h("pre", { class: "filled", tabindex: 0, role: "region", "aria-label": "The text filled in", hidden: true });
    const form = h("form", { class: "column" },
      h("label", { for: "fill-before", text: "Before the gap" }), this.before,
      h("label", { for: "fill-after", text: "After the gap" }), this.after,
      h("p", { class: "row" }, this.button, this.cancel, this.note), this.used, this.whole, this.answer.element);
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.run();
    });
    element.append(form);
    store.subscribe(["model", "sampling"], () => this.show());
    this.show();
  }

  show() {
    const { model } = this.store.get();
    const fills = model && (model.foundling.fills_middle || model.foundling.kind === "upstream");
    this.button.disabled = !fills;
    this.note.textContent = !model || fills ? "" : `${model.id} was not taught to fill in the middle: its tokenizer has no tokens for it. Choose another model.`;
    const { sampling: { temperature, top_k, top_p, min_p }, maxTokens, seed } = this.settings();
    this.used.textContent = `With the settings of the Chat tab: temperature ${temperature}, top-k ${top_k || "off"}, top-p ${top_p}, min-p ${min_p}, `
      + `at most ${maxTokens} tokens, ${seed === null ? "any seed" : `seed ${seed}`}.`;
  }

  async run() {
    const { model } = this.store.get();
    if (this.controller || !model) return;
    this.controller = new AbortController();
    const pressed = document.activeElement === this.button;
    this.button.hidden = true;
    this.cancel.hidden = false;
    if (pressed) this.cancel.focus();
    this.whole.hidden = true;
    const before = this.before.value, after = this.after.value;
    try {
      await this.answer.run(model, { prompt: before, suffix: after }, { ...this.settings(), schema: null }, this.controller.signal);
      this.whole.hidden = !this.answer.text;
      this.whole.replaceChildren(before, h("mark", { text: this.answer.text }), after);
    } finally {
      this.controller = null;
      const back = document.activeElement === this.cancel;
      this.button.hidden = false;
      this.cancel.hidden = true;
      if (back) this.button.focus();
    }
  }
}
