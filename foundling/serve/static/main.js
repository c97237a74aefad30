// SPDX-License-Identifier: Apache-2.0
// Puts the page together: models, views, the list of conversations, and the keys that work everywhere.
import { get } from "./api.js";
import { Chat } from "./chat.js";
import { CompareView } from "./compare.js";
import { create, exported, title } from "./conversation.js";
import { $, count, debounce, download, h, move } from "./dom.js";
import { FillView } from "./fill.js";
import { Inspector } from "./inspector.js";
import { load, removeAll } from "./library.js";
import { notify } from "./notice.js";
import { DEFAULTS } from "./sampling.js";
import { createStore } from "./store.js";
import { TokenizerView } from "./tokenizer.js";

const SCHEMA = {
  type: "object", required: ["name", "population", "is_capital"], additionalProperties: false,
  properties: { name: { type: "string", maxLength: 40 }, population: { type: "integer", minimum: 0, maximum: 100000000 }, is_capital: { type: "boolean" } },
};

let conversations = [];
const store = createStore({ models: [], model: null, sampling: { ...DEFAULTS }, chosen: null });
const chat = new Chat(store, $("messages"), options, showState);
const inspector = new Inspector(store, $("inspector"), positionOf, (chosen, token, ends) => {
  inspector.hide();
  if (chosen) chat.branch(chosen.node, chosen.at, token, ends);
  else {
    chat.extend($("draft").value, token, ends);
    $("draft").value = "";
  }
});
const views = {
  compare: new CompareView(store, $("view-compare")), tokenizer: new TokenizerView(store, $("view-tokenizer")),
  fill: new FillView(store, $("view-fill"), options),
};
// --- what a request is made of ---------------------------------------------------------------------------------------

function options() {
  const seed = $("seed").value;
  return { sampling: store.get().sampling, maxTokens: Math.max(1, Number($("max-tokens").value) || 256), seed: seed === "" ? null : Number(seed), schema: schema() };
}

/** The schema in the box; null for none, and for what is no JSON, which the box says. */
function schema() {
  const text = $("schema").value.trim();
  const state = $("schema-state");
  state.classList.remove("worse");
  state.textContent = "";
  if (!text) return null;
  try {
    const value = JSON.parse(text);
    state.textContent = "Answers follow this schema.";
    return value;
  } catch (error) {
    state.classList.add("worse");
    state.textContent = `Not used: this is no JSON (${error.message}).`;
    return null;
  }
}

/** Where the inspector looks: {model, prefix}. */
async function positionOf(chosen) {
  if (chosen) {
    const prompt = await chat.promptOf(chosen.node);
    return { model: chat.modelOf(chosen.node), prefix: [...prompt, ...chosen.node.tokens.slice(0, chosen.at).map(({ id }) => id)] };
  }
  return { model: store.get().model, prefix: await chat.nextPrefix($("draft").value) };
}

// --- models ----------------------------------------------------------------------------------------------------------

async function loadModels() {
  try {
    const { data } = await get("/v1/models");
    const models = data.filter(({ foundling }) => ["generate", "upstream"].includes(foundling?.kind));
    $("model").replaceChildren(...models.map(({ id }) => h("option", { text: id, value: id })));
    store.set({ models, model: models[0] ?? null });
    if (!models.length) notify(new Error("This server has no model that generates text. Start it with one: foundling serve DIR."));
  } catch (error) {
    notify(error, loadModels);
  }
  showModel();
}

function showModel() {
  const { model } = store.get();
  const facts = model?.foundling;
  $("model-facts").textContent = !model ? "" : [
    facts.family, facts.parameters && `${size(facts.parameters)} parameters`, facts.max_seq_len && `${count(facts.max_seq_len)} tokens of context`,
    facts.price && `$${facts.price.completion} a million tokens written`,
    facts.kind === "upstream" ? "behind another server" : !facts.chats && "continues text: it was not taught to answer",
  ].filter(Boolean).join(" · ");
  $("draft").placeholder = facts && facts.kind !== "upstream" && !facts.chats ? "Write a beginning, which the model continues" : "Write a message";
}

function size(n) {
  for (const [unit, name] of [[1e9, " B"], [1e6, " M"], [1e3, " k"]]) if (n >= unit) return (n / unit).toPrecision(3) + name;
  return String(n);
}

// --- conversations ---------------------------------------------------------------------------------------------------

function openConversation(conversation) {
  $("system").value = conversation.settings.system ?? "";
  $("schema").value = conversation.settings.schema ?? "";
  schema();
  chat.open(conversation);
}

function listConversations() {
  const current = chat.conversation;
  conversations = [current, ...load().filter(({ id }) => id !== current.id)];
  $("conversations").replaceChildren(...conversations.map((one) => h("option", { value: one.id, text: title(one) })));
  $("conversations").value = current.id;
}

function showState() {
  $("send").hidden = Boolean(chat.running);
  $("stop").hidden = !chat.running;
  listConversations();
}

$("conversations").addEventListener("change", () => openConversation(conversations.find(({ id }) => id === $("conversations").value)));
$("new-chat").addEventListener("click", () => {
  openConversation(create());
  $("draft").focus();
});
$("open-inspector").addEventListener("click", () => inspector.open());
$("export-chat").addEventListener("click", () => download(`conversation-${chat.conversation.id}.json`, exported(chat.conversation)));
$("delete-chats").addEventListener("click", () => {
  if (!confirm("Delete all conversations in this browser?")) return;
  removeAll();
  openConversation(create());
});
$("system").addEventListener("input", () => { chat.conversation.settings.system = $("system").value.trim() || undefined; });
$("schema").addEventListener("input", debounce(() => {
  chat.conversation.settings.schema = $("schema").value.trim() || undefined;
  schema();
}, 200));
$("schema-example").addEventListener("click", () => {
  $("schema").value = JSON.stringify(SCHEMA, null, 2);
  $("schema").dispatchEvent(new Event("input"));
});

// --- composer and keys -----------------------------------------------------------------------------------------------

function grow() {
  const draft = $("draft");
  draft.style.height = "auto";
  draft.style.height = `${Math.min(draft.scrollHeight + 2, innerHeight / 3)}px`;
}

$("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = $("draft").value;
  if (!text.trim() || chat.running || !store.get().model) return;
  $("draft").value = "";
  grow();
  chat.send(text);
});
$("draft").addEventListener("input", grow);
$("draft").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  $("composer").requestSubmit();
});
$("stop").addEventListener("click", () => chat.stop());
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape") return;
  chat.stop();
  inspector.hide();
});
addEventListener("pagehide", () => chat.conversation && chat.keepIfAny());

const tablist = document.querySelector("[role=tablist]"), tabs = [...tablist.querySelectorAll("[role=tab]")];

function openTab(tab) {
  for (const other of tabs) {
    other.setAttribute("aria-selected", String(other === tab));
    $(other.getAttribute("aria-controls")).hidden = other !== tab;
  }
  move(tablist, "[role=tab]", tab);
  views[tab.id.replace("tab-", "")]?.show();
}

for (const tab of tabs) tab.addEventListener("click", () => openTab(tab));
tablist.addEventListener("keydown", (event) => {
  const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  if (!step) return;
  const tab = tabs[(tabs.indexOf(document.activeElement) + step + tabs.length) % tabs.length];
  tab.focus();
  openTab(tab);
});

$("model").addEventListener("change", () => {
  store.set({ model: store.get().models.find(({ id }) => id === $("model").value) });
  showModel();
});

openConversation(load()[0] ?? create());
await loadModels();
document.documentElement.dataset.ready = "true";
