// SPDX-License-Identifier: Apache-2.0
// Light Markdown, as nodes: fences, headings, lists, bold, italics, code. Links and images stay text: an answer loads
// nothing. Text that arrives in parts only changes the last block.
import { h } from "./dom.js";

const INLINE = /`([^`\n]+)`|\*\*([^*\n]+)\*\*|\*([^*\s][^*\n]*)\*/g;
const ITEM = /^\s*(?:[-*+]|(\d+)[.)])\s+/;

export class MarkdownView {
  constructor(container) {
    this.container = container;
    this.clear();
  }

  clear() {
    this.container.replaceChildren();
    this.open = ""; // source of the block that may still grow
    this.block = null;
  }

  append(text) {
    this.open += text;
    let end;
    while ((end = blockEnd(this.open)) > 0) {
      this.show(this.open.slice(0, end));
      this.block = null;
      this.open = this.open.slice(end);
    }
    this.show(this.open);
  }

  show(source) {
    const node = render(source);
    if (!node) return;
    if (this.block) this.block.replaceWith(node);
    else this.container.append(node);
    this.block = node;
  }
}

/** Where the first block of a text ends: after a closed fence, or an empty line outside of one; 0 where it may grow. */
function blockEnd(text) {
  const fence = /^\s*(```+|~~~+)/.exec(text);
  if (fence) {
    const close = new RegExp(`\\n${fence[1]}[ \\t]*\\n`).exec(text.slice(fence[0].length));
    return close ? fence[0].length + close.index + close[0].length : 0;
  }
  const ends = [/\n[ \t]*\n/.exec(text), /\n(?=```|~~~)/.exec(text)].filter(Boolean);
  return ends.length ? Math.min(...ends.map((match) => match.index + match[0].length)) : 0;
}

function render(source) {
  const fence = /^\s*(?:```+|~~~+)[ \t]*(\S*)[^\n]*\n?/.exec(source);
  if (fence) {
    const body = source.slice(fence[0].length).replace(/\n?(```+|~~~+)\s*$/, "");
    return h("pre", {}, h("code", { text: body, "data-language": fence[1] || null }));
  }
  const text = source.replace(/^\n+|\s+$/g, "");
  if (!text.trim()) return null;
  const heading = /^(#{1,6})\s+(.*)$/.exec(text);
  if (heading && !text.includes("\n")) return h("p", { class: "heading" }, inline(heading[2]));
  const lines = text.split("\n");
  return ITEM.test(lines[0]) ? list(lines) : h("p", {}, inline(text));
}

function list(lines) {
  const number = ITEM.exec(lines[0])[1];
  const items = [];
  for (const line of lines) {
    if (ITEM.test(line)) items.push(line.replace(ITEM, ""));
    else items[items.length - 1] += "\n" + line.trim();
  }
  const start = number && number !== "1" ? number : null;
  return h(number ? "ol" : "ul", { start }, items.map((item) => h("li", {}, inline(item))));
}

function inline(text) {
  const nodes = [];
  let from = 0;
  for (const match of text.matchAll(INLINE)) {
    if (match.index > from) nodes.push(text.slice(from, match.index));
    const [whole, code, bold, italic] = match;
    if (code !== undefined) nodes.push(h("code", { text: code }));
    else nodes.push(h(bold !== undefined ? "strong" : "em", { text: bold ?? italic }));
    from = match.index + whole.length;
  }
  if (from < text.length) nodes.push(text.slice(from));
  return nodes;
}
