# SPDX-License-Identifier: Apache-2.0
"""From the fields that chats and completions share to requests of the engine, checked against the server's limits."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from starlette.requests import Request as HTTPRequest

from foundling.decode.processors import LogitsProcessor
from foundling.decode.request import Completion, Request, sample_seed
from foundling.limits import ANSWER_LOGPROBS, SEED, SERVED_LOGPROBS, shown
from foundling.serve.compiling import Compiled
from foundling.serve.errors import APIError, ClientGone, busy
from foundling.serve.models import GenerativeModel
from foundling.serve.options import ServeOptions
from foundling.serve.protocol import ChatBody, CompletionBody, SamplingBody
from foundling.serve.reply import TokenTexts, Usage
from foundling.serve.server import Server, record_of
from foundling.serve.worker import Computed, Update
from foundling.text.framing import AnswerDecoder

T = TypeVar("T")
SAMPLING = (
    "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty"
)  # fmt: skip
NO_LOGPROBS = "this server gives no log-probabilities (--max-logprobs 0)"


@dataclass
class Prompt:
    """The ids of one prompt and how its completions are read."""

    served: GenerativeModel
    ids: list[int]
    decode: AnswerDecoder
    stop_strings: list[str]
    ends: tuple[int, ...]
    stop_tokens: tuple[int, ...]
    """special tokens that the request names as its stops"""
    texts: TokenTexts = field(init=False)

    def __post_init__(self) -> None:
        self.texts = TokenTexts(self.served, self.decode)


def prompt_of(served: GenerativeModel, ids: list[int], stops: Sequence[str]) -> Prompt:
    """APIError for no tokens, or tokens that the model has no row for."""
    framing, rows = served.framing, served.model.embedding.num_embeddings
    if not ids:
        raise APIError(400, "the prompt has no tokens; send some text", param="prompt")
    if max(ids) >= rows:
        raise APIError(400, f"the prompt has the token {max(ids)}; the model has {rows:,}", param="prompt")
    strings, marks = [s for s in stops if not framing.stops([s])], tuple(framing.stops(stops))
    return Prompt(served, ids, framing.answer(ids), strings, framing.ends, marks)


def max_tokens_of(served: GenerativeModel, ids: list[int], limit: int | None, options: ServeOptions, param: str) -> int:
    """How many tokens may follow; APIError where the request asks for more than there is place for. `param`: the field
    that the ids come from."""
    available = served.available(ids)
    if available < 1:
        most = "a source has" if served.framing.spec.reads_source else "prompt and completion have"
        raise APIError(
            400, f"the prompt has {len(ids):,} tokens; {most} {served.longest:,} at most: shorten it",
            param=param, code="context_length_exceeded",
        )  # fmt: skip
    if limit is None:
        return min(available, options.max_tokens)
    if limit > options.max_tokens:
        raise APIError(400, f"max_tokens is {limit:,}; this server allows {options.max_tokens:,}", param="max_tokens")
    if limit > available:
        raise APIError(
            400, f"the prompt has {len(ids):,} tokens, which leaves {available:,} for max_tokens {limit:,}",
            param="max_tokens", code="context_length_exceeded",
        )  # fmt: skip
    return limit


def check_logprobs(body: ChatBody | CompletionBody, options: ServeOptions) -> int | None:
    """How many a request asks for beside each token. APIError for those beyond the cap, and under a cap for those of
    tokens that the request chooses: forcing or echoing each token in turn would read what the cap hides (Carlini et al.
    2024, "Stealing part of a production language model", section 5)."""
    n, cap, param = body.n_logprobs, options.logprobs_cap, "top_logprobs" if isinstance(body, ChatBody) else "logprobs"
    if n is None or cap is None:
        return n
    if cap == 0:
        raise APIError(400, NO_LOGPROBS, param=param)
    if n > cap:
        raise APIError(400, f"{param} is {n}; this server gives at most {cap} (--max-logprobs)", param=param)
    chooses = {
        "logit_bias": body.logit_bias,
        "response_format": body.response_format and body.response_format.type != "text",
        "tools": isinstance(body, ChatBody) and body.tools and body.tool_choice != "none",
        "echo": isinstance(body, CompletionBody) and body.echo,
    }
    if name := next((name for name, value in chooses.items() if value), None):
        message = f"{name} and log-probabilities exclude each other on this server, which caps them"
        raise APIError(400, f"{message}; --max-logprobs {SERVED_LOGPROBS.high} gives both", param=name)
    return n


def check_logprobs_size(requests: Sequence[Request]) -> None:
    """APIError for more log-probabilities than one answer may hold."""
    sizes = ((r.logprobs, r.max_tokens + (0 if r.prompt_logprobs is None else len(r.prompt))) for r in requests)
    if (total := sum((1 + n) * n_tokens for n, n_tokens in sizes if n is not None)) > ANSWER_LOGPROBS.high:
        message = f"this could be {total:,} log-probabilities; an answer has at most {ANSWER_LOGPROBS.high:,}"
        raise APIError(400, f"{message}: ask for fewer, or for fewer tokens", param="logprobs")


def build_requests(
    prompt: Prompt,
    body: SamplingBody,
    n: int,
    *,
    max_tokens: int,
    seed: int,
    logprobs: int | None = None,
    prompt_logprobs: int | None = None,
    compiled: Compiled | None = None,
    decode: Callable[[list[int]], str] | None = None,
) -> list[Request]:
    """`n` completions of one prompt; completion k draws by sample_seed(seed, k)."""
    served, processors = prompt.served, list[LogitsProcessor]()
    decode = decode or prompt.decode
    if compiled is not None:
        processors.append(compiled.processor)
        if decode is prompt.decode and compiled.decode is not None:
            decode = compiled.decode
    fields: dict[str, Any] = {name: value for name in SAMPLING if (value := getattr(body, name)) is not None}
    if body.logit_bias:
        fields["logit_bias"] = _biases(body.logit_bias, served)
    sampling = served.sampling(fields)
    return [
        Request(
            prompt=prompt.ids, max_tokens=max_tokens, sampling=sampling, seed=sample_seed(seed, k), stop=prompt.ends,
            stop_tokens=prompt.stop_tokens,
            stop_strings=prompt.stop_strings, decode=decode, logprobs=logprobs, prompt_logprobs=prompt_logprobs,
            processors=processors, adapter=served.adapter,
        )
        for k in range(n)
    ]  # fmt: skip


def seed_of(body: SamplingBody) -> int:
    """That of the request, or one that nobody can guess."""
    return secrets.randbits(62) if body.seed is None else body.seed & SEED.high


def _biases(biases: dict[str, float], served: GenerativeModel) -> dict[int, float]:
    rows = served.model.config.vocab_size
    result = {}
    for key, value in biases.items():
        if not (key.isascii() and key.isdigit() and len(key) < 12 and int(key) < rows):
            raise APIError(400, f"logit_bias has {shown(key)}; expected ids of tokens below {rows}", param="logit_bias")
        result[int(key)] = value
    return result


def check_n(n: int, options: ServeOptions, param: str = "n") -> None:
    most = min(options.max_n, options.max_queue)
    if n > most:
        raise APIError(400, f"{param} is {n}; this server allows {most}", param=param)


def check_best_of(best_of: int, body: SamplingBody) -> None:
    if best_of < body.n:
        raise APIError(400, f"best_of is {best_of} and n {body.n}; best_of is at least n", param="best_of")
    if best_of > body.n and body.stream:
        raise APIError(400, "a stream shows all completions; leave out best_of", param="best_of")


def check_finished(completion: Completion | None) -> None:
    """What ended a completion in an error: a FoundlingError where the request is at fault, else ours."""
    if completion is not None and completion.finish_reason == "error":
        raise completion.exception or RuntimeError(completion.error or "a completion failed")


class Meter:
    """What a key is charged for requests: each prompt once, which the engine has begun to compute, and every token that
    it has computed. `counts_tokens`: whether the client gets those."""

    def __init__(self, requests: Sequence[Request], usage: Usage, counts_tokens: bool = True) -> None:
        self.requests, self.usage, self.counts_tokens = requests, usage, counts_tokens
        self.begun = False

    def take(self, computed: Sequence[Computed]) -> None:
        pairs = [(request, one) for request, one in zip(self.requests, computed, strict=True) if one.begun]
        self.begun = bool(pairs)
        usage = self.usage
        usage.prompt_tokens = sum({id(request.prompt): len(request.prompt) for request, _ in pairs}.values())
        usage.completion_tokens = sum(one.n_tokens for _, one in pairs) if self.counts_tokens else 0
        usage.cached_tokens = sum(one.n_shared for _, one in pairs)


async def complete(server: Server, http: HTTPRequest, served: GenerativeModel, meter: Meter) -> list[Completion]:
    """All completions, in the order of the requests. What was computed is charged, whatever becomes of it."""
    completions = dict[int, Completion]()
    try:
        async with contextlib.aclosing(served.worker.stream(meter.requests, meter.take)) as updates:
            async for update in updates:
                if update.completion is not None:
                    completions[update.index] = update.completion
    finally:
        if meter.begun:
            server.account(http, meter.usage)
    in_order = [completions[index] for index in range(len(meter.requests))]
    for completion in in_order:
        check_finished(completion)
    return in_order


async def until_gone(http: HTTPRequest, awaitable: Awaitable[T], seconds: float) -> T:
    """What is awaited; ClientGone where the client closes its connection first, APIError 503 where the request is older
    than `seconds`. When it raises, what was awaited has ended."""
    rest = max(0.0, record_of(http).begin + seconds - time.monotonic())
    task = asyncio.ensure_future(awaitable)
    watcher = asyncio.ensure_future(_gone(http))
    try:
        await asyncio.wait({task, watcher}, timeout=rest, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        if watcher.done():
            raise ClientGone
        raise took_too_long(seconds)
    finally:
        for each in (task, watcher):
            each.cancel()
        await asyncio.gather(task, watcher, return_exceptions=True)


def took_too_long(seconds: float) -> APIError:
    return busy(f"the request took over {seconds:g} s; ask for fewer tokens", 5.0, "timeout", 503)


async def _gone(http: HTTPRequest) -> None:
    while (await http.receive())["type"] != "http.disconnect":
        pass


async def by_index(updates: AsyncGenerator[Update]) -> AsyncGenerator[Update]:
    """All of the first request, then all of the second, … : an order that does not depend on what else is computed."""
    waiting = dict[int, list[Update]]()
    current = 0
    async with contextlib.aclosing(updates):
        async for update in updates:
            waiting.setdefault(update.index, []).append(update)
            while ready := waiting.pop(current, None):
                for one in ready:
                    yield one
                if ready[-1].completion is None:
                    break
                current += 1
