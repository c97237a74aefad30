# SPDX-License-Identifier: Apache-2.0
"""Constraints are compiled, and answers checked against them, in threads of their own: one that takes seconds delays
other constraints, and nothing else."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

from foundling.decode.constrain.constraint import Constraint
from foundling.decode.constrain.processor import ConstraintProcessor
from foundling.decode.request import Completion
from foundling.limits import CHECKS, COMPILATIONS, Limit
from foundling.serve.errors import APIError, busy
from foundling.serve.models import GenerativeModel
from foundling.verify.structured import Verdict, matches_constraint

T = TypeVar("T")
logger = logging.getLogger("foundling.serve")


class Compiled(NamedTuple):
    """A constraint of one model."""

    processor: ConstraintProcessor
    decode: Callable[[list[int]], str] | None
    """ids of an answer -> its text as the grammar saw it, where the tokenizer's own decoding gives another"""


class _Queue:
    """A thread, and what runs in it or waits for it; who is cancelled while it waits leaves."""

    def __init__(self, name: str) -> None:
        self.name, self.thread, self.n_waiting = name, ThreadPoolExecutor(1, name), 0

    async def run(self, limit: Limit, function: Callable[..., T], *args: Any) -> T:
        """APIError 429 where too many wait."""
        if self.n_waiting >= limit.high:
            raise busy(f"{self.n_waiting} {self.name} wait; try again later", 5.0)
        self.n_waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self.thread, function, *args)
        finally:
            self.n_waiting -= 1


class Compiler:
    """Compiles and checks for one server. The event loop alone uses it."""

    def __init__(self) -> None:
        self.constraints, self.answers = _Queue("constraints"), _Queue("answers")

    async def compile(self, served: GenerativeModel, constraint: Constraint | None) -> Compiled | None:
        """At once where an equal one was compiled before. GenerationError for one that cannot be compiled; APIError
        429 where too many wait."""
        if constraint is None:
            return None
        constrainer = served.generator.constrainer

        def with_decoder(processor: ConstraintProcessor) -> Compiled:
            own = constrainer.decodes_as(served.framing.spec.reads_source)
            return Compiled(processor, None if own else constrainer.spelling)

        if (processor := constrainer.compiled(constraint)) is not None:
            return with_decoder(processor)
        return await self.constraints.run(COMPILATIONS, lambda: with_decoder(constrainer.processor(constraint)))

    async def matches(self, text: str, constraint: Constraint) -> Verdict:
        """By an independent validator. APIError 429 where too many wait."""
        return await self.answers.run(CHECKS, matches_constraint, text, constraint)

    async def check(self, constraint: Constraint | None, completions: Sequence[Completion]) -> None:
        """What decoding enforces, an independent validator checks. APIError 500 where an answer that ended by itself
        does not follow its constraint. One that a stop string has cut, and that does not follow it, gets the
        finish_reason of a cut one, "length"."""
        for completion in completions if constraint is not None else ():
            if completion.finish_reason not in ("end", "stop"):
                continue
            assert constraint is not None
            verdict = await self.matches(completion.text or "", constraint)
            if verdict or verdict.stopped:  # a check that takes too long says nothing of the answer
                continue
            if completion.finish_reason == "stop":
                completion.finish_reason = "length"
            else:
                logger.error("an answer does not follow %s: %s", constraint.name, verdict.reason)
                raise APIError(500, f"the answer does not follow {constraint.name}, which is a fault of the server")

    def close(self) -> None:
        """Waits for nothing: what runs ends within the limits of a constraint."""
        for queue in (self.constraints, self.answers):
            queue.thread.shutdown(wait=False, cancel_futures=True)
