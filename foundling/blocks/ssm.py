# SPDX-License-Identifier: Apache-2.0
"""Mamba-2 (Dao & Gu 2024, "Transformers are SSMs"): chunks for training, single steps for decoding.

Letters beyond those of contracts: L chunk length, G groups of B and C, N state. `segments` number the documents of a
row; the decay across a document boundary is exactly zero. Padding has Δ = 0, which leaves the state unchanged.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foundling.blocks.context import Context
from foundling.blocks.conv import CausalConv
from foundling.contracts.cache import Slot, State


def ssd_chunked(
    x: Tensor, log_decay: Tensor, b: Tensor, c: Tensor, state: Tensor | None, segments: Tensor | None, chunk: int
) -> tuple[Tensor, Tensor]:
    """h_t = exp(log_decay_t) h_{t-1} + b_t x_tᵀ, y_t = c_t h_t, with matrix products within chunks and a recurrence
    between chunks (section 6, listing 1); quadratic only in `chunk`.

    x (B, T, H, P), multiplied by Δ; log_decay (B, T, H) ≤ 0; b, c (B, T, G, N); state (B, H, P, N) or None for zero;
    segments (B, T) or None -> y (B, T, H, P), state after the last token.
    """
    rows, steps, heads, width = x.shape
    groups, n = b.shape[2:]
    chunk = min(chunk, steps)
    pad = -steps % chunk
    if pad:
        x, log_decay, b, c = (F.pad(t, [0, 0] * (t.ndim - 2) + [0, pad]) for t in (x, log_decay, b, c))
        if segments is not None:
            segments = torch.cat((segments, segments[:, -1:].expand(-1, pad)), dim=1)
    x, log_decay, b, c = (t.unflatten(1, (-1, chunk)) for t in (x, log_decay, b, c))
    x = x.unflatten(3, (groups, -1))  # (B, c, L, G, H/G, P)
    log_decay = log_decay.unflatten(3, (groups, -1)).movedim(2, -1)  # (B, c, G, H/G, L)
    b, c = b.transpose(2, 3), c.transpose(2, 3)  # (B, c, G, L, N)
    # direct sums over each interval: differences of long sums would lose precision
    visible = torch.ones(chunk, chunk, dtype=torch.bool, device=x.device).tril()
    between = torch.where(visible.tril(-1), log_decay[..., None], 0).cumsum(-2)  # (B, c, G, H/G, L, L)
    until, after = log_decay.cumsum(-1), between[..., -1, :]
    into, out = torch.ones_like(visible[0]), torch.ones_like(visible[0])
    if segments is None:
        continues = x.new_ones(1, x.shape[1])
    else:
        s = segments.unflatten(1, (-1, chunk))
        visible = (visible & (s[:, :, :, None] == s[:, :, None]))[:, :, None, None]
        incoming = torch.cat((torch.zeros_like(s[:, :1, -1]), s[:, :-1, -1]), dim=1)  # segment of the incoming state
        into, out = (s == incoming[..., None])[:, :, None, None], (s == s[:, :, -1:])[:, :, None, None]
        continues = (incoming == s[:, :, -1]).to(x.dtype)
    decay = torch.exp(between.masked_fill(~visible, -math.inf))
    scores = (c @ b.mT)[:, :, :, None] * decay  # (B, c, G, H/G, L, L)
    within = scores @ x.movedim(2, -2)  # (B, c, G, H/G, L, P)

    # heads of a group share b and c: one product for all, each head's decay applied to the smaller operand
    to_end = (torch.exp(after) * out).movedim(-1, 2)[..., None]
    added = (x * to_end).flatten(4).movedim(2, -1) @ b  # (B, c, G, H/G · P, N)
    chunk_decay = torch.exp(until[..., -1]) * continues[..., None, None]  # (B, c, G, H/G)
    carried_state = x.new_zeros(rows, groups, heads // groups, width, n)
    carried_state = carried_state if state is None else state.unflatten(1, (groups, -1))
    states = []
    for decays, adds in zip(chunk_decay.unbind(1), added.unflatten(3, (-1, width)).unbind(1), strict=True):
        states.append(carried_state)
        carried_state = decays[..., None, None] * carried_state + adds
    from_start = (torch.exp(until) * into).movedim(-1, 2)[..., None]
    from_state = c @ torch.stack(states, 1).flatten(3, 4).mT  # (B, c, G, L, H/G · P)
    y = within.movedim(-2, 2) + from_state.movedim(3, 2).unflatten(-1, (-1, width)) * from_start
    return y.flatten(3, 4).flatten(1, 2)[:, :steps], carried_state.flatten(1, 2)


def ssd_step(x: Tensor, log_decay: Tensor, b: Tensor, c: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """One token of the same recurrence: x (B, H, P), log_decay (B, H), b, c (B, G, N), state (B, H, P, N)."""
    heads_per_group = x.shape[1] // b.shape[1]
    b, c = b.repeat_interleave(heads_per_group, 1), c.repeat_interleave(heads_per_group, 1)
    state = torch.exp(log_decay)[..., None, None] * state + x[..., None] * b[:, :, None]
    return (state * c[:, :, None]).sum(-1), state


def initial_dt_bias(channels: int, generator: torch.Generator) -> Tensor:
    """(C,): the inverse softplus of Δ from 0.001 to 0.1, uniform in the logarithm."""
    dt = torch.exp(torch.rand(channels, generator=generator) * math.log(100) + math.log(0.001))
    return dt + torch.log(-torch.expm1(-dt))


class GatedRMSNorm(nn.Module):
    """RMSNorm of x · silu(gate), in groups of the last axis, float32 (Dao & Gu 2024, section 7.1)."""

    def __init__(self, channels: int, groups: int, eps: float) -> None:
        super().__init__()
        self.groups, self.eps = groups, eps
        self.weight = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        y = (x.float() * F.silu(gate.float())).unflatten(-1, (self.groups, -1))
        y = F.rms_norm(y, y.shape[-1:], None, self.eps).flatten(-2)
        return (y * self.weight.float()).to(gate.dtype)


class Mamba2Mixer(nn.Module):
    def __init__(
        self,
        d_model: int,
        n_heads: int,
        head_dim: int,
        n_groups: int,
        d_state: int,
        d_conv: int,
        chunk: int,
        eps: float,
    ) -> None:
        super().__init__()
        self.n_heads, self.head_dim, self.n_groups, self.d_state, self.chunk = (
            n_heads, head_dim, n_groups, d_state, chunk,
        )  # fmt: skip
        inner, channels = n_heads * head_dim, n_heads * head_dim + 2 * n_groups * d_state
        self.widths = [inner, channels, n_heads]
        self.proj = nn.Linear(d_model, sum(self.widths), bias=False)
        self.conv = CausalConv(channels, d_conv)
        self.norm = GatedRMSNorm(inner, n_groups, eps)
        self.o = nn.Linear(inner, d_model, bias=False)
        self.log_rate = nn.Parameter(torch.zeros(n_heads))
        self.skip = nn.Parameter(torch.ones(n_heads))
        self.dt_bias = nn.Parameter(torch.zeros(n_heads))

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> None:
        """Rates from 1 to 16, Δ from 0.001 to 0.1, uniform in the logarithm, as in the authors' code."""
        rate = torch.rand(self.n_heads, generator=generator) * 15 + 1
        self.log_rate.copy_(rate.log())
        self.dt_bias.copy_(initial_dt_bias(self.n_heads, generator))
        self.skip.fill_(1.0)

    def sequence_flops(self, seq_len: int) -> int:
        """Forward, per token, besides the projections: scores and values within a chunk, reading and writing the
        state."""
        chunk, width = min(self.chunk, seq_len), self.n_heads * self.head_dim
        return 2 * chunk * (self.n_groups * self.d_state + width) + 4 * width * self.d_state

    def slots(self) -> tuple[Slot, ...]:
        return self.conv.slot(), State((self.n_heads, self.head_dim, self.d_state))

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        """x (B, T, D) -> (B, T, D); Δ, decay and state in float32."""
        segments, cache = ctx.segments, ctx.layer_cache
        gate, mixed, dt = self.proj(x).split(self.widths, dim=-1)
        dt = F.softplus(dt.float() + self.dt_bias.float())
        if ctx.documents is not None:
            dt = torch.where((ctx.documents >= 0)[..., None], dt, 0)
        mixed = F.silu(self.conv(mixed, ctx)).float()
        state_size = self.n_groups * self.d_state
        value, b, c = mixed.split([self.n_heads * self.head_dim, state_size, state_size], dim=-1)
        value = value.unflatten(-1, (self.n_heads, self.head_dim))
        b, c = (t.unflatten(-1, (self.n_groups, self.d_state)) for t in (b, c))
        log_decay, scaled = -self.log_rate.float().exp() * dt, value * dt[..., None]
        state = None if cache is None else cache.get(State)
        with torch.autocast(x.device.type, enabled=False):
            if state is not None and x.shape[1] == 1:
                if segments is not None:
                    state = state * (segments == 0)[..., None, None]
                y, state = ssd_step(scaled[:, 0], log_decay[:, 0], b[:, 0], c[:, 0], state)
                y = y[:, None]
            else:
                y, state = ssd_chunked(scaled, log_decay, b, c, state, segments, self.chunk)
        if cache is not None:
            cache.put(State, state)
        y = (y + value * self.skip.float()[:, None]).flatten(2)
        return self.o(self.norm(y, gate).to(x.dtype))
