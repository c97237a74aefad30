# SPDX-License-Identifier: Apache-2.0
"""Selective state spaces (Gu & Dao 2023, "Mamba", S6): a state of N numbers per channel, each with its own decay.

Letters beyond those of contracts: L chunk length. Since every channel and state has its own decay, a chunk is not a
matrix product as in ssm.py: chunks run one after the other, the positions of a chunk in a parallel scan.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foundling.blocks.context import Context
from foundling.blocks.conv import CausalConv
from foundling.blocks.init import Role
from foundling.blocks.ssm import initial_dt_bias
from foundling.contracts.cache import Slot, State


def scan_(decay: Tensor, x: Tensor, *, backwards: bool = False) -> None:
    """h_t = decay_t h_{t-1} + x_t along dim 1, from zero, in place: x becomes h, and decay is overwritten. `backwards`:
    h_t = decay_t h_{t+1} + x_t.

    Combines pairs of neighbours, scans the pairs, then computes the remaining positions (Brent & Kung 1982): 3 T
    multiplications in log T steps. It never divides by a decay, so vanishing decays lose no precision."""
    n = x.shape[1]
    if n < 2:
        return
    if backwards:
        first, beside, remaining, finished = n % 2, n % 2 + 1, slice(1 - n % 2, n - 2, 2), slice(2 - n % 2, n - 1, 2)
    else:
        first, beside, remaining, finished = 1, 0, slice(2, None, 2), slice(1, n - 1, 2)
    targets, neighbours = slice(first, None, 2), slice(beside, beside + 2 * (n // 2), 2)
    x[:, targets].addcmul_(decay[:, targets], x[:, neighbours])
    decay[:, targets].mul_(decay[:, neighbours])
    scan_(decay[:, targets], x[:, targets], backwards=backwards)
    x[:, remaining].addcmul_(decay[:, remaining], x[:, finished])


def _chunk(
    x: Tensor, dt: Tensor, rate: Tensor, b: Tensor, fresh: Tensor | None, start: Tensor
) -> tuple[Tensor, Tensor]:
    """The inputs of one chunk's scan: decays and values (B, L, N, C), with the state before the chunk added."""
    span = dt if fresh is None else dt.masked_fill(fresh[..., None], math.inf)  # exp(−∞) = 0 drops the earlier state
    decay = (span[:, :, None] * -rate).exp_()
    inputs = (x * dt)[:, :, None] * b[..., None]
    inputs[:, 0].addcmul_(decay[:, 0], start)
    return decay, inputs


def product(a: Tensor, b: Tensor) -> Tensor:
    """a @ b in their own dtype, also under autocast, which reaches into custom operators."""
    with torch.autocast(a.device.type, enabled=False):
        return a @ b


@torch.library.custom_op("foundling::selective_scan", mutates_args=())
def selective_scan(
    x: Tensor, dt: Tensor, rate: Tensor, b: Tensor, c: Tensor, fresh: Tensor | None, state: Tensor, chunk: int
) -> tuple[Tensor, Tensor, Tensor]:
    """h_t = exp(−rate Δ_t) h_{t-1} + Δ_t x_t b_t, y_t = h_t · c_t (section 3.2, algorithm 2; Δ b is Euler's, as the
    authors' code has it).

    x, dt (B, T, C); rate (N, C) > 0; b, c (B, T, N); fresh (B, T) bool, where a document begins, or None; state
    (B, N, C); all float32 -> y (B, T, C), the state after the last token, and the states before each chunk
    (B, T/L, N, C). The backward pass recomputes the other states from these; (B, T, N, C) is never stored.

    A custom operator, so that the graph has one node for any T and memory for one chunk."""
    y, starts = torch.empty_like(x), []
    for first in range(0, x.shape[1], chunk):
        positions = slice(first, first + chunk)
        starts.append(state)
        fresh_ = None if fresh is None else fresh[:, positions]
        decay, h = _chunk(x[:, positions], dt[:, positions], rate, b[:, positions], fresh_, state)
        scan_(decay, h)
        y[:, positions] = product(c[:, positions, None], h)[:, :, 0]
        state = h[:, -1].clone()
    return y, state, torch.stack(starts, 1)


