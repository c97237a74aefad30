# SPDX-License-Identifier: Apache-2.0
"""Long short-term memory (Hochreiter & Schmidhuber 1997, with the forget gate of Gers et al. 2000).

Letters beyond those of contracts: H here is the width of the state, G = 4 H, the gates i, f, g, o in torch's order.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foundling.blocks.attention import MemoryReader
from foundling.blocks.context import Context
from foundling.blocks.mask import compute_dtype
from foundling.contracts.cache import Cross, Slot, State

PADDED = 1.25
"""Documents of a batch are computed as sequences of one length where that takes at most so many times its tokens."""
RESERVED = 12
"""Numbers for each of h that torch's operator keeps for its backward pass, beside those of ours: 738 MiB for 4 layers
of 256 at 16,384 tokens."""


class _Reserve(torch.autograd.Function):
    """Keeps `n` numbers for the backward pass, for whoever counts them."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, n: int) -> Tensor:
        ctx.save_for_backward(y.new_empty(n))
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        return grad, None


def cell(gates: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """gates (B, G), before their functions, and c (B, H) -> the next h and c: c = f c + i g, h = o tanh(c). By the same
    operations as `lstm`, so that both give the same bits."""
    width = c.shape[1]
    (i, f), o = torch.sigmoid(gates[:, : 2 * width]).chunk(2, -1), torch.sigmoid(gates[:, 3 * width :])
    c = torch.addcmul(f * c, i, torch.tanh(gates[:, 2 * width : 3 * width]))
    return o * torch.tanh(c), c


def _linear(x: Tensor, weight: Tensor | None) -> Tensor:
    """In their own dtype, also under autocast, which reaches into custom operators; x without a weight."""
    if weight is None:
        return x
    with torch.autocast(x.device.type, enabled=False):
        return F.linear(x, weight)


def _is_whole(carry: Tensor) -> bool:
    """Whether the state goes from each token to the next; elsewhere than on a CPU it is not waited for."""
    return carry.device.type == "cpu" and bool(carry[1:].all())


@torch.library.custom_op("foundling::lstm", mutates_args=())
def lstm(
    gates: Tensor, weight: Tensor, proj: Tensor | None, start: Tensor, carry: Tensor, begin: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """All steps of one layer. gates (T, B, G), what the inputs add to them; weight (G, H), by which h adds to them, or
    weight (G, P) and proj (P, H), by which proj h does: of one dtype, that of the products. float32: start (2, B, H),
    h and c before the first token, and begin (T, 2, B, H), what they are where a document begins, (0, 2, B, H) for
    zero; carry (T, B, 1) bool, False where one begins. -> h and c (T, B, H) and the gates after their functions
    (T, B, G), float32.

    A custom operator, so that a compiled graph has one node for any T. No gradient flows through c."""
    (steps, rows, _), width = gates.shape, start.shape[2]
    hs, cs = (start.new_empty(steps, rows, width) for _ in range(2))
    active, whole = start.new_empty(gates.shape), _is_whole(carry)
    h, c = start
    for t in range(steps):
        if t == 0 or not whole:
            h, c = (torch.where(carry[t], s, begin[t, k] if len(begin) else 0.0) for k, s in enumerate((h, c)))
        a = active[t]
        torch.add(gates[t].float(), _linear(_linear(h.to(weight.dtype), proj), weight), out=a)
        a[:, : 2 * width].sigmoid_()
        a[:, 2 * width : 3 * width].tanh_()
        a[:, 3 * width :].sigmoid_()
        i, f, g, o = a.chunk(4, -1)
        c = torch.mul(f, c, out=cs[t]).addcmul_(i, g)
        h = torch.mul(o, c.tanh(), out=hs[t])
    return hs, cs, active


@lstm.register_fake
def _(
    gates: Tensor, weight: Tensor, proj: Tensor | None, start: Tensor, carry: Tensor, begin: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    hs, cs = (start.new_empty(*gates.shape[:2], start.shape[2]) for _ in range(2))
    return hs, cs, start.new_empty(gates.shape)


@torch.library.custom_op("foundling::lstm_backward", mutates_args=())
def lstm_backward(
    grad: Tensor, weight: Tensor, proj: Tensor | None, start: Tensor, carry: Tensor, begin: Tensor, hs: Tensor,
    cs: Tensor, active: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """The gradients of gates, weight, proj, start and begin. What does not follow from the step after is computed for
    all steps at once; the gradient of each matrix is one product."""
    steps, rows, width = hs.shape
    before = torch.cat((start[:, None], torch.stack((hs, cs))[:, :-1]), 1)
    before = torch.where(carry, before, begin.transpose(0, 1) if len(begin) else 0.0)
    i, f, g, o = active.chunk(4, -1)
    tanh = cs.tanh()
    # of the gates, for a gradient of c (the first three) or of h (o), and of c for one of h
    slopes = torch.cat((g * i * (1 - i), before[1] * f * (1 - f), i * (1 - g * g), tanh * o * (1 - o)), -1)
    slopes, into_c = slopes.view(steps, rows, 4, width), o * (1 - tanh * tanh)
    grads, whole = torch.empty_like(slopes), _is_whole(carry)
    grad_begin, back = torch.zeros_like(begin), torch.zeros_like(start)
    transposed = [w.t().contiguous() for w in (weight, proj) if w is not None]
    for t in reversed(range(steps)):
        dh = grad[t] + back[0]
        dc = torch.addcmul(back[1], dh, into_c[t])
        torch.mul(slopes[t, :, :3], dc[:, None], out=grads[t, :, :3])
        torch.mul(slopes[t, :, 3], dh, out=grads[t, :, 3])
        dh = grads[t].view(rows, -1).to(weight.dtype)
        for matrix in transposed:
            dh = _linear(dh, matrix)
        back = torch.stack((dh.float(), dc * f[t]))
        if t == 0 or not whole:
            if len(begin):
                grad_begin[t] = torch.where(carry[t], 0.0, back)
            back = torch.where(carry[t], back, 0.0)
    flat, h = grads.view(steps * rows, -1).to(weight.dtype), before[0].reshape(-1, width).to(weight.dtype)
    grad_proj = weight.new_empty(0)
    if proj is not None:
        grad_proj = _linear(_linear(flat, transposed[0]).t(), h.t())
        h = _linear(h, proj)
    return flat.view(active.shape), _linear(flat.t(), h.t()), grad_proj, back, grad_begin


@lstm_backward.register_fake
def _(
    grad: Tensor, weight: Tensor, proj: Tensor | None, start: Tensor, carry: Tensor, begin: Tensor, hs: Tensor,
    cs: Tensor, active: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    grad_proj = weight.new_empty(0) if proj is None else torch.empty_like(proj)
    gates = active.new_empty(active.shape, dtype=weight.dtype)
    return gates, torch.empty_like(weight), grad_proj, torch.empty_like(start), torch.empty_like(begin)


def _setup(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[1:], *output)


def _backward(ctx: Any, grad: Tensor, _c: Tensor, _active: Tensor) -> tuple[Tensor | None, ...]:
    saved = ctx.saved_tensors  # read once: under activation checkpointing each is unpacked once
    gates, weight, proj, start, begin = lstm_backward(grad, *saved)
    return gates, weight, None if saved[1] is None else proj, start, None, begin


lstm.register_autograd(_backward, setup_context=_setup)


class LSTM(nn.Module):
    """One layer, which begins anew with each document. Its projections are two: what the inputs add to the gates, for
    all tokens at once, and what h adds, step by step."""

    def __init__(
        self, d_in: int, d_hidden: int, *, d_out: int | None = None, reverse: bool = False, weight_dropout: float = 0.0
    ) -> None:
        """`d_out`: the width of a projection of h, which the next step reads too (Sak et al. 2014); `reverse`: reads
        each document from its end; `weight_dropout`: of the numbers of the recurrent matrix, drawn once a forward pass
        (Merity et al. 2018, section 2)."""
        super().__init__()
        self.d_hidden, self.reverse, self.weight_dropout = d_hidden, reverse, weight_dropout
        self.x = nn.Linear(d_in, 4 * d_hidden)
        self.h = nn.Linear(d_out or d_hidden, 4 * d_hidden, bias=False)
        self.proj = nn.Linear(d_hidden, d_out, bias=False) if d_out else None

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> None:
        """What is in the state stays there at first (Jozefowicz et al. 2015, section 2.2)."""
        assert self.x.bias is not None
        self.x.bias[self.d_hidden : 2 * self.d_hidden] = 1.0

    def slots(self) -> tuple[Slot, ...]:
        return (State((2, self.d_hidden)),)

    def forward(self, x: Tensor, ctx: Context, begin: Tensor | None = None) -> Tensor:
        """x (B, T, D) -> (B, T, H), or its projection. begin (B, T, 2, H): h and c that a document begins with at a
        token, zero by default. The state is float32, and under autocast the products are too, but for matrices that
        are adapted or quantised, which compute in the type of autocast."""
        cache, rows = ctx.layer_cache, len(x)
        start = x.new_zeros(2, rows, self.d_hidden, dtype=torch.float32)
        if cache is not None:
            start = cache.get(State).transpose(0, 1)
        carry = carried(x, ctx, self.reverse)
        x = x.flip(1) if self.reverse else x
        by_library = cache is None and self.is_plain and self.proj is None and torch.is_grad_enabled()
        if by_library and type(x) is Tensor and not torch.compiler.is_compiling():
            y = self._by_library(x, carry, begin)
            if y is not None:
                return y.flip(1) if self.reverse else y
        gates, carry = self._gates(x).transpose(0, 1), carry.t()[..., None]
        begins = start.new_zeros(0, 2, rows, self.d_hidden)
        if begin is not None:
            begins = begin.permute(1, 2, 0, 3).float().contiguous()
        run = self._fused if self.is_plain else self._by_modules
        hs, cs = run(gates, start, carry, begins)
        if by_library and type(x) is not Tensor:  # a plan on tensors without numbers
            hs = _Reserve.apply(hs, RESERVED * hs.numel())
        if cache is not None and ctx.documents is not None:  # the state after the last real token
            after = torch.cat((start[:, None], torch.stack((hs, cs))), 1)
            real, every = (ctx.documents >= 0).sum(1), torch.arange(rows, device=x.device)
            cache.put(State, after[:, real, every].transpose(0, 1))
        y = hs.transpose(0, 1).to(compute_dtype(x))
        y = y if self.proj is None else self.proj(y)
        return y.flip(1) if self.reverse else y

    @property
    def is_plain(self) -> bool:
        """Whether nothing stands in place of its matrices (an adapter, integers)."""
        return all(part is None or type(part) is nn.Linear for part in (self.x, self.h, self.proj))

    def _gates(self, x: Tensor) -> Tensor:
        """What the inputs add to the gates, (B, T, G)"""
        if not torch.is_autocast_enabled(x.device.type) or type(self.x) is not nn.Linear:
            return self.x(x)
        with torch.autocast(x.device.type, enabled=False):
            return F.linear(x.float(), self.x.weight.float(), None if self.x.bias is None else self.x.bias.float())

    def _by_library(self, x: Tensor, carry: Tensor, begin: Tensor | None) -> Tensor | None:
        """By torch's operator, which is one kernel where ours is a call for each step: in float32, each document a
        sequence of its own. None where their lengths differ so much that padding them would cost more than it saves.
        It has no kernel for projections."""
        fresh = ~carry.flatten()
        first, number = fresh.nonzero()[:, 0], fresh.cumsum(0) - 1
        index = torch.arange(len(fresh), device=x.device) - first[number]
        n, length = len(first), int(index.max()) + 1
        if n * length > PADDED * len(fresh):
            return None
        values, index = x.float().flatten(0, 1), index + number * length
        values = values.new_zeros(n * length, x.shape[2]).index_copy(0, index, values)
        h, c = values.new_zeros(2, 1, n, self.d_hidden)
        if begin is not None:
            h, c = begin.float().flatten(0, 1)[first].transpose(0, 1)[:, None].contiguous()
        assert self.x.bias is not None
        weight = F.dropout(self.h.weight, self.weight_dropout, self.training)
        weights = [w.float() for w in (self.x.weight, weight, self.x.bias, torch.zeros_like(self.x.bias))]
        settings = (True, 1, 0.0, True, False, True)  # biases, layers, dropout, train, both directions, batch first
        with torch.autocast(x.device.type, enabled=False), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            y, _, _ = torch.lstm(values.view(n, length, -1), (h, c), weights, *settings)
        return y.flatten(0, 1)[index].view(*x.shape[:2], -1).to(compute_dtype(x))

    def _fused(self, gates: Tensor, start: Tensor, carry: Tensor, begin: Tensor) -> tuple[Tensor, Tensor]:
        weight = F.dropout(self.h.weight, self.weight_dropout, self.training).to(gates.dtype)
        proj = None if self.proj is None else self.proj.weight.to(gates.dtype)
        hs, cs, _ = lstm(gates, weight, proj, start, carry, begin)
        return hs, cs

    def _by_modules(self, gates: Tensor, start: Tensor, carry: Tensor, begin: Tensor) -> tuple[Tensor, Tensor]:
        """Calls its projections at each step, whatever they are; without `weight_dropout`."""
        (h, c), hs, cs = start, [], []
        for t in range(len(gates)):
            h, c = (torch.where(carry[t], s, begin[t, k] if len(begin) else 0.0) for k, s in enumerate((h, c)))
            y = h.to(gates.dtype)
            h, c = cell(gates[t].float() + self.h(y if self.proj is None else self.proj(y)), c)
            hs.append(h)
            cs.append(c)
        return torch.stack(hs), torch.stack(cs)


def carried(x: Tensor, ctx: Context, reverse: bool = False) -> Tensor:
    """(B, T) bool: whether the state of the token before, in the order of reading, is of the same document."""
    first = x.new_zeros(len(x), 1, dtype=torch.bool)
    if ctx.documents is None:
        return torch.cat((first, first.new_ones(len(x), x.shape[1] - 1)), 1)
    documents = ctx.documents.flip(1) if reverse else ctx.documents
    if ctx.cache is not None:
        first = documents[:, :1] == ctx.cache.previous[:, None]
    return torch.cat((first, documents[:, 1:] == documents[:, :-1]), 1)


class LockedDropout(nn.Module):
    """Drops channels of all tokens of a row alike, in training (Gal & Ghahramani 2016, section 4)."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        """x (B, T, D) -> (B, T, D)"""
        return x * F.dropout(torch.ones_like(x[:, :1]), self.p) if self.training and self.p else x


class LSTMBlock(nn.Module):
    """dropout(lstm(x)), plus x where `residual` (Wu et al. 2016, GNMT, section 3.1)."""

    def __init__(self, mixer: LSTM, *, residual: bool = False, dropout: float = 0.0) -> None:
        super().__init__()
        self.mixer, self.residual, self.dropout = mixer, residual, LockedDropout(dropout)

    def slots(self) -> list[tuple[Slot, ...]]:
        return [self.mixer.slots()]

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        """x (B, T, D) -> (B, T, H)"""
        y = self.dropout(self.mixer(x, ctx))
        return x + y if self.residual else y


class Bridge(MemoryReader):
    """What a decoder's layer begins with: tanh of a projection of the encoder's last state (Bahdanau et al. 2015,
    section A.2.2), of h and of c."""

    def __init__(self, d_memory: int, d_hidden: int) -> None:
        super().__init__()
        self.d_hidden = d_hidden
        self.k, self.v = nn.Linear(d_memory, d_hidden), nn.Linear(d_memory, d_hidden)  # of h and of c

    def slots(self) -> tuple[Slot, ...]:
        return (Cross(1, self.d_hidden),)

    def project(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        """memory (B, S, D) -> h and c (B, 1, S, H)"""
        return torch.tanh(self.k(memory))[:, None], torch.tanh(self.v(memory))[:, None]

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        """x (B, T, D) -> (B, T, 2, H), for each token that of the last state that it may read"""
        h, c = self.read(ctx)
        assert ctx.memory_mask is not None
        rows, steps, dense = len(x), x.shape[1], ctx.memory_mask.dense
        places = torch.arange(h.shape[2], device=x.device)
        if dense is None:
            last = places[-1:].expand(rows, steps)
        else:
            last = torch.where(dense[:, 0], places, 0).amax(-1).expand(rows, steps)
        index = last[..., None].expand(-1, -1, self.d_hidden)
        return torch.stack([s[:, 0].gather(1, index) for s in (h, c)], 2)


class BridgedLSTMBlock(LSTMBlock):
    """A layer of a decoder, which begins with what the encoder ended with."""

    def __init__(self, mixer: LSTM, d_memory: int, *, residual: bool = False, dropout: float = 0.0) -> None:
        super().__init__(mixer, residual=residual, dropout=dropout)
        self.cross = Bridge(d_memory, mixer.d_hidden)

    def slots(self) -> list[tuple[Slot, ...]]:
        return [self.mixer.slots() + self.cross.slots()]

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        y = self.dropout(self.mixer(x, ctx, self.cross(x, ctx)))
        return x + y if self.residual else y


class AttentionReadout(nn.Module):
    """tanh(combine(h ‖ c)), c an attention of h over the memory (Luong et al. 2015, section 3)."""

    def __init__(self, d_model: int, cross: nn.Module) -> None:
        super().__init__()
        self.cross, self.combine = cross, nn.Linear(2 * d_model, d_model, bias=False)

    def slots(self) -> list[tuple[Slot, ...]]:
        return [self.cross.slots()]  # pyright: ignore[reportCallIssue]

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        """x (B, T, D) -> (B, T, D)"""
        return torch.tanh(self.combine(torch.cat((x, self.cross(x, ctx)), -1)))
