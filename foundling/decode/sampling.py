# SPDX-License-Identifier: Apache-2.0
"""From logits to tokens: temperature, top-k, top-p (Holtzman et al. 2020), min-p (Nguyen et al. 2024). Each row draws
from a generator of its own seed and position."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from foundling.errors import GenerationError
from foundling.limits import TOP_K, check_number, shown
from foundling.runtime.rng import generator


class DistributionParams(NamedTuple):
    """How logits become the probabilities that a draw uses; hashable, so that rows can be grouped by it."""

    temperature: float
    top_k: int
    top_p: float
    min_p: float


@dataclass(frozen=True)
class Sampling:
    """Temperature 0 is greedy; every other default leaves the model's distribution unchanged.

    `repetition_penalty` (Keskar et al. 2019) divides positive logits of ids in the prompt and the completion, and
    multiplies negative ones. `presence_penalty` is subtracted once from the logits of ids in the completion,
    `frequency_penalty` once per occurrence. `logit_bias` is added. `bad_words` are sequences of ids that are never
    completed.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    bad_words: Sequence[Sequence[int]] = ()

    def __post_init__(self) -> None:
        for name in ("temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty"):
            check_number(getattr(self, name), name, error=GenerationError)
        if self.temperature < 0:
            raise GenerationError(f"temperature is {self.temperature}; expected 0 (greedy) or a positive number")
        TOP_K.check(self.top_k, "top_k", GenerationError)
        if not 0 < self.top_p <= 1:
            raise GenerationError(f"top_p is {self.top_p}; expected above 0, up to 1 (off)")
        if not 0 <= self.min_p <= 1:
            raise GenerationError(f"min_p is {self.min_p}; expected 0 (off) up to 1")
        if self.repetition_penalty <= 0:
            raise GenerationError(f"repetition_penalty is {self.repetition_penalty}; expected above 0, 1 is off")
        if not isinstance(self.logit_bias, Mapping):
            raise GenerationError(f"logit_bias is {shown(self.logit_bias)}; expected a mapping of ids to numbers")
        for token, bias in self.logit_bias.items():
            if bias != -math.inf:
                check_number(bias, f"logit_bias of {token} (or -inf)", error=GenerationError)
        words = self.bad_words
        if not isinstance(words, list | tuple) or not all(isinstance(word, list | tuple) for word in words):
            raise GenerationError(f"bad_words is {shown(words)}; expected a list of lists of ids")
        if not all(len(word) for word in self.bad_words):
            raise GenerationError("bad_words contains an empty word; each needs at least one id")

    @property
    def params(self) -> DistributionParams:
        return DistributionParams(self.temperature, self.top_k, self.top_p, self.min_p)

    def check(self, vocab_size: int) -> None:
        """Raises GenerationError for an id outside the vocabulary, or where every token is forbidden."""
        for name, ids in (("logit_bias", self.logit_bias), ("bad_words", [i for word in self.bad_words for i in word])):
            wrong = [i for i in ids if isinstance(i, bool) or not isinstance(i, int) or not 0 <= i < vocab_size]
            if wrong:
                raise GenerationError(f"{name} contains {wrong[0]!r}; the vocabulary is 0 to {vocab_size - 1}")
        never = {i for i, bias in self.logit_bias.items() if bias == -math.inf}
        if len(never | {word[0] for word in self.bad_words if len(word) == 1}) == vocab_size:
            raise GenerationError("logit_bias and bad_words forbid every token; leave at least one")


def compute_probs(logits: Tensor, params: DistributionParams) -> Tensor:
    """(B, V) logits → (B, V) float32 probabilities that a draw uses."""
    logits = logits.float()
    if params.temperature == 0:
        return torch.nn.functional.one_hot(logits.argmax(-1), logits.shape[-1]).float()
    if 0 < params.top_k < logits.shape[-1]:
        smallest = logits.topk(params.top_k, dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < smallest, -math.inf)
    # the maximum is shifted to 0 first: dividing by a small temperature would overflow it
    probs = torch.softmax((logits - logits.amax(-1, keepdim=True)) / params.temperature, dim=-1)
    truncated = probs
    if params.top_p < 1:
        truncated = _nucleus(truncated, params.top_p)
    if params.min_p > 0:
        truncated = truncated.masked_fill(probs < params.min_p * probs.amax(-1, keepdim=True), 0.0)
    return probs if truncated is probs else truncated / truncated.sum(-1, keepdim=True)


def _nucleus(probs: Tensor, top_p: float) -> Tensor:
    """Keeps the most likely ids that together reach top_p. They are usually few, and a sort of the whole vocabulary
    costs ten times a top-256."""
    n = min(256, probs.shape[-1])
    ordered, order = probs.topk(n, dim=-1)
    if n < probs.shape[-1] and bool((ordered.sum(-1) < top_p).any()):
        ordered, order = probs.sort(dim=-1, descending=True, stable=True)
    before = ordered.cumsum(-1) - ordered
    return torch.zeros_like(probs).scatter(-1, order, ordered.masked_fill(before >= top_p, 0.0))


def draw_uniform(seed: int, position: int, stream: str = "draw") -> float:
    """A number in [0, 1) that depends on (stream, seed, position) alone."""
    return float(torch.rand((), generator=generator(stream, seed, position), dtype=torch.float64))


def draw_tokens(probs: Tensor, seeds: list[int], positions: list[int], stream: str = "draw") -> Tensor:
    """(B, V) → (B,) tokens. Each row inverts its cumulative distribution at one uniform number of (its seed, its
    position), so that its token does not depend on the other rows."""
    numbers = torch.tensor(
        [draw_uniform(s, p, stream) for s, p in zip(seeds, positions, strict=True)], dtype=torch.float64
    )
    cumulative = probs.double().cumsum(-1)
    threshold = numbers.to(probs.device)[:, None] * cumulative[:, -1:]
    return torch.searchsorted(cumulative, threshold, right=True).squeeze(-1).clamp_max(probs.shape[-1] - 1)


def _argmax(logits: Tensor) -> Any:
    """(B, V) → (B,), the first of equals. NumPy's uses vector instructions: a tenth of the time on a CPU."""
    if logits.device.type == "cpu" and logits.dtype == torch.float32:
        return logits.detach().numpy().argmax(-1)
    return logits.argmax(-1)


def choose_tokens(
    logits: Tensor, params: Sequence[DistributionParams], seeds: list[int], positions: list[int]
) -> list[int]:
    """(B, V) → one token per row, each by its own parameters, seed and position. Rows with equal parameters are
    processed together."""
    tokens = [0] * len(params)
    for group in dict.fromkeys(params):
        rows = [row for row, other in enumerate(params) if other == group]
        selected = logits if len(rows) == len(params) else logits[rows]
        if group.temperature == 0:
            chosen = _argmax(selected)
        else:
            probs = compute_probs(selected, group)
            chosen = draw_tokens(probs, [seeds[r] for r in rows], [positions[r] for r in rows])
        for row, token in zip(rows, chosen.tolist(), strict=True):
            tokens[row] = token
    return tokens
