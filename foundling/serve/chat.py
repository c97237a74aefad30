# SPDX-License-Identifier: Apache-2.0
"""POST /v1/chat/completions."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from starlette.requests import Request as HTTPRequest
from starlette.responses import Response

from foundling.decode.request import Completion, Request
from foundling.serve.best_of import best, chat_rewards, mean_logprobs
from foundling.serve.errors import APIError
from foundling.serve.formats import AnswerForm, AnswerStream
from foundling.serve.forward import forward, upstream_of
from foundling.serve.generation import (
    Meter,
    Prompt,
    build_requests,
    check_best_of,
    check_finished,
    check_logprobs,
    check_logprobs_size,
    check_n,
    complete,
    max_tokens_of,
    prompt_of,
    seed_of,
)
from foundling.serve.models import GenerativeModel
from foundling.serve.protocol import ChatBody
from foundling.serve.reply import FINISH, Head, LargeJSON, Text, Usage, event, head_of
from foundling.serve.server import Server
from foundling.serve.streams import event_stream
from foundling.serve.worker import Update

CUT = ("length", "stop")
"""finish reasons of answers that may end in the middle of a call"""


@dataclass
class Chat:
    """One request, ready to be computed."""

    server: Server
    body: ChatBody
    prompt: Prompt
    requests: list[Request]
    head: Head
    usage: Usage
    form: AnswerForm
    messages: list[dict[str, Any]]
    """as the template sees them"""


async def create_chat(server: Server, body: ChatBody, http: HTTPRequest) -> Response:
    if (remote := upstream_of(server, body.model, http)) is not None:
        return await forward(server, remote, body, http)
    served = server.generative(body.model, http)
    served.worker.check_queue(1)  # what is refused costs little
    chat = await _prepare(server, body, served)
    await server.reserve(http, chat.usage, chat.requests)
    meter = Meter(chat.requests, chat.usage)
    if body.stream:
        return await event_stream(server, http, served, meter, partial(_events, chat))
    completions = await complete(server, http, served, meter)
    await server.compiler.check(chat.form.constraint, completions)
    chosen = await _choose(chat, completions)
    return await asyncio.to_thread(_answer, chat, chosen)


async def _choose(chat: Chat, completions: list[Completion]) -> list[Completion]:
    """The best n, by the reward model of the server as answers to the messages, or else by mean log-probability."""
    if len(completions) == chat.body.n:
        return completions
    contents = [chat.form.message(one.text or "", 0)["content"] or one.text or "" for one in completions]
    rewards = await chat.server.rewards(partial(chat_rewards, messages=chat.messages, texts=contents))
    return best(completions, rewards or mean_logprobs(completions), chat.body.n)


def _answer(chat: Chat, completions: Sequence[Completion]) -> Response:
    choices = [_choice(chat, index, completion) for index, completion in enumerate(completions)]
    return LargeJSON(chat.head.as_json() | {"choices": choices, "usage": chat.usage.as_json()})


async def _prepare(server: Server, body: ChatBody, served: GenerativeModel) -> Chat:
    chat, build = await asyncio.to_thread(_read, server, body, served)
    compiled = await server.compiler.compile(served, chat.form.constraint)
    chat.requests = await asyncio.to_thread(build, compiled=compiled)
    check_logprobs_size(chat.requests)
    return chat


def _read(server: Server, body: ChatBody, served: GenerativeModel) -> tuple[Chat, Callable[..., list[Request]]]:
    """The chat, and what makes its requests once the constraint of its form is compiled."""
    if served.tokenizer.chat_template is None:
        raise APIError(400, f"{served.name} has no chat template; ask /v1/completions", param="model")
    best_of = body.best_of or body.n
    check_n(best_of, server.options, "best_of" if body.best_of else "n")
    check_best_of(best_of, body)
    if body.top_logprobs is not None and not body.logprobs:
        raise APIError(400, "top_logprobs needs logprobs: true", param="top_logprobs")
    n_top = check_logprobs(body, server.options)
    messages = [message.as_template_sees_it() for message in body.messages]
    tools = [tool.model_dump(exclude_none=True) for tool in body.tools or []] if body.tool_choice != "none" else []
    ids = served.framing.chat(messages, tools=tools or None)
    prompt = prompt_of(served, ids, body.stops)
    limit = max_tokens_of(served, ids, body.limit, server.options, "messages")
    head = head_of("chat.completion", "chatcmpl", served.name, **server.fixed(body, served))
    form = AnswerForm(body, served, ids, head.id)
    build = partial(
        build_requests, prompt, body, best_of, max_tokens=limit, seed=seed_of(body),
        logprobs=0 if n_top is None and best_of > body.n else n_top,
        decode=form.decoder(prompt.decode),
    )  # fmt: skip
    usage = Usage(prompt_tokens=len(ids), price=served.price, deterministic=server.options.deterministic)
    return Chat(server, body, prompt, [], head, usage, form, messages), build


def _choice(chat: Chat, index: int, completion: Completion) -> dict[str, Any]:
    message = chat.form.message(completion.text or "", index, cut=completion.finish_reason in CUT)
    return {
        "index": index, "message": message, "finish_reason": _reason(completion, message),
        "logprobs": _logprobs(chat, completion.tokens, completion.logprobs, completion.top_logprobs),
    }  # fmt: skip


def _reason(completion: Completion, message: dict[str, Any]) -> str:
    reason = FINISH[completion.finish_reason or "stop"]
    return "tool_calls" if reason == "stop" and "tool_calls" in message else reason


def _logprobs(chat: Chat, tokens: Any, logprobs: Any, top: Any) -> dict[str, Any] | None:
    if not chat.body.logprobs:
        return None
    return {"content": chat.prompt.texts.content(tokens, logprobs, top), "refusal": None}


async def _events(chat: Chat, updates: AsyncGenerator[Update]) -> AsyncGenerator[str]:
    """The events of the stream, without its end."""
    head, body = chat.head.as_json("chat.completion.chunk"), chat.body
    include_usage = bool(body.stream_options and body.stream_options.include_usage)
    blank = {"usage": None} if include_usage else {}

    def chunk(index: int, delta: dict[str, Any], reason: str | None = None, logprobs: Any = None) -> str:
        choice = {"index": index, "delta": delta, "finish_reason": reason, "logprobs": logprobs}
        return event(head | {"choices": [choice]} | blank)

    texts = [Text(request) for request in chat.requests]
    answers, begun = [AnswerStream(chat.form, index) for index in range(len(texts))], set[int]()
    async with contextlib.aclosing(updates):
        async for update in updates:
            check_finished(update.completion)
            index, completion, text = update.index, update.completion, texts[update.index]
            if index not in begun:
                begun.add(index)
                yield chunk(index, {"role": "assistant", "content": "", "refusal": None})
            text.append(update.tokens)
            chat.usage.completion_tokens += len(update.tokens)
            if completion is not None:
                text.finish(completion.text or "")
                chat.usage.cached_tokens += completion.n_shared
            delta = answers[index].add(text.take())
            logprobs = _logprobs(chat, update.tokens, update.logprobs, update.top_logprobs) if update.tokens else None
            if delta or logprobs:
                yield chunk(index, delta or {"content": ""}, logprobs=logprobs)
            if completion is not None:
                await chat.server.compiler.check(chat.form.constraint, [completion])
                if rest := answers[index].finish(cut=completion.finish_reason in CUT):
                    yield chunk(index, rest)
                yield chunk(index, {}, _reason(completion, rest))
    if include_usage:
        yield event(head | {"choices": [], "usage": chat.usage.as_json()})
