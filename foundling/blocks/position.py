# SPDX-License-Identifier: Apache-2.0
"""Positions: counted within each document, and encoded by a learned table, as sinusoids or as rotations (RoPE)."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from foundling.errors import ConfigError, GenerationError


def positions_of(tokens: Tensor, documents: Tensor | None) -> Tensor:
    """(B, T) or (1, T) int64: the position of each token in its own document, so that a packed row equals its documents
    read separately."""
    steps = torch.arange(tokens.shape[1], device=tokens.device)[None]
    if documents is None:
        return steps
    begins = torch.ones_like(documents, dtype=torch.bool)
    begins[:, 1:] = documents[:, 1:] != documents[:, :-1]
    return steps - torch.where(begins, steps, 0).cummax(dim=1).values


def sinusoids(positions: Tensor, d_model: int) -> Tensor:
    """positions (B or 1, T) -> (B or 1, T, D) float32: sin and cos of one rate side by side, the rates falling from 1
    to 1/10000 (Vaswani et al. 2017, section 3.5)."""
    powers = torch.arange(0, d_model, 2, device=positions.device, dtype=torch.float32) / d_model
    angles = positions[..., None].float() / 10000.0**powers
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(-2)


class PositionTable(nn.Embedding):
    """A learned vector for each of `max_positions` positions; position 0 reads row `first`. A model with a table reads
    no text longer than that: the stack that calls it checks by `check_positions`."""

    def __init__(self, max_positions: int, d_model: int, first: int = 0) -> None:
        super().__init__(max_positions + first, d_model)
        self.max_positions, self.first = max_positions, first

    def forward(self, positions: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """positions (B or 1, T) -> (B or 1, T, D)"""
        return super().forward(positions + self.first)


def position_limit(model: nn.Module) -> int | None:
    """How many positions every PositionTable of the model has; None without a table."""
    return min((m.max_positions for m in model.modules() if isinstance(m, PositionTable)), default=None)


def check_positions(limit: int | None, positions: Tensor, bound: int | None) -> None:
    """GenerationError where a position of (B or 1, T) is not below `limit`. `bound`, if not None, is a number that all
    positions are known to be below: only where it exceeds the limit are they read from the device."""
    if limit is None or (bound is not None and bound <= limit):
        return
    if positions.numel() and int(positions.max()) >= limit:
        raise GenerationError(f"a text is longer than the {limit} tokens that the model reads; shorten it")


Rotation = tuple[Tensor, Tensor]
"""cos and sin, (B or 1, 1, T, P) float32, the halves of P repeated."""


@dataclass(frozen=True)
class RopeScaling:
    """How a model reads beyond the length that it was first trained at: `linear` slows every rotation by `factor` (Chen
    et al. 2023); `llama3` slows those of less than low_freq_factor turns over original_max_seq_len, interpolating up to
    high_freq_factor turns (Grattafiori et al. 2024, section 3.4.2 and its code)."""

    kind: Literal["linear", "llama3"]
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_seq_len: int = 8192

    def __post_init__(self) -> None:
        if self.factor < 1 or not 0 < self.low_freq_factor <= self.high_freq_factor:
            raise ConfigError(
                f"rope_scaling {self} makes no sense: factor >= 1, 0 < low_freq_factor <= high_freq_factor"
            )

    def slowed(self, rates: Tensor) -> Tensor:
        if self.kind == "linear":
            return rates / self.factor
        turns = self.original_max_seq_len * rates / (2 * math.pi)
        passage = max(self.high_freq_factor - self.low_freq_factor, 1e-9)
        kept = ((turns - self.low_freq_factor) / passage).clamp(0, 1)
        return (1 - kept) * rates / self.factor + kept * rates


class RoPE(nn.Module):
    """Rotary positions (Su et al. 2021, RoFormer, section 3.4.2); the halves of a head are paired, as in Llama."""

    def __init__(self, head_dim: int, theta: float, scaling: RopeScaling | None = None) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.theta, self.scaling = theta, scaling

    def forward(self, positions: Tensor) -> Rotation:
        """positions (B or 1, T) -> (cos, sin)"""
        powers = torch.arange(0, self.head_dim, 2, device=positions.device, dtype=torch.float32) / self.head_dim
        rates = 1.0 / self.theta**powers
        angles = positions[..., None].float() * (rates if self.scaling is None else self.scaling.slowed(rates))
        angles = torch.cat((angles, angles), dim=-1)[:, None]
        return angles.cos(), angles.sin()


def rotate(x: Tensor, rotation: Rotation) -> Tensor:
    """x (B, H, T, P) rotated by its position, in x's dtype; a rotation narrower than P applies to the first
    channels."""
    cos, sin = rotation
    width = cos.shape[-1]
    if width < x.shape[-1]:
        return torch.cat((rotate(x[..., :width], rotation), x[..., width:]), dim=-1)
    half = x.shape[-1] // 2
    turned = torch.cat((-x[..., half:], x[..., :half]), dim=-1)
    return (x * cos + turned * sin).to(x.dtype)
