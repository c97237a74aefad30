// SPDX-License-Identifier: Apache-2.0
// One answer as it arrives: chats, continuations of texts and of token ids, and texts between two others, as parts
// {text, tokens, finish, usage}. A token is {id, text, logprob}.
import { events, post } from "./api.js";

/** `from`: {messages} | {tokens} | {prompt, suffix}. `model`: an entry of /v1/models. */
export async function* generate(model, from, { sampling, maxTokens, seed, schema }, signal) {
  const chats = from.messages !== undefined;
  const body = { model: model.id, stream: true, stream_options: { include_usage: true }, ...sampling };
  body.max_tokens = await fitting(model, from, maxTokens, signal);
  if (seed !== null) body.seed = seed;
  if (schema !== null) body.response_format = { type: "json_schema", json_schema: { name: "answer", schema } };
  const { kind, max_logprobs: cap } = model.foundling;
  if (kind === "generate" && (cap === null || (cap > 0 && schema === null))) body.logprobs = chats ? true : 0;
  if (chats) body.messages = from.messages;
  else Object.assign(body, { prompt: from.tokens ?? from.prompt, ...(from.suffix === undefined ? {} : { suffix: from.suffix }) });
  if (kind !== "generate") for (const name of ["top_k", "min_p"]) delete body[name]; // not of OpenAI
  for await (const event of events(chats ? "/v1/chat/completions" : "/v1/completions", body, signal)) {
    const choice = event.choices?.[0];
    yield {
      text: (chats ? choice?.delta?.content : choice?.text) ?? "", tokens: tokensOf(choice?.logprobs),
      finish: choice?.finish_reason ?? null, usage: event.usage ?? null,
    };
  }
}

/** Of a chat, or the parallel lists of a completion. */
function tokensOf(logprobs) {
  if (!logprobs) return [];
  if (logprobs.content) return logprobs.content.map(({ token_id, token, logprob }) => ({ id: token_id, text: token, logprob }));
  return logprobs.tokens.map((text, at) => ({ id: logprobs.token_ids[at], text, logprob: logprobs.token_logprobs[at] }));
}

/** No more tokens than there is place for after the prompt. */
async function fitting(model, from, most, signal) {
  const longest = model.foundling.max_seq_len;
  if (!longest || model.foundling.kind !== "generate") return most;
  const { messages, tokens, prompt, suffix } = from;
  const read = tokens ?? await tokenize(model, messages ? { messages } : { prompt: prompt + (suffix ?? "") }, signal);
  return Math.max(1, Math.min(most, longest - read.length - (suffix === undefined ? 0 : 4)));
}

/** The text of tokens. One may be part of a character: then the server joins them. */
export async function textOf(model, tokens, signal) {
  const text = tokens.map((token) => token.text).join("");
  if (!text.includes("\ufffd")) return text;
  return (await post("/detokenize", { model: model.id, tokens: tokens.map(({ id }) => id) }, signal)).prompt;
}

/** The ids that a model reads of a conversation or a text. */
export async function tokenize(model, from, signal) {
  const { tokens } = await post("/tokenize", { model: model.id, ...from }, signal);
  return tokens;
}

/** Time of an answer that is streamed: to its first token, and tokens a second after it. */
export class Timing {
  constructor() {
    this.begin = performance.now();
    this.first = null;
    this.n = 0;
  }

  count(n) {
    this.first ??= performance.now();
    this.last = performance.now();
    this.n += n;
  }

  get values() {
    if (this.first === null) return {};
    const seconds = (this.last - this.first) / 1000;
    return { first: (this.first - this.begin) / 1000, rate: this.n > 1 && seconds > 0 ? (this.n - 1) / seconds : null };
  }
}
