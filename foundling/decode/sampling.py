# SPDX-License-Identifier: Apache-2.0
"""From logits to a token: temperature, top-k, top-p (Holtzman et al. 2020), drawn by each row's seed and position."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from foundling.errors import GenerationError
from foundling.runtime import generator


@dataclass(frozen=True)
class Sampling:
    """temperature 0 takes the likeliest; top_k 0 and top_p 1 leave the distribution whole."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if not (0 <= self.temperature < math.inf):
            raise GenerationError(f"temperature is {self.temperature}; expected 0 (greedy) or a positive number")
        if self.top_k < 0:
            raise GenerationError(f"top_k is {self.top_k}; expected 0 (off) or more")
        if not 0 < self.top_p <= 1:
            raise GenerationError(f"top_p is {self.top_p}; expected above 0, up to 1 (off)")


def distribution(logits: Tensor, sampling: Sampling) -> Tensor:
    """(B, V) logits -> (B, V) float32 probabilities that a draw would use."""
    logits = logits.float()
    if sampling.temperature == 0:
        return torch.nn.functional.one_hot(logits.argmax(-1), logits.shape[-1]).float()
    if 0 < sampling.top_k < logits.shape[-1]:
        least = logits.topk(sampling.top_k, dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < least, -math.inf)
    probs = torch.softmax(logits / sampling.temperature, dim=-1)
    if sampling.top_p < 1:
        ordered, order = probs.sort(dim=-1, descending=True, stable=True)
        before = ordered.cumsum(-1) - ordered
        ordered = ordered.masked_fill(before >= sampling.top_p, 0.0)
        probs = torch.zeros_like(probs).scatter(-1, order, ordered)
        probs = probs / probs.sum(-1, keepdim=True)
    return probs


def uniform(seed: int, position: int, stream: str = "draw") -> float:
    """A number in [0, 1) from (stream, seed, position) alone."""
    return float(torch.rand((), generator=generator(stream, seed, position), dtype=torch.float64))


def draw(probs: Tensor, seeds: list[int], positions: list[int], stream: str = "draw") -> Tensor:
    """(B,) tokens, each row by inverse transform of one uniform number from (its seed, its position): what a row draws
    does not depend on its neighbours."""
    numbers = torch.tensor([uniform(s, p, stream) for s, p in zip(seeds, positions, strict=True)], dtype=torch.float64)
    cumulative = probs.double().cumsum(-1)
    threshold = numbers.to(probs.device)[:, None] * cumulative[:, -1:]
    return torch.searchsorted(cumulative, threshold, right=True).squeeze(-1).clamp_max(probs.shape[-1] - 1)
