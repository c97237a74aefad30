// SPDX-License-Identifier: Apache-2.0
// Building nodes. Text is only ever a text node: nothing here or elsewhere parses HTML.

/** An element: properties (`class`, `on…` handlers, `text`, or any attribute; false and null leave it out), children. */
export function h(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === false || value === null || value === undefined) continue;
    if (name === "text") element.textContent = value;
    else if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "value") element.value = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

export const $ = (id) => document.getElementById(id);

/** A token as it is shown: signs for line breaks and tabs, and for spaces at its ends. */
export function showToken(text) {
  if (text === "") return "∅";
  const marked = text.replace(/\n/g, "↵").replace(/\r/g, "␍").replace(/\t/g, "⇥");
  const visible = marked.replace(/^ +| +$/g, (spaces) => "·".repeat(spaces.length));
  // marks that reorder or hide text are written out, as the report does
  return visible.replace(/[\u0000-\u001f\u007f-\u009f\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff]/g,
    (sign) => "\\u" + sign.codePointAt(0).toString(16).padStart(4, "0"));
}

export function percent(p) {
  if (p >= 0.9995) return "100 %";
  if (p >= 0.0995) return (100 * p).toFixed(0) + " %";
  if (p >= 0.001) return (100 * p).toFixed(1) + " %";
  return p > 0 ? "< 0.1 %" : "0 %";
}

export const count = (n) => n.toLocaleString("en");

export const plural = (n, noun) => `${count(n)} ${noun}${n === 1 ? "" : "s"}`;

/** Calls `action` once things have been quiet for `ms`. */
export function debounce(action, ms) {
  let timer = 0;
  return (...values) => {
    clearTimeout(timer);
    timer = setTimeout(() => action(...values), ms);
  };
}

/** One tab stop for a row of elements: arrows, Home and End move inside. `selector` names the elements. */
export function roving(container, selector, onfocus = () => {}) {
  container.addEventListener("keydown", (event) => {
    const all = [...container.querySelectorAll(selector)];
    const at = all.indexOf(document.activeElement);
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    let to = step === undefined ? { Home: 0, End: all.length - 1 }[event.key] : at + step;
    if (at < 0 || to === undefined) return;
    to = Math.max(0, Math.min(all.length - 1, to));
    event.preventDefault();
    move(container, selector, all[to]);
    all[to].focus();
    onfocus(all[to]);
  });
}

/** The tab stop of a row is now this element. */
export function move(container, selector, element) {
  for (const other of container.querySelectorAll(`${selector}[tabindex="0"]`)) other.tabIndex = -1;
  element.tabIndex = 0;
}

/** Whether it was copied. */
export async function copyText(text) {
  if (navigator.clipboard && window.isSecureContext) return navigator.clipboard.writeText(text).then(() => true, () => false);
  const focused = document.activeElement;
  const area = h("textarea", { class: "unseen", value: text, "aria-hidden": "true" });
  document.body.append(area);
  area.select();
  const copied = document.execCommand("copy"); // over plain HTTP on another host there is no clipboard API
  area.remove();
  focused?.focus();
  return copied;
}

export function download(name, text) {
  const address = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  const link = h("a", { href: address, download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(address), 1000);
}
