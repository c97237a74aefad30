// The weights of a head, and how strongly the token under the pointer attends to each token.
"use strict";
const text = document.getElementById("text"), caption = document.getElementById("caption");
const layer = document.getElementById("layer"), head = document.getElementById("head");
const spans = [...text.querySelectorAll("span")], maps = new Map();
for (const map of document.querySelectorAll("#maps data"))
  maps.set(map.dataset.layer + "." + map.dataset.head, map);
let weights = null, chosen = spans.length - 1;

function list_heads() {
  const before = head.value;
  head.replaceChildren();
  for (const map of document.querySelectorAll("#maps data"))
    if (map.dataset.layer === layer.value) head.add(new Option(map.dataset.head, map.dataset.head));
  if ([...head.options].some((option) => option.value === before)) head.value = before;
  read();
}

function read() {
  const map = maps.get(layer.value + "." + head.value);
  weights = Uint8Array.from(atob(map.value), (c) => c.charCodeAt(0));
  show(chosen);
}

function show(query) {
  chosen = query;
  const n = weights.length / spans.length;
  spans.forEach((span, key) => {
    const weight = weights[query * n + key] / 255;
    span.style.setProperty("--weight", weight.toFixed(3));
    span.classList.toggle("query", key === query);
    span.title = weight.toFixed(2);
  });
  caption.textContent = "token " + query + " of " + (spans.length - 1);
}

spans.forEach((span, at) => {
  span.tabIndex = 0;
  span.addEventListener("mouseenter", () => show(at));
  span.addEventListener("focus", () => show(at));
});
layer.addEventListener("change", list_heads);
head.addEventListener("change", read);
layer.value = text.dataset.layer;
list_heads();
head.value = text.dataset.head;
read();
