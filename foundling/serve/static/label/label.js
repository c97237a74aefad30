// SPDX-License-Identifier: Apache-2.0
// The page: one item at a time, a key for each thing that can be done with it, and what has been saved.
import { $, h } from "./dom.js";
import { Order } from "./order.js";
import { Refused, newId, request } from "./remote.js";
import { textBlock } from "./text.js";

const QUIET_MS = 300; // in which a new item takes no judgement: a second press was meant for the item before
const RETRY_MS = 2000;
const state = { view: null, order: null, busy: false, armed: false, began: 0, seen: 0, pending: null };

// --- showing -----------------------------------------------------------------------------------------------------------

function show(view, message = "") {
  Object.assign(state, { view, order: null, armed: false, began: performance.now(), seen: 0 });
  const { task, progress } = view, done = view.item === null;
  $("labeller").textContent = `labeller ${view.labeller}`;
  $("bar").max = progress.n;
  $("bar").value = progress.n - progress.left;
  $("progress").textContent = progressText(view);
  $("asked").parentElement.hidden = done;
  $("ranking").hidden = done || task !== "rank";
  $("writing").hidden = done || task !== "write";
  $("done").hidden = !done;
  if (!done) {
    $("asked").replaceChildren(...view.messages.map(turn));
    if (task === "rank") showAnswers();
    else showDraft();
  } else showAgreement();
  showButtons();
  say([message, done ? "Everything is labelled." : before(view)].filter(Boolean).join(" "));
  document.title = done ? "Done · Foundling labels" : `${view.at + 1} of ${progress.n} · Foundling labels`;
  window.scrollTo(0, 0);
  if (!done && task === "write" && matchMedia("(pointer: fine)").matches) $("text").focus();
  else $("item").focus({ preventScroll: true });
  document.body.removeAttribute("data-armed");
  setTimeout(() => {
    if (state.view !== view) return;
    state.armed = true;
    document.body.setAttribute("data-armed", "");
  }, QUIET_MS);
}

function progressText({ at, progress }) {
  const { n, left, pace, skipped, flagged } = progress;
  const parts = [at === null ? `${n - left} of ${n} labelled` : `item ${at + 1} of ${n}, ${n - left} labelled`];
  if (skipped) parts.push(`${skipped} skipped`);
  if (flagged) parts.push(`${flagged} flagged`);
  if (pace && left) parts.push(`${Math.max(1, Math.round(pace))} s each, about ${Math.max(1, Math.round((pace * left) / 60))} min left`);
  return parts.join(" · ");
}

function turn({ role, content }) {
  return h("div", { class: "turn" }, h("p", { class: "who", text: role }), textBlock(content));
}

/** What was said of this item before, in words. */
function before({ judgement }) {
  if (!judgement || judgement.state === "open") return "";
  if (judgement.state !== "judged") return `You ${judgement.state} this item before; a judgement replaces that.`;
  if (judgement.text !== null) return "You wrote this answer before; saving replaces it.";
  return `You judged this item before: ${new Order(0, judgement.ranking)}. A new judgement replaces that.`;
}

function showAnswers() {
  const { answers, judgement } = state.view;
  state.order = new Order(answers.length, judgement?.ranking ?? []);
  $("answers").replaceChildren(...answers.map((text, at) => h("article", { class: "answer", id: `answer-${at + 1}`, "aria-label": `Answer ${at + 1}` },
    h("div", { class: "head" }, h("h3", { text: `Answer ${at + 1}` }), h("span", { class: "rank quiet" })),
    textBlock(text))));
  showRanks();
}

function showRanks() {
  const many = state.view.answers.length > 2;
  state.view.answers.forEach((_, at) => {
    const box = $(`answer-${at + 1}`), rank = state.order.rank(at);
    if (rank) box.setAttribute("data-rank", rank);
    else box.removeAttribute("data-rank");
    const choice = rank === 1 ? (state.order.groups[0].length > 1 ? "equal" : "your choice") : "";
    box.querySelector(".rank").textContent = rank && many ? `place ${rank}` : choice;
  });
}

const draftKey = () => `foundling-label ${state.view.labeller} ${state.view.item}`;

function showDraft() {
  $("text").value = localStorage.getItem(draftKey()) ?? state.view.judgement?.text ?? "";
}

