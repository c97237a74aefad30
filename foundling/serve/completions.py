# SPDX-License-Identifier: Apache-2.0
"""POST /v1/completions: texts or lists of token ids, echo, log-probabilities, best_of, a suffix."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from starlette.requests import Request as HTTPRequest
from starlette.responses import Response

from foundling.decode.constrain.constraint import Constraint
from foundling.decode.request import Completion, Request, sample_seed
from foundling.serve.best_of import best, mean_logprobs, prompt_rewards
from foundling.serve.compiling import Compiled
from foundling.serve.errors import APIError
from foundling.serve.formats import format_of
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
from foundling.serve.protocol import CompletionBody
from foundling.serve.reply import FINISH, Head, LargeJSON, Text, Usage, event, finite, head_of
from foundling.serve.server import Server
from foundling.serve.streams import event_stream
from foundling.serve.worker import Update


@dataclass
class Job:
    """One request, ready to be computed: `best_of` requests of the engine for each prompt."""

    server: Server
    body: CompletionBody
    prompts: list[Prompt]
    requests: list[Request]
    best_of: int
    head: Head
    usage: Usage
    constraint: Constraint | None


async def create_completion(server: Server, body: CompletionBody, http: HTTPRequest) -> Response:
    if (remote := upstream_of(server, body.model, http)) is not None:
        return await forward(server, remote, body, http)
    served = server.generative(body.model, http)
    served.worker.check_queue(1)  # what is refused costs little
    job = await _prepare(server, body, served)
    await server.reserve(http, job.usage, job.requests)
    meter = Meter(job.requests, job.usage, counts_tokens=body.max_tokens != 0)
    if body.stream:
        return await event_stream(server, http, served, meter, partial(_events, job))
    completions = await complete(server, http, served, meter)
    await server.compiler.check(job.constraint, completions)
    chosen = await _choose(job, completions)
    return await asyncio.to_thread(_answer, job, chosen)


def _answer(job: Job, chosen: Sequence[tuple[Prompt, Completion]]) -> Response:
    return LargeJSON(job.head.as_json() | {"choices": _choices(job, chosen), "usage": job.usage.as_json()})


async def _prepare(server: Server, body: CompletionBody, served: GenerativeModel) -> Job:
    _check(server, body)
    constraint = await asyncio.to_thread(format_of, body.response_format)
    compiled = await server.compiler.compile(served, constraint)
    return await asyncio.to_thread(_build, server, body, served, constraint, compiled)


def _check(server: Server, body: CompletionBody) -> None:
    """APIError for fields that exclude each other, or are more than the server allows."""
    options, best_of = server.options, body.best_of or body.n
    check_n(best_of, options, "best_of" if body.best_of else "n")
    texts = body.prompts
    if len(texts) > options.max_prompts:
        raise APIError(400, f"{len(texts)} prompts; this server allows {options.max_prompts}", param="prompt")
    if (total := len(texts) * best_of) > options.max_queue:
        message = (
            f"{len(texts)} prompts of {best_of} completions are {total}; this server takes {options.max_queue} at once"
        )
        raise APIError(400, f"{message}: send fewer", param="prompt" if len(texts) > 1 else "n")
    check_best_of(best_of, body)
    if body.echo and (body.suffix is not None or body.stream):
        other = "suffix" if body.suffix is not None else "stream"
        raise APIError(400, f"echo and {other} exclude each other", param="echo")
    if body.max_tokens == 0 and not body.echo:
        raise APIError(
            400, "max_tokens is 0, which leaves nothing to return; use echo, or ask for more", param="max_tokens"
        )


def _build(
    server: Server, body: CompletionBody, served: GenerativeModel, constraint: Constraint | None,
    compiled: Compiled | None,
) -> Job:  # fmt: skip
    options, texts, best_of = server.options, body.prompts, body.best_of or body.n
    n_top = check_logprobs(body, options)
    prompts = [prompt_of(served, _ids(served, text, body.suffix), body.stops) for text in texts]
    requests, seed = list[Request](), seed_of(body)
    for number, prompt in enumerate(prompts):
        requests += build_requests(
            prompt, body, best_of, seed=sample_seed(seed, number) if number else seed,
            max_tokens=max_tokens_of(
                served, prompt.ids, 1 if body.max_tokens == 0 else body.max_tokens, options, "prompt"
            ),
            logprobs=0 if n_top is None and best_of > body.n else n_top,
            prompt_logprobs=n_top if body.echo else None, compiled=compiled,
        )  # fmt: skip
    if n_top is not None:
        check_logprobs_size(requests)
    head = head_of("text_completion", "cmpl", served.name, **server.fixed(body, served))
    n_prompt = sum(len(prompt.ids) for prompt in prompts)
    usage = Usage(prompt_tokens=n_prompt, price=served.price, deterministic=options.deterministic)
    return Job(server, body, prompts, requests, best_of, head, usage, constraint)


def _ids(served: GenerativeModel, text: str | list[int], suffix: str | None) -> list[int]:
    if isinstance(text, list):
        if suffix is not None:
            raise APIError(400, "a suffix is for a prompt of text", param="suffix")
        virtual = list(served.framing.spec.virtual)
        return text if text[: len(virtual)] == virtual else [*virtual, *text]  # /tokenize begins with them
    return served.framing.prompt(text) if suffix is None else served.framing.fill_in_the_middle(text, suffix)


async def _choose(job: Job, completions: list[Completion]) -> list[tuple[Prompt, Completion]]:
    """The best n of each prompt: by the reward model of the server, or else by mean log-probability."""
    chosen = list[tuple[Prompt, Completion]]()
    n, best_of = job.body.n, job.best_of
    for number, prompt in enumerate(job.prompts):
        group = completions[number * best_of : (number + 1) * best_of]
        if best_of > n:
            texts = [(completion.text or "") for completion in group]
            rewards = await job.server.rewards(partial(prompt_rewards, prompt=prompt, texts=texts))
            group = best(group, rewards or mean_logprobs(group), n)
        chosen += [(prompt, completion) for completion in group]
    return chosen


def _choices(job: Job, chosen: Sequence[tuple[Prompt, Completion]]) -> list[dict[str, Any]]:
    choices = list[dict[str, Any]]()
    for index, (prompt, completion) in enumerate(chosen):
        text, reason = completion.text or "", FINISH[completion.finish_reason or "stop"]
        if job.body.max_tokens == 0:
            text, reason = "", "length"
            completion = Completion([], "length", None, "", completion.logprobs and [], completion.top_logprobs and [],
                                    completion.prompt_logprobs, completion.prompt_top_logprobs)  # fmt: skip
        if job.body.echo:
            text = prompt.decode.before + text
        logprobs = None
        if job.body.logprobs is not None:
            logprobs = _Legacy(prompt).of(completion, echo=bool(job.body.echo))
        choices.append({"index": index, "text": text, "finish_reason": reason, "logprobs": logprobs})
    return choices


class _Legacy:
    """`logprobs` of a completion: parallel lists over its tokens."""

    def __init__(self, prompt: Prompt) -> None:
        self.prompt, self.offset = prompt, 0
        self.tokens, self.values, self.tops, self.offsets, self.ids = [], [], [], [], []

    def of(self, completion: Completion, *, echo: bool) -> dict[str, Any]:
        if echo and completion.prompt_logprobs is not None:
            self.add(self.prompt.ids, completion.prompt_logprobs, completion.prompt_top_logprobs or [], first=True)
        self.add(completion.tokens, completion.logprobs or [], completion.top_logprobs or [])
        self.add_end(completion)
        return self.as_json()

    def add_end(self, completion: Completion) -> None:
        """The token that ended the answer, as OpenAI's completions have it: clients count it (lm-evaluation-harness
        leaves out the last one)."""
        if completion.end is not None:
            token, value, top = completion.end
            self.add([token], [value], [top])

    def add(
        self,
        tokens: Sequence[int],
        logprobs: Sequence[float | None],
        tops: Sequence[dict[int, float]],
        *,
        first: bool = False,
    ) -> None:
        texts = self.prompt.texts
        for place, (token, value, top) in enumerate(zip(tokens, logprobs, tops, strict=True)):
            text = texts.text(token)
            self.tokens.append(text)
            self.ids.append(token)
            self.values.append(None if value is None else finite(value))
            self.offsets.append(self.offset)
            self.offset += len(text)
            likeliest: dict[str, float] = {}
            for other, logprob in top.items():
                likeliest.setdefault(texts.text(other), finite(logprob))
            self.tops.append(None if first and place == 0 else likeliest)

    def as_json(self) -> dict[str, Any]:
        return {
            "tokens": self.tokens, "token_logprobs": self.values, "top_logprobs": self.tops,
            "text_offset": self.offsets, "token_ids": self.ids,
        }  # fmt: skip


async def _events(job: Job, updates: AsyncGenerator[Update]) -> AsyncGenerator[str]:
    head, body = job.head.as_json(), job.body
    include_usage = bool(body.stream_options and body.stream_options.include_usage)
    blank = {"usage": None} if include_usage else {}
    prompts = [job.prompts[index // job.best_of] for index in range(len(job.requests))]
    texts = [Text(request) for request in job.requests]
    offsets = [0] * len(texts)
    async with contextlib.aclosing(updates):
        async for update in updates:
            check_finished(update.completion)
            index, completion, text = update.index, update.completion, texts[update.index]
            text.append(update.tokens)
            job.usage.completion_tokens += len(update.tokens)
            if completion is not None:
                await job.server.compiler.check(job.constraint, [completion])
                text.finish(completion.text or "")
                job.usage.cached_tokens += completion.n_shared
            content, logprobs = text.take(), None
            if body.logprobs is not None and (update.tokens or (completion and completion.end)):
                legacy = _Legacy(prompts[index])
                legacy.offset = offsets[index]
                legacy.add(update.tokens, update.logprobs, update.top_logprobs)
                if completion is not None:
                    legacy.add_end(completion)
                offsets[index], logprobs = legacy.offset, legacy.as_json()
            if content or logprobs or completion is not None:
                reason = None if completion is None else FINISH[completion.finish_reason or "stop"]
                choice = {"index": index, "text": content, "finish_reason": reason, "logprobs": logprobs}
                yield event(head | {"choices": [choice]} | blank)
    if include_usage:
        yield event(head | {"choices": [], "usage": job.usage.as_json()})
