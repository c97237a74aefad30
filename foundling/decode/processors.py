# SPDX-License-Identifier: Apache-2.0
"""Logits processors: penalties, biases, forbidden sequences, and any that a caller defines.

A processor is started once per completion. Its state sees every token of that completion.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from foundling.decode.sampling import Sampling


class LogitsProcessorState(Protocol):
    """The state of one processor for one completion."""

    def apply(self, logits: Tensor) -> Tensor:
        """(V,) float32 → (V,). The input must not be modified."""
        ...

    def accept(self, token: int) -> None:
        """Called with every token that the completion appends."""
        ...

    def copy(self) -> LogitsProcessorState:
        """An independent state, for a completion that branches."""
        ...


@runtime_checkable
class ForcingState(LogitsProcessorState, Protocol):
    """A state that may know tokens before the model computes, and the end of the completion."""

    def forced(self) -> list[int]:
        """The tokens that must follow, as far as they are known; `apply` then allows no others, one after the other. A
        caller may append them without logits."""
        ...

    def complete(self) -> bool:
        """Whether nothing can follow: the completion ends without a stop id."""
        ...


class LogitsProcessor(Protocol):
    def start(self, prompt: Sequence[int]) -> LogitsProcessorState: ...


class LogitBias:
    """Adds a constant to the logits of given ids. It has no state, so it is its own state."""

    def __init__(self, bias: Mapping[int, float]) -> None:
        self.ids, self.values = torch.tensor(list(bias)), torch.tensor(list(bias.values()))

    def start(self, prompt: Sequence[int]) -> LogitBias:
        return self

    def apply(self, logits: Tensor) -> Tensor:
        return logits.index_add(0, self.ids.to(logits.device), self.values.to(logits))

    def accept(self, token: int) -> None: ...
    def copy(self) -> LogitBias:
        return self


class Penalties:
    """Repetition, presence and frequency penalties, as `Sampling` defines them."""

    def __init__(self, repetition: float, presence: float, frequency: float) -> None:
        self.repetition, self.presence, self.frequency = repetition, presence, frequency
        self.prompt_ids: frozenset[int] = frozenset()
        self.counts: Counter[int] = Counter()

    def start(self, prompt: Sequence[int]) -> Penalties:
        state = Penalties(self.repetition, self.presence, self.frequency)
        state.prompt_ids = frozenset(prompt)
        return state

    def apply(self, logits: Tensor) -> Tensor:
        logits = logits.clone()
        if self.repetition != 1 and (ids := [i for i in self.prompt_ids | self.counts.keys() if i < len(logits)]):
            at = torch.tensor(ids, device=logits.device)  # no virtual token, which has no logit
            values = logits[at]
            logits[at] = torch.where(values < 0, values * self.repetition, values / self.repetition)
        if self.counts:
            at = torch.tensor(list(self.counts), device=logits.device)
            counts = torch.tensor(list(self.counts.values()), device=logits.device, dtype=logits.dtype)
            logits[at] -= self.presence + self.frequency * counts
        return logits

    def accept(self, token: int) -> None:
        self.counts[token] += 1

    def copy(self) -> Penalties:
        other = self.start(())
        other.prompt_ids, other.counts = self.prompt_ids, self.counts.copy()
        return other


class BadWords:
    """Forbids the last id of a sequence where the other ids precede it, in the prompt or the completion."""

    def __init__(self, words: Sequence[Sequence[int]]) -> None:
        self.words = [tuple(word) for word in words]
        self.n_tail = max(map(len, self.words)) - 1
        self.tail: tuple[int, ...] = ()

    def start(self, prompt: Sequence[int]) -> BadWords:
        state = BadWords(self.words)
        state.tail = tuple(prompt)[len(prompt) - self.n_tail :] if self.n_tail < len(prompt) else tuple(prompt)
        return state

    def apply(self, logits: Tensor) -> Tensor:
        ends = [word[-1] for word in self.words if self.tail[len(self.tail) - len(word) + 1 :] == word[:-1]]
        return logits.index_fill(0, torch.tensor(ends, dtype=torch.int64, device=logits.device), -math.inf)

    def accept(self, token: int) -> None:
        self.tail = (*self.tail, token)[-self.n_tail :] if self.n_tail else ()

    def copy(self) -> BadWords:
        return self.start(self.tail)


def build_processors(sampling: Sampling) -> list[LogitsProcessor]:
    """The processors that `sampling` implies, in the order in which transformers applies them."""
    processors: list[LogitsProcessor] = []
    if sampling.logit_bias:
        processors.append(LogitBias(sampling.logit_bias))
    strengths = (sampling.repetition_penalty, sampling.presence_penalty, sampling.frequency_penalty)
    if strengths != (1, 0, 0):
        processors.append(Penalties(*strengths))
    if sampling.bad_words:
        processors.append(BadWords(sampling.bad_words))
    return processors