async function showAgreement() {
  let record = null;
  try {
    record = await request("agreement");
  } catch {
    // shown where it is there
  }
  $("agreement").replaceChildren(...(record?.sentences ?? []).map((text) => h("p", { text })));
}

const say = (text) => ($("status").textContent = text);

function notify(text, ...buttons) {
  $("notice").hidden = !text;
  $("notice").replaceChildren(h("p", { class: "line" }, h("span", { text }), ...buttons));
}

// --- saving ------------------------------------------------------------------------------------------------------------

/** Sends it until the server has answered; nothing else can be done meanwhile. */
async function send(path, body) {
  state.busy = true;
  document.body.setAttribute("aria-busy", "true");
  try {
    while (true) {
      const answer = await request(path, body);
      if (answer) {
        notify("");
        return answer;
      }
      state.pending ??= body ?? {};
      say("");
      await new Promise((resolve) => {
        const again = h("button", { type: "button", text: "Try again now", onclick: resolve });
        notify(body ? "Not saved yet: the server cannot be reached. Leave this page open; it tries again." : "The server cannot be reached; trying again.", again);
        setTimeout(resolve, RETRY_MS);
      });
    }
  } finally {
    Object.assign(state, { busy: false, pending: null });
    document.body.removeAttribute("aria-busy");
  }
}

/** `send`, with what the server refuses as a notice. */
async function attempt(path, body) {
  try {
    return await send(path, body);
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    if (error.code === "stale") {
      show(await send(`item?at=${state.view.at}`), "This item was judged in another window; nothing was changed.");
    } else notify(`Not saved: ${error.message}.`);
    return null;
  }
}

async function judge(what, words) {
  const { view } = state;
  if (view.item === null || !state.armed) return;
  const body = { item: view.item, id: newId(), seen: view.judgement?.id ?? null, seconds: seconds(), ...what };
  const key = draftKey(), answer = await attempt("judge", body);
  if (!answer) return;
  if (what.state === "judged") localStorage.removeItem(key);
  show(answer.next, `Saved: ${words}.`);
}

async function undo() {
  const answer = await attempt("undo", { id: newId() });
  if (!answer) return;
  if (answer.undone) show(answer.item, "Undone.");
  else say("There is nothing to undo.");
}

async function go(step) {
  const { at, progress } = state.view, to = (at ?? progress.n) + step;
  if (to < 0) return say("This is the first item.");
  if (to >= progress.n) return say(at === null ? "This is the end." : "This is the last item.");
  const view = await attempt(`item?at=${to}`);
  if (view) show(view);
}

async function goOn() {
  const view = await attempt(`item?after=${state.view?.at ?? 0}`);
  if (view) show(view);
}

/** For which the item was on the screen. */
function seconds() {
  const now = document.hidden ? 0 : performance.now() - state.began;
  return Math.min(86400, Math.round((state.seen + now) / 10) / 100);
}

document.addEventListener("visibilitychange", () => {
  if (document.hidden) state.seen += performance.now() - state.began;
  state.began = performance.now();
});

// --- acting ------------------------------------------------------------------------------------------------------------

function choose(answer) {
  const n = state.view.answers.length;
  if (!state.armed || answer >= n) return;
  if (n === 2) return judge({ state: "judged", ranking: [[answer], [1 - answer]] }, `answer ${answer + 1} is better`);
  const whole = state.order.complete;
  if (whole && state.order.rank(answer) && state.view.judgement?.ranking) state.order = new Order(n); // a new order begins
  state.order.toggle(answer);
  const rest = [...Array(n).keys()].filter((one) => !state.order.rank(one));
  if (rest.length === 1 && !state.order.tie && state.order.rank(answer)) state.order.toggle(rest[0]);
  tellOrder();
}

function equal() {
  if (!state.armed) return;
  if (state.view.answers.length === 2) return judge({ state: "judged", ranking: [[0, 1]] }, "both are equal");
  if (state.order.complete && state.order.groups.at(-1).length === 1) { // the last one, which followed of itself
    const last = state.order.groups.pop()[0];
    state.order.groups.at(-1).push(last);
  } else state.order.joinNext();
  tellOrder();
}

function tellOrder() {
  showRanks();
  say(`${state.order || "No answer has a place yet."}${state.order.complete ? " · Enter saves this order, Backspace takes the last one back." : ""}`);
}

