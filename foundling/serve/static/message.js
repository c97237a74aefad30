// SPDX-License-Identifier: Apache-2.0
// One message on the page. While an answer arrives, only its own nodes change.
import { MarkdownView } from "./markdown.js";
import { TokenRow } from "./tokens.js";
import { copyText, count, h, plural } from "./dom.js";
import { explain } from "./notice.js";

export class MessageView {
  /** `actions`: turn(node, step), edit(node, text), regenerate(node), resume(node), choose(node, at). */
  constructor(node, actions) {
    this.node = node;
    this.actions = actions;
    this.isAnswer = node.role === "assistant";
    this.body = h("div", { class: "text" });
    this.tokens = this.isAnswer ? new TokenRow("Tokens of the answer", (at) => actions.choose(this.node, at)) : null;
    this.tokens?.element.toggleAttribute("hidden", true);
    this.head = h("div", { class: "head" });
    this.foot = h("div", { class: "foot" });
    this.who = h("span", { class: "who", text: this.isAnswer ? node.model ?? "Answer" : "You" });
    this.versions = h("span", { class: "versions" });
    this.buttons = h("span", { class: "buttons" });
    this.head.append(this.who, this.versions, this.buttons);
    this.element = h("article", { class: `message ${node.role}`, "data-id": node.id }, this.head, this.body, this.tokens?.element, this.foot);
    this.markdown = this.isAnswer ? new MarkdownView(this.body) : null;
    this.append(node.text, node.tokens ?? []);
    this.listActions();
  }

  append(text, tokens) {
    if (text) {
      if (this.markdown) this.markdown.append(text);
      else this.body.append(text);
    }
    if (tokens.length) this.tokens?.append(tokens);
  }

  listActions() {
    const { node, actions } = this;
    const button = (text, onclick, more = {}) => h("button", { type: "button", text, onclick, ...more });
    const copy = button("Copy", async () => {
      await copyText(node.text);
      copy.textContent = "Copied";
      setTimeout(() => { copy.textContent = "Copy"; }, 1500);
    });
    this.toggle = this.isAnswer && node.tokens?.length
      ? button("Tokens", () => this.showTokens(this.tokens.element.hidden), { "aria-pressed": String(!this.tokens.element.hidden) })
      : null;
    const parts = [this.toggle, copy, button("Edit", () => this.edit()),
      this.isAnswer && button("Regenerate", () => actions.regenerate(node))];
    this.buttons.replaceChildren(...parts.filter(Boolean));
  }

  showTokens(shown) {
    this.tokens.element.hidden = !shown;
    this.body.hidden = shown;
    this.toggle?.setAttribute("aria-pressed", String(shown));
  }

  showVersion({ at, total }) {
    this.versions.hidden = total < 2;
    if (total < 2) return;
    const step = (text, by, name) => h("button", { type: "button", text, "aria-label": name, disabled: at + by < 0 || at + by >= total,
      onclick: () => this.actions.turn(this.node, by) });
    this.versions.replaceChildren(step("‹", -1, "Version before"), h("span", { text: `${at + 1}/${total}` }), step("›", 1, "Next version"));
  }

  busy(is) {
    this.element.setAttribute("aria-busy", String(is));
    this.buttons.hidden = is;
    if (!is) this.listActions();
  }

  /** Below an answer: its size, speed and cost, whether it follows the schema, and what went wrong. */
  summarize(error = null, again = null) {
    const { node } = this;
    const facts = [
      node.tokens?.length ? plural(node.tokens.length, "token") : node.usage && plural(node.usage.completion_tokens, "token"),
      node.timing?.rate && `${node.timing.rate.toFixed(node.timing.rate < 10 ? 1 : 0)} tokens/s`,
      node.timing?.first !== undefined && `${node.timing.first.toFixed(2)} s to the first`,
      node.usage?.prompt_tokens && `${count(node.usage.prompt_tokens)} read`,
      node.usage?.cost !== undefined && `$${cost(node.usage.cost)}`,
      node.finish === "stopped" && "stopped",
    ].filter(Boolean);
    this.foot.replaceChildren();
    if (facts.length) this.foot.append(h("span", { class: "facts", text: facts.join(" · ") }));
    if (node.verdict) this.foot.append(h("span", { class: node.verdict.valid ? "better" : "worse",
      text: node.verdict.valid ? "✓ follows the schema" : `✗ does not follow the schema: ${node.verdict.reason}` }));
    if (["length", "stopped", "cut"].includes(node.finish) && node.tokens?.length) {
      const why = { length: "It reached the longest answer.", cut: "", stopped: "" }[node.finish];
      this.foot.append(h("span", {}, why, " ", h("button", { type: "button", text: "Continue", onclick: () => this.actions.resume(node) })));
    }
    if (error && error.kind !== "stopped") this.foot.append(h("div", { class: "notice", role: "alert" }, explain(error, again)));
  }

  edit() {
    const area = h("textarea", { rows: Math.min(12, this.node.text.split("\n").length + 1), value: this.node.text, "aria-label": "Edit the message" });
    const close = () => {
      form.remove();
      this.body.hidden = false;
      this.element.querySelector("button")?.focus();
    };
    const save = h("button", { class: "primary", text: this.isAnswer ? "Save as a version" : "Send as a version" });
    const form = h("form", { class: "edit" }, area, h("p", { class: "row" }, save, h("button", { type: "button", text: "Cancel", onclick: close })));
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      close();
      if (area.value.trim()) this.actions.edit(this.node, area.value);
    });
    form.addEventListener("keydown", (event) => {
      if (event.key === "Escape") close();
    });
    if (this.tokens) this.showTokens(false);
    this.body.hidden = true;
    this.body.after(form);
    area.focus();
  }
}

export function cost(dollars) {
  return dollars === 0 ? "0" : dollars < 0.01 ? dollars.toPrecision(2) : dollars.toFixed(2);
}
