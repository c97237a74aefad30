# SPDX-License-Identifier: Apache-2.0
"""RWKV-4 (Peng et al. 2023): time mixing by decaying sums, and channel mixing, both with a shift by one token.

The sums are stored as num · e^max and den · e^max, so large keys do not overflow. A tree combines them pairwise: 2 T
combinations in log T rounds. All computation is in float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foundling.blocks.context import Context
from foundling.blocks.conv import last_inputs
from foundling.contracts.cache import Conv, Slot, State

Sums = tuple[Tensor, Tensor, Tensor, Tensor]
"""Log decay over a run of tokens; num, den, max of the weighted values and weights at its end: (B, T, C) each."""
EMPTY_MAX = -1e38
"""The max of an empty sum."""


def prefix_scan(items: Sums, combine: Callable[[Sums, Sums], Sums]) -> Sums:
    """Combines items[:, 0] … items[:, t], for every t: neighbours first, then their pairs (Blelloch 1990)."""

    def take(sums: Sums, positions: slice) -> Sums:
        return tuple(t[:, positions] for t in sums)  # pyright: ignore[reportReturnType]

    steps = items[0].shape[1]
    if steps == 1:
        return items
    odd = prefix_scan(combine(take(items, slice(0, steps - 1, 2)), take(items, slice(1, None, 2))), combine)
    even = combine(take(odd, slice(0, (steps - 1) // 2)), take(items, slice(2, None, 2)))
    joined = []
    for item, one, two in zip(items, even, odd, strict=True):
        one = torch.cat((item[:, :1].expand(one.shape[0], -1, -1), one), 1)
        both = torch.stack((one[:, : two.shape[1]], two), 2).flatten(1, 2)
        joined.append(torch.cat((both, one[:, two.shape[1] :]), 1))
    return tuple(joined)  # pyright: ignore[reportReturnType]


def combine(left: Sums, right: Sums) -> Sums:
    """Combines two adjacent runs: the left one decays over the length of the right one."""
    carried = left[3] + right[0]
    maximum = torch.maximum(carried, right[3])
    a, b = torch.exp(carried - maximum), torch.exp(right[3] - maximum)
    return left[0] + right[0], a * left[1] + b * right[1], a * left[2] + b * right[2], maximum


def wkv(
    k: Tensor, v: Tensor, rate: Tensor, bonus: Tensor, state: Tensor | None, segments: Tensor | None
) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
    """Σ_{j<t} e^{k_j − (t−1−j) rate} v_j + e^{k_t + bonus} v_t over the same sum without v (eq. 16), within
    each document.

    k, v (B, T, C); rate, bonus (C,), rate > 0; state (B, 3, C): num, den, max, with den = 0 for an empty state;
    segments (B, T) or None -> (B, T, C); num, den and max before the first and after each token, (B, 1 + T, C) each.
    """
    rows, steps, channels = k.shape
    boundaries = k.new_zeros(1, steps, 1)
    if segments is not None:  # the decay across a document boundary is zero
        boundary = segments != F.pad(segments, (1, 0))[:, :-1]
        boundaries = torch.where(boundary, -math.inf, 0.0)[..., None]
    if state is None:
        state = k.new_zeros(rows, 3, channels)
    num, den, maximum = state[:, None].unbind(2)
    maximum = torch.where(den > 0, maximum, EMPTY_MAX)
    one = torch.ones_like(v)
    items = (
        F.pad(boundaries - rate, (0, 0, 1, 0)),
        torch.cat((num, v), 1),
        torch.cat((den, one), 1),
        torch.cat((maximum, k), 1),
    )
    _, num, den, maximum = prefix_scan(items, combine)
    previous = (boundaries, num[:, :-1], den[:, :-1], maximum[:, :-1])
    _, numerator, denominator, _ = combine(previous, (boundaries, v, one, k + bonus))
    return numerator / denominator, (num, den, maximum)


def shifted(x: Tensor, segments: Tensor | None, past: Tensor | None) -> Tensor:
    """x (B, T, C), past (B, 1, C) the previous input or None -> (B, T, C): each document's inputs one token later."""
    past = torch.zeros_like(x[:, :1]) if past is None else past.to(x.dtype)
    previous = torch.cat((past, x[:, :-1]), 1)
    if segments is None:
        return previous
    return torch.where((segments == F.pad(segments, (1, 0))[:, :-1])[..., None], previous, 0)


