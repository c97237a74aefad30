// SPDX-License-Identifier: Apache-2.0
// One prompt, two models or two samplings.
import { AnswerView } from "./answer.js";
import { answersChats } from "./chat.js";
import { samplingControls } from "./controls.js";
import { h } from "./dom.js";
import { DEFAULTS } from "./sampling.js";

const PLACES = ["left", "right"];

export class CompareView {
  constructor(store, element) {
    Object.assign(this, { store, element, controller: null });
    this.prompt = h("textarea", { id: "compare-prompt", rows: 3, placeholder: "Write to both" });
    this.button = h("button", { class: "primary", text: "Ask both" });
    this.cancel = h("button", { type: "button", text: "Stop", hidden: true, onclick: () => this.controller?.abort() });
    this.length = h("input", { id: "compare-length", type: "number", min: 1, max: 65536, value: 128 });
    this.verdict = h("p", { role: "status" });
    this.sides = PLACES.map((place, at) => side(place, at ? { ...DEFAULTS, temperature: 0 } : DEFAULTS));
    this.form = h("form", { class: "column" },
      h("label", { for: "compare-prompt", text: "Message" }), this.prompt,
      h("p", { class: "row" }, this.button, this.cancel, h("label", { for: "compare-length", text: "Max tokens" }), this.length));
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.run();
    });
    this.prompt.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
        event.preventDefault();
        this.run();
      }
    });
    element.append(this.form, this.verdict, h("div", { class: "sides" }, this.sides.map((one) => one.element)));
    store.subscribe(["models"], () => this.listModels());
    this.listModels();
  }

  show() {
    this.listModels();
  }

  listModels() {
    const { models } = this.store.get();
    for (const [at, one] of this.sides.entries()) {
      const before = one.model.value;
      one.model.replaceChildren(...models.map(({ id }) => h("option", { text: id, value: id })));
      one.model.value = models.some(({ id }) => id === before) ? before : models[Math.min(at, models.length - 1)]?.id ?? "";
    }
  }

  async run() {
    const text = this.prompt.value;
    if (!text.trim() || this.controller) return;
    const { signal } = (this.controller = new AbortController());
    const { models } = this.store.get();
    const pressed = document.activeElement === this.button;
    this.button.hidden = true;
    this.cancel.hidden = false;
    if (pressed) this.cancel.focus();
    this.verdict.textContent = "";
    const answers = Promise.all(this.sides.map(async (one) => {
      const model = models.find(({ id }) => id === one.model.value);
      if (!model) throw new Error(`No model is chosen on the ${one.place} side.`);
      const source = answersChats(model) ? { messages: [{ role: "user", content: text }] } : { prompt: text };
      const seed = one.seed.value === "" ? null : Number(one.seed.value);
      return one.answer.run(model, source, { sampling: one.sampling, maxTokens: Number(this.length.value) || 128, seed, schema: null }, signal);
    }));
    try {
      this.compare(...await answers);
    } catch (error) {
      this.verdict.textContent = error.message;
    } finally {
      this.controller = null;
      const back = document.activeElement === this.cancel;
      this.button.hidden = false;
      this.cancel.hidden = true;
      if (back) this.button.focus();
    }
  }

  /** Marks where the answers part, if both models have the same tokens. */
  compare(left, right) {
    if (!left.length || !right.length) return;
    let same = 0;
    while (same < Math.min(left.length, right.length) && left[same].text === right[same].text) same += 1;
    if (same === left.length && same === right.length) {
      this.verdict.textContent = "Both answers are the same, token for token.";
      return;
    }
    for (const one of this.sides) one.answer.row.mark(same, "parts");
    this.verdict.textContent = same ? `The answers are the same for ${same} token${same === 1 ? "" : "s"}, and part at the one that is outlined.`
      : "The answers differ from the first token on.";
  }
}

function side(place, sampling) {
  const model = h("select", { id: `${place}-model` });
  const seed = h("input", { id: `${place}-seed`, type: "number", min: 0, placeholder: "any" });
  const answer = new AnswerView(`the ${place} answer`);
  const one = { place, model, seed, answer, sampling };
  const controls = samplingControls(sampling, (next) => { one.sampling = next; }, { prefix: `${place} ` });
  one.element = h("section", { class: "side", "aria-label": `The ${place} side` },
    h("p", { class: "row" }, h("label", { for: model.id, text: "Model" }), model, h("label", { for: seed.id, text: "Seed" }), seed),
    controls.element, answer.element);
  return one;
}
