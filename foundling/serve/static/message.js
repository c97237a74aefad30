// SPDX-License-Identifier: Apache-2.0
// One message on the page. While an answer arrives, only its own nodes change.
import { MarkdownView } from "./markdown.js";
import { TokenRow } from "./tokens.js";
import { copyText, count, h, plural } from "./dom.js";
import { explain } from "./notice.js";

export class MessageView {
  /** `actions`: turn(node, step), edit(node, text), regenerate(node), resume(node), choose(node, at), isBusy(). */
  constructor(node, actions) {
    this.node = node;
    this.actions = actions;
    this.isAnswer = node.role === "assistant";
    this.body = h("div", { class: "text" });
    this.tokens = this.more = null;
    this.head = h("div", { class: "head" });
    this.foot = h("div", { class: "foot" });
    this.who = h("span", { class: "who", text: this.isAnswer ? node.model ?? "Answer" : "You" });
    this.versions = h("span", { class: "versions" });
    this.buttons = h("span", { class: "buttons" });
    this.head.append(this.who, this.versions, this.buttons);
    this.element = h("article", { class: `message ${node.role}`, "data-id": node.id }, this.head, this.body, this.foot);
    this.markdown = this.isAnswer ? new MarkdownView(this.body) : null;
    this.append(node.text);
    this.listActions();
  }

  /** Shows more text, and the tokens that the node has got. */
  append(text) {
    if (text) {
      if (this.markdown) this.markdown.append(text);
      else this.body.append(text);
    }
    this.tokens?.append(this.node.tokens.slice(this.tokens.n));
  }

  rewrite() {
    this.markdown.clear();
    this.append(this.node.text);
  }

  focus() {
    this.buttons.querySelector("button")?.focus();
  }

  /** On the button that was pressed, or on the other one at the last version. */
  focusVersion(step) {
    const [before, next] = this.versions.querySelectorAll("button");
    if (!before) return;
    const [same, other] = step < 0 ? [before, next] : [next, before];
    (same.disabled ? other : same).focus();
  }

  listActions() {
    const { node, actions } = this;
    const button = (text, onclick, more = {}) => h("button", { type: "button", text, onclick, ...more });
    const copy = button("Copy", async () => {
      copy.textContent = await copyText(node.text) ? "Copied" : "Not copied";
      setTimeout(() => { copy.textContent = "Copy"; }, 1500);
    });
    this.toggle = this.isAnswer && node.tokens?.length
      ? button("Tokens", () => this.showTokens(this.toggle.getAttribute("aria-pressed") !== "true"), { "aria-pressed": String(this.body.hidden) })
      : null;
    const parts = [this.toggle, copy, button("Edit", () => this.edit()),
      this.isAnswer && button("Regenerate", () => actions.regenerate(node), { "data-idle": true })];
    this.buttons.replaceChildren(...parts.filter(Boolean));
  }

  /** The row is built when it is first shown: an answer may have thousands of tokens, and each is a button. */
  showTokens(shown) {
    if (shown && !this.tokens) {
      this.tokens = new TokenRow("Tokens of the answer", (at) => this.actions.choose(this.node, at));
      this.body.after(this.tokens.element);
      this.append("");
    }
    if (this.tokens) this.tokens.element.hidden = !shown;
    this.body.hidden = shown;
    this.toggle?.setAttribute("aria-pressed", String(shown));
  }

  showVersion({ at, total }) {
    this.versions.hidden = total < 2;
    if (total < 2) return;
    const step = (text, by, name) => h("button", { type: "button", text, "aria-label": name, disabled: at + by < 0 || at + by >= total, "data-idle": at + by >= 0 && at + by < total,
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
      node.usage?.prompt_tokens && `${count(node.usage.prompt_tokens)} prompt tokens`,
      node.usage?.cost !== undefined && `$${cost(node.usage.cost)}`,
      node.finish === "stopped" && "stopped",
    ].filter(Boolean);
    this.foot.replaceChildren();
    if (facts.length) this.foot.append(h("span", { class: "facts", text: facts.join(" · ") }));
    if (node.verdict) this.foot.append(h("span", { class: { true: "better", false: "worse" }[node.verdict.valid] ?? null, text: {
      true: "✓ follows the schema", false: `✗ does not follow the schema: ${node.verdict.reason}`,
    }[node.verdict.valid] ?? `not checked against the schema: ${node.verdict.reason}` }));
    if (node.free) this.foot.append(h("span", { text: "A continuation is free: the schema did not constrain it." }));
    this.more = null;
    if (["length", "stopped", "cut"].includes(node.finish) && node.tokens?.length) {
      const why = { length: "It reached max tokens.", cut: "", stopped: "" }[node.finish];
      const button = h("button", { type: "button", text: "Continue", "data-idle": true, onclick: () => this.actions.resume(node) });
      this.foot.append(this.more = h("span", {}, why, " ", button));
      this.showMore();
    }
    if (error && error.kind !== "stopped") this.foot.append(h("div", { class: "notice", role: "alert" }, explain(error, again)));
  }

  /** An answer grows only while nothing answers it. */
  showMore() {
    const hidden = this.node.children.length > 0;
    if (this.more && this.more.hidden !== hidden) this.more.hidden = hidden;
  }

  edit() {
    if (this.form) {
      this.form.querySelector("textarea").focus();
      return;
    }
    const area = h("textarea", { rows: Math.min(12, this.node.text.split("\n").length + 1), value: this.node.text, "aria-label": "Edit the message" });
    const close = () => {
      this.form.remove();
      this.form = null;
      this.body.hidden = false;
      this.focus();
    };
    const save = h("button", { class: "primary", "data-idle": true, disabled: this.actions.isBusy(), text: this.isAnswer ? "Save as a version" : "Send as a version" });
    const form = this.form = h("form", { class: "edit" }, area, h("p", { class: "row" }, save, h("button", { type: "button", text: "Cancel", onclick: close })));
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      if (!area.value.trim() || this.actions.edit(this.node, area.value)) close();
    });
    form.addEventListener("keydown", (event) => {
      if (event.key !== "Escape" || event.isComposing) return;
      event.preventDefault();
      close();
    });
    this.showTokens(false);
    this.body.hidden = true;
    this.body.after(form);
    area.focus();
  }
}

export function cost(dollars) {
  return dollars === 0 ? "0" : dollars < 0.01 ? dollars.toPrecision(2) : dollars.toFixed(2);
}
