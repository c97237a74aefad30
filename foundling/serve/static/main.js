// SPDX-License-Identifier: Apache-2.0
// Puts the page together: models, views, the list of conversations, and the keys that work everywhere.
import { get, post } from "./api.js";
import { Chat } from "./chat.js";
import { CompareView } from "./compare.js";
import { create, exported, title } from "./conversation.js";
import { $, count, debounce, download, h, move } from "./dom.js";
import { FillView } from "./fill.js";
import { Inspector } from "./inspector.js";
import { PREFIX, load, loadOne, remove, removeAll } from "./library.js";
import { cost } from "./message.js";
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
const inspector = new Inspector(store, $("inspector"), $("open-inspector"), positionOf, (place, token, ends) => {
  const begun = place.chosen ? chat.branch(place.chosen.node, place.chosen.at, token, ends) : chat.extend(place, token, ends);
  if (!begun) return;
  inspector.hide();
  if (place.draft) clearDraft();
});
const views = {
  compare: new CompareView(store, $("view-compare")), tokenizer: new TokenizerView(store, $("view-tokenizer")),
  fill: new FillView(store, $("view-fill"), settings),
};
// --- what a request is made of ---------------------------------------------------------------------------------------

/** Sampling, max tokens and seed. */
function settings() {
  const seed = $("seed").value;
  return { sampling: store.get().sampling, maxTokens: Math.max(1, Number($("max-tokens").value) || 256), seed: seed === "" ? null : Number(seed) };
}

/** With the schema. An Error where that is none: an answer that it does not bind would look as if it did. */
function options() {
  const value = schema();
  if (value !== undefined) return { ...settings(), schema: value };
  $("options").open = true;
  $("schema").focus();
  throw new Error("Nothing was sent: the text in the field JSON schema is no schema. Correct it, or empty the field.");
}

/** The schema in the box: null for none, undefined for what is none, which the box says. */
function schema() {
  const text = $("schema").value.trim();
  const state = $("schema-state");
  state.classList.remove("worse");
  state.textContent = "";
  if (!text) return null;
  try {
    const value = JSON.parse(text);
    if (typeof value !== "boolean" && (value === null || typeof value !== "object" || Array.isArray(value))) throw new Error("a schema is an object, true or false");
    state.textContent = "Answers follow this schema; continuations of an answer are free.";
    return value;
  } catch (error) {
    state.classList.add("worse");
    state.textContent = error instanceof SyntaxError ? `Invalid JSON: ${error.message}.` : `Not a schema: ${error.message}.`;
    return undefined;
  }
}

/** Where the inspector looks: {model, prefix}, and what a token that is chosen there continues. */
async function positionOf(chosen) {
  if (chosen) {
    const model = chat.modelOf(chosen.node), prompt = await chat.promptOf(chosen.node);
    return { chosen, model, prefix: [...prompt, ...chosen.node.tokens.slice(0, chosen.at).map(({ id }) => id)] };
  }
  return chat.nextPlace($("draft").value);
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
    facts.price && `$${cost(facts.price.completion)} per million tokens written`,
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

let origin = null;

/** Send or Stop, and the focus of whoever pressed a button that goes away: to Stop, and back when the answer has
 * ended. */
function showState(view = null) {
  const { activeElement } = document, running = Boolean(chat.running);
  const began = running && $("stop").hidden, ended = !running && activeElement === $("stop");
  const within = [$("messages"), $("inspector")].some((place) => place.contains(activeElement));
  $("send").hidden = running;
  $("stop").hidden = !running;
  if (began) origin = within ? "messages" : "composer";
  if (began && (within || activeElement === $("send"))) $("stop").focus();
  if (ended) (origin === "messages" && view ? view : $("send")).focus();
  inspector.enable(!running);
  inspector.forgetNext();
  listConversations();
}

/** Another window has stored or removed conversations. What is being written here stays. */
function follow() {
  const { conversation } = chat, stored = loadOne(conversation.id);
  if (!stored && conversation.revision > 0) {
    chat.drop(false);
    openConversation(create());
  } else if (stored && (stored.revision ?? 0) !== (conversation.revision ?? 0) && !chat.unsaved && !document.querySelector(".edit")) openConversation(stored);
  else listConversations();
}

addEventListener("storage", ({ key }) => {
  if (key === null || key.startsWith(PREFIX)) follow();
});
addEventListener("pageshow", ({ persisted }) => persisted && follow());

$("conversations").addEventListener("change", () => openConversation(conversations.find(({ id }) => id === $("conversations").value)));
$("new-chat").addEventListener("click", () => {
  openConversation(create());
  $("draft").focus();
});
$("open-inspector").addEventListener("click", () => inspector.open());
$("export-chat").addEventListener("click", () => download(`conversation-${chat.conversation.id}.json`, exported(chat.conversation)));
$("delete-chats").addEventListener("click", () => {
  if (!confirm("Delete all conversations in this browser?")) return;
  chat.drop(true);
  removeAll();
  openConversation(create());
});
$("delete-chat").addEventListener("click", () => {
  if (!confirm("Delete this conversation?")) return;
  chat.drop(false);
  remove(chat.conversation.id);
  openConversation(load()[0] ?? create());
});
$("system").addEventListener("input", () => {
  chat.conversation.settings.system = $("system").value.trim() || undefined;
  chat.edited = true;
  inspector.forgetNext();
});
const showSchema = debounce(schema, 200);
$("schema").addEventListener("input", () => {
  chat.conversation.settings.schema = $("schema").value.trim() || undefined;
  chat.edited = true;
  showSchema();
});
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

function clearDraft() {
  $("draft").value = "";
  grow();
}

$("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = $("draft").value;
  if (text.trim() && chat.send(text)) clearDraft();
});
$("draft").addEventListener("input", () => {
  grow();
  inspector.forgetNext();
});
$("draft").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  $("composer").requestSubmit();
});
$("stop").addEventListener("click", () => chat.stop());
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || event.defaultPrevented || event.isComposing) return;
  chat.stop();
  inspector.hide();
});
addEventListener("pagehide", () => chat.keepIfUnsaved());

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

$("sign-out").hidden = !("keys" in document.documentElement.dataset);
$("sign-out").addEventListener("click", () => post("/logout").then(() => location.reload(), notify));

openConversation(load()[0] ?? create());
await loadModels();
document.documentElement.dataset.ready = "true";
