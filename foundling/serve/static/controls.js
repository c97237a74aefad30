// SPDX-License-Identifier: Apache-2.0
// Sliders of temperature, top-k, top-p and min-p, each with a number for exact values.
import { CONTROLS, DEFAULTS } from "./sampling.js";
import { h } from "./dom.js";

/** `onchange` gets all four values at each movement. Returns {element, set}. */
export function samplingControls(values, onchange, { prefix = "" } = {}) {
  let current = { ...DEFAULTS, ...values };
  const rows = CONTROLS.map((control) => row(control, prefix, (value) => {
    current = { ...current, [control.name]: value };
    onchange(current);
  }));
  const reset = h("button", { type: "button", text: "Reset", onclick: () => {
    set(DEFAULTS);
    onchange(current);
  } });
  const set = (next) => {
    current = { ...DEFAULTS, ...next };
    for (const one of rows) one.set(current[one.name]);
  };
  set(current);
  return { element: h("div", { class: "controls" }, rows.map((one) => one.element), h("p", { class: "row end" }, reset)), set };
}

function row({ name, label, low, high, step, off }, prefix, onvalue) {
  const id = `${prefix.trim()}${prefix ? "-" : ""}${name}`;
  const slider = h("input", { type: "range", id, min: low, max: high, step });
  const number = h("input", { type: "number", min: low, max: name === "top_k" ? null : high, step: name === "top_k" ? 1 : "any",
    "aria-label": `${prefix}${label}, exact` });
  const say = (value) => slider.setAttribute("aria-valuetext", value === off ? `${value}, off` : String(value));
  slider.addEventListener("input", () => {
    number.value = slider.value;
    say(Number(slider.value));
    onvalue(Number(slider.value));
  });
  number.addEventListener("input", () => {
    if (number.value === "" || !number.checkValidity()) return;
    slider.value = number.value;
    say(Number(number.value));
    onvalue(Number(number.value));
  });
  return {
    name,
    element: h("div", { class: "control" }, h("label", { for: id, text: label }), slider, number),
    set(value) {
      slider.value = number.value = value;
      say(value);
    },
  };
}
