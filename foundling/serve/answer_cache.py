# SPDX-License-Identifier: Apache-2.0
"""Answers that a key has had before: to the same request, or to one whose text means nearly the same.

Everything but the text has to be equal in any case: the key, the loaded model, sampling, earlier messages, tools. An
answer by meaning can be wrong: texts with a cosine near 1 may differ by a "not", a name or a number in words. Texts
with other digits, and texts that the embedder cuts, are never taken for equal. No key gets answers of another, so who
plants a wrong answer harms that key alone; a key that many users share is one user here."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

from torch import Tensor

from foundling.decode.embed import TextEmbedder
from foundling.decode.response_cache import ResponseCache
from foundling.errors import ConfigError
from foundling.limits import CACHED_ANSWERS, CACHED_BYTES, check_number, shown
from foundling.serve.keys import Caller
from foundling.serve.models import ServedModel
from foundling.serve.protocol import ChatBody, CompletionBody

logger = logging.getLogger("foundling.serve")
MAX_WAITING = 64
"""answers whose vectors are still to be computed; more are not cached"""
Mode = Literal["exact", "meaning"]
Result = Literal["hit", "similar", "miss"]
NO_PART = {"model", "stream", "stream_options", "user", "metadata", "store"}
"""fields that change nothing in an answer; the model counts as it is loaded"""


@dataclass(frozen=True)
class CacheOptions:
    mode: Mode = "exact"
    threshold: float = 0.95
    """cosine of two texts from which they are taken for equal"""
    max_answers: int = 4096
    max_bytes: int = 64 << 20
    """of all texts and answers"""
    every: bool = False
    """whether requests that sample without a seed get the same answer again too"""

    def __post_init__(self) -> None:
        if self.mode not in get_args(Mode):
            raise ConfigError(f"the answer cache is {shown(self.mode)}; expected one of {', '.join(get_args(Mode))}")
        check_number(self.threshold, "threshold", 0.5, 1)
        CACHED_ANSWERS.check(self.max_answers, "max_answers")
        CACHED_BYTES.check(self.max_bytes, "max_bytes")


class Query(NamedTuple):
    scope: str
    """digest of all that has to be equal"""
    text: str
    """in a cache by meaning what may differ; else a digest"""


class AnswerCache:
    def __init__(
        self, options: CacheOptions, in_turn: Callable[[Callable[[], Any]], Awaitable[Any]],
        embedder: TextEmbedder | None = None,
    ) -> None:  # fmt: skip
        """ConfigError for a cache by meaning without an embedder."""
        if options.mode == "meaning" and embedder is None:
            raise ConfigError("a cache by meaning needs a model that embeds texts: --cache-embedder DIR")
        self.options, self.embedder, self._in_turn = options, embedder, in_turn
        self._tasks = set[asyncio.Task[None]]()
        """answers that are put in"""
        self.on_result: Callable[[Result], None] = lambda result: None
        self.answers = ResponseCache[bytes](
            options.max_answers, self._embed if options.mode == "meaning" else None, options.threshold,
            options.max_bytes, lambda text, answer: len(text.encode(errors="surrogatepass")) + len(answer),
        )  # fmt: skip

    def query(self, body: ChatBody | CompletionBody, caller: Caller, served: ServedModel) -> Query | None:
        """None for a request whose answer may differ each time: it samples, and names no seed."""
        if not (self.options.every or body.temperature == 0 or body.top_k == 1 or body.seed is not None):
            return None
        fields = body.model_dump(mode="json", by_alias=True, exclude=NO_PART)
        text = _take_text(fields) if self.options.mode == "meaning" else None
        numbers = re.findall(r"\d+", text or "")
        whole = [caller.owner, type(body).__name__, served.name, served.load_id, numbers, fields]
        scope = hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()
        return Query(scope, "" if text is None else text)

    async def get(self, query: Query) -> bytes | None:
        """JSON. None also where it cannot be looked up: then it is computed anew."""
        try:
            answer, result = await self._run(lambda: self._get(query))
        except Exception as error:
            logger.error("the answer cache failed: %s: %s", type(error).__name__, error)
            answer, result = None, "miss"
        self.on_result(result)
        return answer

    async def put(self, query: Query, answer: bytes) -> None:
        """No client waits for a vector, and none loses its answer where one cannot be computed."""
        if len(answer) > self.options.max_bytes:
            return
        if self.answers.embed is None:
            await self._put(query, answer)
        elif len(self._tasks) < MAX_WAITING:
            task = asyncio.create_task(self._put(query, answer))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _put(self, query: Query, answer: bytes) -> None:
        try:
            await self._run(lambda: self.answers.put(query.text, answer, query.scope))
        except Exception as error:
            logger.error("the answer cache failed: %s: %s", type(error).__name__, error)

    @property
    def hit_ratio(self) -> float:
        cache = self.answers
        hits = cache.hits + cache.similar_hits
        return hits / max(1, hits + cache.misses)

    def _get(self, query: Query) -> tuple[bytes | None, Result]:
        similar = self.answers.similar_hits
        answer = self.answers.get(query.text, query.scope)
        if answer is None:
            return None, "miss"
        return answer, "similar" if self.answers.similar_hits > similar else "hit"

    async def _run(self, function: Callable[[], Any]) -> Any:
        """Vectors are computed in a thread, one at a time; without them the event loop alone uses the cache."""
        return function() if self.answers.embed is None else await self._in_turn(function)

    def _embed(self, text: str) -> Tensor | None:
        """None for no text, and for one that is too long for the embedder: what is cut off may be the difference."""
        assert self.embedder
        encoded = self.embedder.encode([text])[0] if text else None
        if encoded is None or encoded.cut:
            return None
        return next(vector for _, vector, _ in self.embedder.embed_ids([encoded.ids]))


def _take_text(fields: dict[str, Any]) -> str | None:
    """The last message of a user, or the one prompt, of which a placeholder is left; None where there is none."""
    if "messages" in fields:
        last = fields["messages"][-1]
        if last["role"] != "user" or not isinstance(last["content"], str):
            return None
        text, last["content"] = last["content"], ""
        return text
    if not isinstance(fields["prompt"], str):
        return None
    text, fields["prompt"] = fields["prompt"], ""
    return text
