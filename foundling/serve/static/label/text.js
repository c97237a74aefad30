// SPDX-License-Identifier: Apache-2.0
// What others wrote, as text nodes: nothing is parsed as HTML and no sign of Markdown is taken away, since a labeller
// judges what is there. Only code between fences stands apart.
import { h } from "./dom.js";

const FENCE = /^(`{3,}|~{3,})[^\n]*\n([\s\S]*?)(?:^\1[ \t]*$\n?|(?![\s\S]))/gm;

export function textBlock(text) {
  const box = h("div", { class: "text" });
  let from = 0;
  for (const match of text.matchAll(FENCE)) {
    paragraph(box, text.slice(from, match.index));
    box.append(h("pre", { tabindex: "0", "aria-label": "Code" }, h("code", { text: match[2].replace(/\n$/, "") })));
    from = match.index + match[0].length;
  }
  paragraph(box, text.slice(from));
  return box;
}

function paragraph(box, text) {
  const shown = text.replace(/^\n+|\n+$/g, "");
  if (shown) box.append(h("p", { text: shown, dir: "auto" }));
}