function save() {
  const { view } = state;
  if (view.task === "write") {
    const text = $("text").value;
    if (text.trim()) judge({ state: "judged", text }, "your answer");
    else say("The answer is empty; write one, or skip the item.");
  } else if (view.answers.length > 2) {
    if (state.order.complete) judge({ state: "judged", ranking: state.order.groups }, String(state.order));
    else say("Every answer needs a place; the best one comes first.");
  }
}

function takeBack() {
  if (state.view.answers.length === 2) return;
  state.order.back();
  tellOrder();
}

const ranks = () => state.view.item !== null && state.view.task === "rank";
const several = () => ranks() && state.view.answers.length > 2;
const open = () => state.view.item !== null;

/** [key, what it does, its button's name, when it is there, action] */
const ACTIONS = [
  ["Enter", "save the order, or the answer (there with Ctrl)", "Save", () => several() || (open() && state.view.task === "write"), save],
  ["=", "or 0: both are equal; of several: the next one is as good as the one before", "Equal", ranks, equal],
  ["Backspace", "take the last place back", "Take back", several, takeBack],
  ["s", "skip: you cannot decide", "Skip", open, () => judge({ state: "skipped" }, "skipped")],
  ["f", "flag: something is wrong with the item", "Flag", open, () => judge({ state: "flagged" }, "flagged")],
  ["u", "undo the last judgement, again and again", "Undo", () => true, undo],
  ["p", "previous item", "Previous", () => true, () => go(-1)],
  ["n", "next item", "Next", open, () => go(1)],
  ["g", "go on with the first item that is open", "Go on", open, goOn],
  ["?", "these keys", "Keys", () => true, () => $("help").showModal()],
];

function showButtons() {
  const { view } = state, answers = ranks() ? view.answers : [];
  const typed = (key) => (key === "Enter" && view.task === "write" ? "Ctrl+Enter" : key);
  const button = (key, name, action, main) => h("button", {
    type: "button", class: main ? "primary" : key === "?" ? "extra" : null, "aria-keyshortcuts": typed(key).replace("Ctrl", "Control"),
    onclick: () => state.busy || action(),
  }, h("span", { text: name }), h("kbd", { text: typed(key), "aria-hidden": "true" }));
  $("buttons").replaceChildren(
    ...answers.map((_, at) => button(String(at + 1), answers.length === 2 ? `${at + 1} is better` : `Answer ${at + 1}`, () => choose(at), true)),
    ...ACTIONS.filter(([, , , there]) => there()).map(([key, , name, , action]) => button(key, name, action, name === "Save")));
  $("keys").replaceChildren(
    h("tr", {}, h("td", {}, h("kbd", { text: "1" }), " … ", h("kbd", { text: "9" })), h("td", { text: "this answer is better; of several: this answer comes next, the best first" })),
    ...ACTIONS.map(([key, about]) => h("tr", {}, h("td", {}, h("kbd", { text: key })), h("td", { text: about }))));
}

document.addEventListener("keydown", (event) => {
  if (!state.view || state.busy || event.repeat || event.isComposing || event.altKey || event.metaKey || $("help").open) return;
  const typing = event.target === $("text");
  if (typing && event.key === "Escape") return $("item").focus();
  if (event.ctrlKey && event.key === "Enter" && state.view.task === "write") {
    event.preventDefault();
    return save();
  }
  if (typing || event.ctrlKey) return;
  if (event.key === "Enter" && event.target.closest("button, a, summary")) return; // it presses that
  if (/^[1-9]$/.test(event.key) && ranks()) {
    event.preventDefault();
    return choose(Number(event.key) - 1);
  }
  const pressed = event.key === "0" ? "=" : event.key.length === 1 ? event.key.toLowerCase() : event.key;
  const action = ACTIONS.find(([key, , , there]) => key === pressed && there());
  if (!action) return;
  event.preventDefault();
  action[4]();
});

$("text").addEventListener("input", () => localStorage.setItem(draftKey(), $("text").value));
window.addEventListener("beforeunload", (event) => {
  if (state.pending) event.preventDefault(); // a judgement that is not on the disk
});

attempt("item").then((view) => {
  if (!view) return;
  show(view);
  document.documentElement.setAttribute("data-ready", "");
});
