# SPDX-License-Identifier: Apache-2.0
"""What changes the logits of an answer by what it has said: penalties, biases, forbidden words, constraints of others'.

A processor is asked once an answer for its progress, which sees every token that the answer takes.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from foundling.decode.sampling import Sampling


class Progress(Protocol):
    """What a processor knows of one answer."""

    def apply(self, logits: Tensor) -> Tensor:
        """(V,) float32, not to be written to -> (V,)"""
        ...

    def accept(self, token: int) -> None: ...
    def copy(self) -> Progress:
        """For an answer that goes on in two ways."""
        ...


class Processor(Protocol):
    def start(self, prompt: Sequence[int]) -> Progress: ...


class Bias:
    """The same is added to the same ids at every place."""

    def __init__(self, bias: Mapping[int, float]) -> None:
        self.ids, self.values = torch.tensor(list(bias)), torch.tensor(list(bias.values()))

    def start(self, prompt: Sequence[int]) -> Bias:
        return self

    def apply(self, logits: Tensor) -> Tensor:
        return logits.index_add(0, self.ids.to(logits.device), self.values.to(logits))

    def accept(self, token: int) -> None: ...
    def copy(self) -> Bias:
        return self


class Penalties:
    """Of ids that were said before, as `Sampling` words it."""

    def __init__(self, repetition: float, presence: float, frequency: float) -> None:
        self.repetition, self.presence, self.frequency = repetition, presence, frequency
        self.read: frozenset[int] = frozenset()
        self.said: Counter[int] = Counter()

    def start(self, prompt: Sequence[int]) -> Penalties:
        begun = Penalties(self.repetition, self.presence, self.frequency)
        begun.read = frozenset(prompt)
        return begun

    def apply(self, logits: Tensor) -> Tensor:
        logits = logits.clone()
        if self.repetition != 1 and (ids := list(self.read | self.said.keys())):
            at = torch.tensor(ids, device=logits.device)
            values = logits[at]
            logits[at] = torch.where(values < 0, values * self.repetition, values / self.repetition)
        if self.said:
            at = torch.tensor(list(self.said), device=logits.device)
            times = torch.tensor(list(self.said.values()), device=logits.device, dtype=logits.dtype)
            logits[at] -= self.presence + self.frequency * times
        return logits

    def accept(self, token: int) -> None:
        self.said[token] += 1

    def copy(self) -> Penalties:
        other = self.start(())
        other.read, other.said = self.read, self.said.copy()
        return other


class BadWords:
    """Sequences of ids whose last one is forbidden where the others stand just before, in the prompt or the answer."""

    def __init__(self, words: Sequence[Sequence[int]]) -> None:
        self.words = [tuple(word) for word in words]
        self.keep = max(map(len, self.words)) - 1
        self.tail: tuple[int, ...] = ()

    def start(self, prompt: Sequence[int]) -> BadWords:
        begun = BadWords(self.words)
        begun.tail = tuple(prompt)[len(prompt) - self.keep :] if self.keep < len(prompt) else tuple(prompt)
        return begun

    def apply(self, logits: Tensor) -> Tensor:
        ends = [word[-1] for word in self.words if self.tail[len(self.tail) - len(word) + 1 :] == word[:-1]]
        return logits.index_fill(0, torch.tensor(ends, dtype=torch.int64, device=logits.device), -math.inf)

    def accept(self, token: int) -> None:
        self.tail = (*self.tail, token)[-self.keep :] if self.keep else ()

    def copy(self) -> BadWords:
        return self.start(self.tail)


def processors_of(sampling: Sampling) -> list[Processor]:
    """In the order in which transformers applies them."""
    found: list[Processor] = []
    if sampling.logit_bias:
        found.append(Bias(sampling.logit_bias))
    strengths = (sampling.repetition_penalty, sampling.presence_penalty, sampling.frequency_penalty)
    if strengths != (1, 0, 0):
        found.append(Penalties(*strengths))
    if sampling.bad_words:
        found.append(BadWords(sampling.bad_words))
    return found
