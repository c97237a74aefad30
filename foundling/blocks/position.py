# SPDX-License-Identifier: Apache-2.0
"""Positions: counted within each document, and encoded by a learned table, as sinusoids or as rotations (RoPE)."""

import torch
from torch import Tensor, nn

from foundling.blocks.rope_scaling import RopeScaling as RopeScaling
from foundling.errors import GenerationError


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
    """How many positions every PositionTable of the model has, and a RoPE that ends somewhere; None without one."""
    limits = [m.max_positions for m in model.modules() if isinstance(m, PositionTable | RoPE)]
    return min((limit for limit in limits if limit is not None), default=None)


def short_limit(model: nn.Module) -> int | None:
    """The longest text that longrope scaling rotates as a short one; None where a text's length changes no rotation."""
    limits = [m.short_limit for m in model.modules() if isinstance(m, RoPE)]
    return min((limit for limit in limits if limit is not None), default=None)


def check_positions(limit: int | None, positions: Tensor, bound: int | None) -> None:
    """GenerationError where a position of (B or 1, T) is not below `limit`. `bound`, if not None, is a number that all
    positions are known to be below: only where it exceeds the limit are they read from the device."""
    if limit is None or (bound is not None and bound <= limit):
        return
    if positions.numel() and int(positions.max()) >= limit:
        raise GenerationError(f"a text is longer than the {limit} tokens that the model reads; shorten it")


Rotation = tuple[Tensor, Tensor]
"""cos and sin, (B or 1, 1, T, P) float32, the halves of P repeated."""


class RoPE(nn.Module):
    """Rotary positions (Su et al. 2021, RoFormer, section 3.4.2); the halves of a head are paired, as in Llama."""

    def __init__(
        self, head_dim: int, theta: float, scaling: RopeScaling | None = None, *, max_positions: int | None = None
    ) -> None:
        """`head_dim` is how many channels are rotated; `max_positions` is that of the model, beyond which `dynamic`
        scaling refuses to read."""
        super().__init__()
        self.head_dim = head_dim
        self.theta, self.scaling = theta, scaling
        kind = None if scaling is None else scaling.kind
        self.max_positions = max_positions if kind == "dynamic" else None
        self.short_limit = scaling.original_max_seq_len if scaling is not None and kind == "longrope" else None
        if scaling is not None:
            scaling.check(head_dim, theta)

    def check_continuation(self, lengths: Tensor, positions: Tensor, span: int) -> None:
        """GenerationError where a text of a cache, of `lengths` (B,) so far, becomes a long one with these positions
        (B, T): its cached keys were rotated as those of a short one. `span`: the longest row of the cache."""
        limit = self.short_limit
        if limit is None or span <= limit:
            return
        if bool(((lengths > 0) & (positions[:, 0] <= limit) & (positions.amax(1) >= limit)).any()):
            raise GenerationError(
                f"a text grows beyond {limit} tokens in a cache, where longrope rotates all of it anew; read it at "
                f"once, or keep prompt and answer within {limit} tokens"
            )

    def forward(self, positions: Tensor) -> Rotation:
        """positions (B or 1, T) -> (cos, sin)"""
        powers = torch.arange(0, self.head_dim, 2, device=positions.device, dtype=torch.float32) / self.head_dim
        rates, scaling = 1.0 / self.theta**powers, self.scaling
        if scaling is not None:
            rates = scaling.slowed(rates, self.theta, positions)
        angles = positions[..., None].float() * rates
        angles = torch.cat((angles, angles), dim=-1)[:, None]
        cos, sin = angles.cos(), angles.sin()
        return (cos, sin) if scaling is None or scaling.gain == 1 else (cos * scaling.gain, sin * scaling.gain)


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
