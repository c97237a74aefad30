// Shows the items that match a task, an outcome and a text. Keys: / to search, j and k to go on and back.
"use strict";
const items = [...document.querySelectorAll("details.item")];
const search = document.getElementById("search"), task = document.getElementById("task");
const shown = document.getElementById("shown"), sections = [...document.querySelectorAll("section.items")];
const texts = new Map();

function text_of(item) {
  if (!texts.has(item)) texts.set(item, item.textContent.toLowerCase());
  return texts.get(item);
}

function filter() {
  const outcome = document.querySelector("input[name=outcome]:checked").value, words = search.value.toLowerCase();
  let n = 0;
  for (const section of sections) section.hidden = task.value !== "" && section.id !== task.value;
  for (const item of items) {
    const match = (outcome === "all" || item.dataset.outcome === outcome) && (!words || text_of(item).includes(words));
    item.hidden = !match;
    if (match && !item.parentElement.hidden) n += 1;
  }
  shown.textContent = n + " of " + items.length + " shown";
}

function move(step) {
  const summaries = items.filter((i) => !i.hidden && !i.parentElement.hidden).map((i) => i.firstElementChild);
  const at = summaries.indexOf(document.activeElement.closest("summary"));
  const next = summaries[at < 0 ? (step > 0 ? 0 : summaries.length - 1) : at + step];
  if (next) next.focus();
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches?.("input[type=search], select")) return;
  if (event.key === "/") { event.preventDefault(); search.focus(); }
  if (event.key === "j") move(1);
  if (event.key === "k") move(-1);
});
for (const input of document.querySelectorAll("input[name=outcome]")) input.addEventListener("change", filter);
search.addEventListener("input", filter);
task.addEventListener("change", filter);
for (const link of document.querySelectorAll("a.task"))
  link.addEventListener("click", () => { task.value = link.hash.slice(1); filter(); });
document.querySelector(".tools").hidden = false;
filter();