class Mixing(nn.Module):
    """Base of both mixers: interpolates the inputs of each token and the previous one (eq. 11 to 13), and caches one
    token."""

    def __init__(self, d_model: int, depth: tuple[int, int]) -> None:
        """`depth`: the layer's index and the number of layers, used by the initial values."""
        super().__init__()
        self.d_model, self.depth = d_model, depth

    def slots(self) -> tuple[Slot, ...]:
        return (Conv(self.d_model, 1),)

    def previous(self, x: Tensor, ctx: Context) -> Tensor:
        """x (B, T, D) -> (B, T, D), one token later within each document."""
        cache = ctx.layer_cache
        past = None if cache is None else cache.get(Conv)
        previous = shifted(x, ctx.segments, past)
        if cache is not None and past is not None and ctx.documents is not None:  # put last, since it overwrites `past`
            cache.put(Conv, last_inputs(x, past, ctx.documents, ctx.segments))
        return previous

    def spread(self, power: float) -> Tensor:
        """The weight of the token itself, rising from 0 to 1 over the channels, faster in deeper layers."""
        share = torch.arange(self.d_model) / self.d_model
        return share ** (power * (1 - self.depth[0] / self.depth[1]))


class TimeMix(Mixing):
    """o(σ(r) · wkv(k, v)) (eq. 11 to 17)."""

    def __init__(self, d_model: int, depth: tuple[int, int]) -> None:
        super().__init__(d_model, depth)
        self.mix_k, self.mix_v, self.mix_r = (nn.Parameter(torch.zeros(d_model)) for _ in range(3))
        self.k, self.v, self.r = (nn.Linear(d_model, d_model, bias=False) for _ in range(3))
        self.o = nn.Linear(d_model, d_model, bias=False)
        self.log_rate, self.bonus = (nn.Parameter(torch.zeros(d_model)) for _ in range(2))

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> None:
        """Rates from slow to fast over the channels, a bonus that alternates between neighbours (the paper's appendix
        on initialisation)."""
        layer, layers = self.depth
        depth_share = layer / max(1, layers - 1)
        channel = torch.arange(self.d_model)
        self.log_rate.copy_(-5 + 8 * (channel / max(1, self.d_model - 1)) ** (0.7 + 1.3 * depth_share))
        self.bonus.copy_(math.log(0.3) + 0.5 * ((channel + 1) % 3 - 1))
        self.mix_k.copy_(self.spread(1.0))
        self.mix_v.copy_(self.spread(1.0) + 0.3 * depth_share)
        self.mix_r.copy_(self.spread(0.5))

    def sequence_flops(self, seq_len: int) -> int:
        """Forward, per token, besides the projections: two combinations in the tree and one for the output, of ten
        operations each."""
        return 30 * self.d_model

    def slots(self) -> tuple[Slot, ...]:
        return (*super().slots(), State((3, self.d_model)))

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        """x (B, T, D) -> (B, T, D)"""
        previous, cache = self.previous(x, ctx), ctx.layer_cache
        k, v, r = (
            linear(x * mix + previous * (1 - mix))
            for linear, mix in ((self.k, self.mix_k), (self.v, self.mix_v), (self.r, self.mix_r))
        )
        with torch.autocast(x.device.type, enabled=False):
            mixed, sums = wkv(
                k.float(), v.float(), self.log_rate.float().exp(), self.bonus.float(),
                None if cache is None else cache.get(State), ctx.segments,
            )  # fmt: skip
        if cache is not None and ctx.documents is not None:  # the state after the last real token
            real = (ctx.documents >= 0).sum(1)
            rows = torch.arange(len(real), device=real.device)
            cache.put(State, torch.stack([t[rows, real] for t in sums], 1))
        return self.o(torch.sigmoid(r) * mixed.to(r.dtype))


class ChannelMix(Mixing):
    """σ(r) · down(relu(up)²) (eq. 18)."""

    def __init__(self, d_model: int, d_ff: int, depth: tuple[int, int]) -> None:
        super().__init__(d_model, depth)
        self.mix_k, self.mix_r = (nn.Parameter(torch.zeros(d_model)) for _ in range(2))
        self.up = nn.Linear(d_model, d_ff, bias=False)
        self.r = nn.Linear(d_model, d_model, bias=False)
        self.down = nn.Linear(d_ff, d_model, bias=False)

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> None:
        self.mix_k.copy_(self.spread(1.0))
        self.mix_r.copy_(self.spread(1.0))

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        """x (B, T, D) -> (B, T, D)"""
        previous = self.previous(x, ctx)
        up = self.up(x * self.mix_k + previous * (1 - self.mix_k))
        gate = torch.sigmoid(self.r(x * self.mix_r + previous * (1 - self.mix_r)))
        return gate * self.down(F.relu(up).square())
