# SPDX-License-Identifier: Apache-2.0
"""A cache of responses by query: by the same text, or by an embedding similar enough."""

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


class ResponseCache(Generic[T]):
    """The `size` most recently used responses. A query matches itself first, then, where `embed` is given, the nearest
    one with cosine similarity of at least `threshold`; one that `embed` has no vector for matches itself alone. Queries
    of different `kind` (options, model, user) never match. `max_bytes`: of all responses by `size_of`, beyond which the
    least recently used are dropped; a response that is larger alone is not kept."""

    def __init__(
        self, size: int = 1024, embed: Callable[[str], Sequence[float] | Tensor | None] | None = None,
        threshold: float = 0.95, max_bytes: int | None = None, size_of: Callable[[str, T], int] | None = None,
    ) -> None:  # fmt: skip
        if size < 1:
            raise GenerationError(f"size is {size}; expected at least 1")
        if not 0 < threshold <= 1:
            raise GenerationError(f"threshold is {threshold}; expected above 0, up to 1")
        if (max_bytes is None) != (size_of is None):
            raise GenerationError("max_bytes needs size_of, which counts the bytes of a response")
        self.size, self.embed, self.threshold = size, embed, threshold
        self.max_bytes, self.size_of, self.n_bytes = max_bytes, size_of, 0
        self.responses: OrderedDict[tuple[Hashable, str], T] = OrderedDict()
        self.embeddings: dict[tuple[Hashable, str], Tensor] = {}
        self.hits = self.similar_hits = self.misses = 0

    def get(self, query: str, kind: Hashable = None) -> T | None:
        key = (kind, query)
        if key in self.responses:
            self.hits += 1
            self.responses.move_to_end(key)
            return self.responses[key]
        similar = self._nearest(query, kind) if self.embed else None
        if similar is None:
            self.misses += 1
            return None
        self.similar_hits += 1
        self.responses.move_to_end(similar)
        return self.responses[similar]

    def put(self, query: str, response: T, kind: Hashable = None) -> None:
        key = kind, query
        if key in self.responses:
            self._drop(key)
        n = self._bytes(key, response)
        if self.max_bytes is not None and n > self.max_bytes:
            return
        self.responses[key] = response
        self.n_bytes += n
        if (vector := self._unit_embedding(query)) is not None:
            self.embeddings[key] = vector
        while len(self.responses) > self.size or (self.max_bytes is not None and self.n_bytes > self.max_bytes):
            self._drop(next(iter(self.responses)))

    def get_or_compute(self, query: str, compute: Callable[[str], T], kind: Hashable = None) -> T:
        """The cached response, or that of `compute`, which is then cached."""
        response = self.get(query, kind)
        if response is None:
            response = compute(query)
            self.put(query, response, kind)
        return response

    def _bytes(self, key: tuple[Hashable, str], response: T) -> int:
        return self.size_of(key[1], response) if self.size_of else 0

    def _drop(self, key: tuple[Hashable, str]) -> None:
        self.n_bytes -= self._bytes(key, self.responses.pop(key))
        self.embeddings.pop(key, None)

    def _unit_embedding(self, query: str) -> Tensor | None:
        values = self.embed(query) if self.embed else None
        if values is None:
            return None
        vector = torch.as_tensor(values, dtype=torch.float32).flatten()
        length = float(vector.norm())
        if not math.isfinite(length) or length == 0:
            raise GenerationError("the embedding of a query is zero or not finite; check `embed`")
        return vector / length

    def _nearest(self, query: str, kind: Hashable) -> tuple[Hashable, str] | None:
        keys = [key for key in self.embeddings if key[0] == kind]
        vector = self._unit_embedding(query) if keys else None
        if vector is None:
            return None
        similarity = torch.stack([self.embeddings[key] for key in keys]) @ vector
        best = int(similarity.argmax())
        return keys[best] if float(similarity[best]) >= self.threshold else None


def inconsistency(groups: Iterable[Sequence[Hashable]]) -> float:
    """The share of pairs of responses that differ, over groups of responses to the same query. Raises GenerationError
    where no group has two."""
    different = pairs = 0
    for responses in groups:
        for a, b in combinations(responses, 2):
            different, pairs = different + (a != b), pairs + 1
    if pairs == 0:
        raise GenerationError("inconsistency needs a query that was asked at least twice")
    return different / pairs