@selective_scan.register_fake
def _(
    x: Tensor, dt: Tensor, rate: Tensor, b: Tensor, c: Tensor, fresh: Tensor | None, state: Tensor, chunk: int
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(state), state.new_empty(len(x), -(-x.shape[1] // chunk), *rate.shape)


@torch.library.custom_op("foundling::selective_scan_backward", mutates_args=())
def selective_scan_backward(
    grad: Tensor, grad_state: Tensor, x: Tensor, dt: Tensor, rate: Tensor, b: Tensor, c: Tensor, fresh: Tensor | None,
    starts: Tensor, chunk: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """The gradient of h_t is a scan in reverse: λ_t = decay_{t+1} λ_{t+1} + grad_t c_t."""
    grad_x, grad_dt, grad_rate = torch.empty_like(x), torch.empty_like(dt), torch.zeros_like(rate)
    grad_b, grad_c = torch.empty_like(b), torch.empty_like(c)
    for index in reversed(range(starts.shape[1])):
        positions, start = slice(index * chunk, (index + 1) * chunk), starts[:, index]
        x_, dt_, b_, grad_ = x[:, positions], dt[:, positions], b[:, positions], grad[:, positions]
        decay, h = _chunk(x_, dt_, rate, b_, None if fresh is None else fresh[:, positions], start)
        scratch = decay.clone()
        scan_(scratch, h)
        grad_c[:, positions] = product(h, grad_[..., None])[..., 0]

        back = grad_[:, :, None] * c[:, positions, :, None]  # λ
        back[:, -1] += grad_state
        scratch[:, :-1] = decay[:, 1:]
        scan_(scratch, back, backwards=True)
        grad_b[:, positions] = product(back, (x_ * dt_)[..., None])[..., 0]
        grad_input = product(b_[:, :, None], back)[:, :, 0]
        grad_x[:, positions] = grad_input * dt_
        grad_state = decay[:, 0] * back[:, 0]

        exponent = decay.mul_(back)  # becomes the gradient of −rate Δ_t: λ_t decay_t h_{t-1}
        exponent[:, 1:] *= h[:, :-1]
        exponent[:, 0] *= start
        grad_dt[:, positions] = grad_input * x_ - torch.mul(exponent, rate, out=scratch).sum(2)
        grad_rate -= exponent.mul_(dt_[:, :, None]).sum((0, 1))
    return grad_x, grad_dt, grad_rate, grad_b, grad_c, grad_state


@selective_scan_backward.register_fake
def _(
    grad: Tensor, grad_state: Tensor, x: Tensor, dt: Tensor, rate: Tensor, b: Tensor, c: Tensor, fresh: Tensor | None,
    starts: Tensor, chunk: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    return *(torch.empty_like(t) for t in (x, dt, rate, b, c)), torch.empty_like(grad_state)  # pyright: ignore


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    *tensors, _, ctx.chunk = inputs
    ctx.save_for_backward(*tensors, output[2])


def _backward(ctx: Any, grad: Tensor, grad_state: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    x, dt, rate, b, c, fresh, starts = ctx.saved_tensors
    *grads, grad_start = selective_scan_backward(grad, grad_state, x, dt, rate, b, c, fresh, starts, ctx.chunk)
    return *grads, None, grad_start, None


selective_scan.register_autograd(_backward, setup_context=_setup)


class SelectiveMixer(nn.Module):
    """A gated convolution and a selective state space (section 3.4, figure 3). `norm` builds a norm of a given
    width, applied to Δ, b and c (Lieber et al. 2024, Jamba, section 2)."""

    def __init__(
        self, d_model: int, d_inner: int, d_state: int, d_conv: int, dt_rank: int, chunk: int,
        *, norm: Callable[[int], nn.Module] | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.d_inner, self.d_state, self.chunk = d_inner, d_state, chunk
        self.widths = [dt_rank, d_state, d_state]
        self.proj = nn.Linear(d_model, 2 * d_inner, bias=False)
        self.conv = CausalConv(d_inner, d_conv)
        self.select = nn.Linear(d_inner, sum(self.widths), bias=False)
        self.norms = nn.ModuleList([norm(width) for width in self.widths] if norm else [])
        self.dt = nn.Linear(dt_rank, d_inner, bias=False)
        self.o = nn.Linear(d_inner, d_model, bias=False)
        self.select.start_gain = self.dt.start_gain = 3**-0.5  # pyright: ignore  uniform within ±1/√fan_in, as in the reference code
        self.log_rate = nn.Parameter(torch.zeros(d_inner, d_state))
        self.skip = nn.Parameter(torch.ones(d_inner))
        self.dt_bias = nn.Parameter(torch.zeros(d_inner))

    def roles(self) -> dict[str, Role]:
        """Rates are one number per state and channel, not a matrix that multiplies activations."""
        return {name: Role("vector", 1) for name in ("log_rate", "skip", "dt_bias")}

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> None:
        """Rates from 1 to N in every channel, Δ from 0.001 to 0.1 (section 3.6)."""
        self.log_rate.copy_(torch.arange(1, self.d_state + 1).log().expand_as(self.log_rate))
        self.dt_bias.copy_(initial_dt_bias(self.d_inner, generator))
        self.skip.fill_(1.0)

    def sequence_flops(self, seq_len: int) -> int:
        """Forward, per token, besides the projections. Per element of the state: 2 for the decay, 1 for the input,
        5 for the scan, 2 for the output."""
        return 10 * self.d_inner * self.d_state

    def slots(self) -> tuple[Slot, ...]:
        return self.conv.slot(), State((self.d_state, self.d_inner))

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        """x (B, T, D) -> (B, T, D); Δ, decay and state in float32."""
        documents, segments, cache = ctx.documents, ctx.segments, ctx.layer_cache
        fresh = None if segments is None else segments != F.pad(segments, (1, 0))[:, :-1]
        value, gate = self.proj(x).chunk(2, dim=-1)
        value = F.silu(self.conv(value, ctx))
        low, b, c = self.select(value).split(self.widths, dim=-1)
        if self.norms:
            low, b, c = (norm(part) for norm, part in zip(self.norms, (low, b, c), strict=True))
        dt = F.softplus(self.dt(low).float() + self.dt_bias.float())
        if documents is not None:  # Δ = 0 leaves the state unchanged
            dt = torch.where((documents >= 0)[..., None], dt, 0)
        value, rate = value.float(), self.log_rate.float().exp().T.contiguous()
        state = value.new_zeros(len(x), *rate.shape) if cache is None else cache.get(State)
        y, state, _ = selective_scan(value, dt, rate, b.float(), c.float(), fresh, state, self.chunk)
        if cache is not None:
            cache.put(State, state)
        y = (y + value * self.skip.float()) * F.silu(gate.float())
        return self.o(y.to(x.dtype))
