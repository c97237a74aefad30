# SPDX-License-Identifier: Apache-2.0
"""Answers kept: for the same question, or for one that means the same by an embedding that is handed in."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Sequence
from itertools import combinations
from typing import Generic, TypeVar

import torch
from torch import Tensor

from foundling.errors import GenerationError

T = TypeVar("T")


class AnswerCache(Generic[T]):
    """The latest `size` answers. A question is found by itself first, then, where `embed` is given, as the nearest one
    of cosine similarity `threshold` or more. `kind` (options, model, user) must always be the same: what was asked
    otherwise is never found."""

    def __init__(
        self, size: int = 1024, embed: Callable[[str], Sequence[float] | Tensor] | None = None, threshold: float = 0.95
    ) -> None:
        if size < 1:
            raise GenerationError(f"size is {size}; expected at least 1")
        if not 0 < threshold <= 1:
            raise GenerationError(f"threshold is {threshold}; expected above 0, up to 1")
        self.size, self.embed, self.threshold = size, embed, threshold
        self.held: OrderedDict[tuple[Hashable, str], T] = OrderedDict()
        self.places: dict[tuple[Hashable, str], Tensor] = {}
        self.hits = self.near_hits = self.misses = 0

    def get(self, question: str, kind: Hashable = None) -> T | None:
        key = (kind, question)
        if key in self.held:
            self.hits += 1
            self.held.move_to_end(key)
            return self.held[key]
        near = self._nearest(question, kind) if self.embed else None
        if near is None:
            self.misses += 1
            return None
        self.near_hits += 1
        self.held.move_to_end(near)
        return self.held[near]

    def put(self, question: str, answer: T, kind: Hashable = None) -> None:
        key = (kind, question)
        self.held[key] = answer
        self.held.move_to_end(key)
        if self.embed:
            self.places[key] = self._unit(question)
        while len(self.held) > self.size:
            oldest, _ = self.held.popitem(last=False)
            self.places.pop(oldest, None)

    def ask(self, question: str, answer: Callable[[str], T], kind: Hashable = None) -> T:
        """What is kept, or what `answer` says, which is then kept."""
        found = self.get(question, kind)
        if found is None:
            found = answer(question)
            self.put(question, found, kind)
        return found

    def _unit(self, question: str) -> Tensor:
        assert self.embed
        vector = torch.as_tensor(self.embed(question), dtype=torch.float32).flatten()
        length = float(vector.norm())
        if not math.isfinite(length) or length == 0:
            raise GenerationError("the embedding of a question is zero or not finite; check `embed`")
        return vector / length

    def _nearest(self, question: str, kind: Hashable) -> tuple[Hashable, str] | None:
        keys = [key for key in self.places if key[0] == kind]
        if not keys:
            return None
        likeness = torch.stack([self.places[key] for key in keys]) @ self._unit(question)
        best = int(likeness.argmax())
        return keys[best] if float(likeness[best]) >= self.threshold else None


def inconsistency(groups: Iterable[Sequence[Hashable]]) -> float:
    """Of questions asked several times (one group each), the share of pairs of answers that differ. GenerationError
    where no question was asked twice."""
    different = pairs = 0
    for answers in groups:
        for a, b in combinations(answers, 2):
            different, pairs = different + (a != b), pairs + 1
    if pairs == 0:
        raise GenerationError("inconsistency needs a question that was asked at least twice")
    return different / pairs
