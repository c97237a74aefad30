// SPDX-License-Identifier: Apache-2.0
// Fill in the middle: what stands between a beginning and an end.
import { AnswerView } from "./answer.js";
import { h } from "./dom.js";

export class FillView {
  constructor(store, element, options) {
    Object.assign(this, { store, element, options, controller: null });
    this.before = h("textarea", { id: "fill-before", class: "mono", rows: 6, spellcheck: "false", value: "def mean(values):\n    " });
    this.after = h("textarea", { id: "fill-after", class: "mono", rows: 3, spellcheck: "false", value: "\n    return total / len(values)\n" });
    this.button = h("button", { class: "primary", text: "Fill in" });
    this.cancel = h("button", { type: "button", text: "Stop", hidden: true, onclick: () => this.controller?.abort() });
    this.note = h("p", { class: "quiet", role: "status" });
    this.answer = new AnswerView("the middle");
    this.whole = h("pre", { class: "filled", tabindex: 0, role: "region", "aria-label": "The text filled in", hidden: true });
    const form = h("form", { class: "column" },
      h("label", { for: "fill-before", text: "Before the gap" }), this.before,
      h("label", { for: "fill-after", text: "After the gap" }), this.after,
      h("p", { class: "row" }, this.button, this.cancel, this.note), this.whole, this.answer.element);
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.run();
    });
    element.append(form);
    store.subscribe(["model"], () => this.show());
    this.show();
  }

  show() {
    const { model } = this.store.get();
    const fills = model && (model.foundling.fills_middle || model.foundling.kind === "upstream");
    this.button.disabled = !fills;
    this.note.textContent = !model || fills ? "" : `${model.id} was not taught to fill in the middle: its tokenizer has no tokens for it. Choose another model.`;
  }

  async run() {
    const { model } = this.store.get();
    if (this.controller || !model) return;
    this.controller = new AbortController();
    this.button.hidden = true;
    this.cancel.hidden = false;
    const before = this.before.value, after = this.after.value;
    await this.answer.run(model, { prompt: before, suffix: after }, { ...this.options(), schema: null }, this.controller.signal);
    this.whole.hidden = false;
    this.whole.replaceChildren(before, h("mark", { text: this.answer.text }), after);
    this.controller = null;
    this.button.hidden = false;
    this.cancel.hidden = true;
  }
}
