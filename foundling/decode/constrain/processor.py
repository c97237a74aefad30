# SPDX-License-Identifier: Apache-2.0
"""The constraint of one answer as a logits processor: which tokens may follow, and which must.

A mask is computed in a thread while the model computes: it is started when a token is accepted, and awaited when the
logits are there. llguidance releases the interpreter's lock meanwhile.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from foundling.errors import GenerationError
from foundling.runtime.device import available_threads

if TYPE_CHECKING:
    from llguidance import LLMatcher

DEAD_END = "the tokenizer has no token that continues the constrained answer here"
FULL = "too many states"
"""what llguidance says of a lexer that has reached its limit"""
MOST_THREADS = 8
_pool_lock = threading.Lock()


@cache
def _pool_of(pid: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max(1, min(MOST_THREADS, available_threads())), "foundling-masks")


def _pool() -> ThreadPoolExecutor:
    """The threads of this process: a fork has none."""
    with _pool_lock:
        return _pool_of(os.getpid())


class Mask(NamedTuple):
    forbidden: Tensor | None
    """(V,) bool"""
    error: str = ""


class ConstraintProcessor:
    """Compiled for one model's tokenizer. `start` gives the state of one answer."""

    def __init__(self, matcher: LLMatcher, n_rows: int, ends: Sequence[int]) -> None:
        self.n_rows, self.ends = n_rows, tuple(i for i in ends if i < n_rows)
        self.matcher = matcher
        self.full = False
        """whether the lexer, which all answers share and which only grows, takes no more states: further answers need
        another processor"""
        self.initial_forced = _forced(matcher, self.ends)
        self.initial_mask = Mask(None) if self.initial_forced else self.compute_mask(matcher)

    def start(self, prompt: Sequence[int]) -> ConstraintState:
        """The prompt is not a part of what is constrained."""
        mask = None if self.initial_forced else _settled(self.initial_mask)
        return ConstraintState(self, self.matcher.deep_copy(), self.initial_forced, mask)

    def compute_mask(self, matcher: LLMatcher) -> Mask:
        """The mask of an answer that is where `matcher` is."""
        if matcher.is_error():
            return Mask(None, f"the constraint cannot be followed further: {self.error_of(matcher)}")
        if matcher.is_stopped():
            forbidden = torch.ones(self.n_rows, dtype=torch.bool)
            forbidden[list(self.ends)] = False
            return Mask(forbidden)
        bits = np.frombuffer(matcher.compute_bitmask(), dtype=np.uint8)
        if matcher.is_error():
            if any(text.startswith("NoExtension") for text in (matcher.stop_reason(), matcher.get_error())):
                return Mask(None, DEAD_END)
            return Mask(None, f"the constraint takes too much to follow here: {self.error_of(matcher)}")
        allowed = np.unpackbits(bits, count=self.n_rows, bitorder="little")
        if not allowed.any():
            return Mask(None, DEAD_END)
        return Mask(torch.from_numpy(allowed == 0))

    def error_of(self, matcher: LLMatcher) -> str:
        """The first line: what follows is the parser's state."""
        text = matcher.get_error()
        self.full = self.full or FULL in text
        return " ".join(text.split("<state>")[0].split("<non-verbose/>")[0].split())[:200]


class ConstraintState:
    """Where one answer is in its grammar."""

    def __init__(
        self, processor: ConstraintProcessor, matcher: LLMatcher, forced: list[int], mask: Future[Mask] | None
    ) -> None:
        self.processor, self.matcher, self.mask = processor, matcher, mask
        self.pending = [*forced]
        self.stopped = False

    def apply(self, logits: Tensor) -> Tensor:
        """Raises GenerationError where the grammar takes more than it may, or no token can follow."""
        if len(logits) != self.processor.n_rows:
            raise GenerationError(
                f"the constraint is of {self.processor.n_rows} tokens, the model has logits for {len(logits)}"
            )
        if self.pending:
            only = torch.full_like(logits, -math.inf)
            only[self.pending[0]] = logits[self.pending[0]]
            return only
        assert self.mask is not None
        forbidden, error = self.mask.result()
        if error:
            raise GenerationError(error)
        assert forbidden is not None
        return logits.masked_fill(forbidden.to(logits.device, non_blocking=True), -math.inf)

    def accept(self, token: int) -> None:
        if self.mask is not None:
            self.mask.result()  # nothing else may use the matcher meanwhile
            self.mask = None
        if not self.matcher.consume_token(token):
            message = self.processor.error_of(self.matcher) if self.matcher.is_error() else "the answer has ended"
            raise GenerationError(f"token {token} does not follow the constraint ({message})")
        if self.pending:
            self.pending.pop(0)
        if not self.pending:
            self.pending = _forced(self.matcher, self.processor.ends)
        self.stopped = self.matcher.is_stopped()
        if not self.pending:
            self.mask = _pool().submit(self.processor.compute_mask, self.matcher)

    def forced(self) -> list[int]:
        """The tokens that must follow, as far as they are determined; `apply` allows no others."""
        return [*self.pending]

    def complete(self) -> bool:
        """Whether the answer is whole and nothing can follow it."""
        return self.stopped

    def copy(self) -> ConstraintState:
        if self.mask is not None:
            self.mask.result()
        other = ConstraintState(self.processor, self.matcher.deep_copy(), self.pending, self.mask)
        other.stopped = self.stopped
        return other


def _settled(mask: Mask) -> Future[Mask]:
    future = Future[Mask]()
    future.set_result(mask)
    return future


def _forced(matcher: LLMatcher, ends: Sequence[int]) -> list[int]:
    if matcher.is_stopped():
        return []
    tokens = matcher.compute_ff_tokens()
    stop = next((at for at, token in enumerate(tokens) if token in ends), len(tokens))
    return tokens[:stop]
