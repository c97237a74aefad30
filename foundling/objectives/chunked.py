# SPDX-License-Identifier: Apache-2.0
"""Sums over tokens of a function of their logits, and the log-probability of each token, computed in chunks so that
(N, V) logits never exist whole."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

CHUNK_LOGITS = 1 << 25
"""Logits in a chunk, 128 MiB in float32: enough rows that reading the weights of the head pays off."""
CACHED_LOGITS = 1 << 20
"""Logits that softmax and loss take at once on a CPU: what its caches hold, so that memory is read once, not thrice."""
ROWS, IGNORED = 64, -1
"""On a CPU the tokens of a loss are filled up to a multiple of ROWS by rows of target IGNORED, which count nothing:
every new shape costs a compiled product, and memory in which a larger one does not fit again."""
LossOf = Callable[[Tensor, slice], Tensor]
"""(logits (n, V) of a chunk, its rows among all (N,)) -> () the chunk's part of the sum"""


def _nats(logits: Tensor, targets: Tensor) -> Tensor:
    """(N,) −log softmax(logits)[target], 0 where the target is IGNORED. The float32 logits (N, V) are overwritten by
    the gradient of the sum."""
    nats = logits.new_empty(len(logits))
    rows = max(1, CACHED_LOGITS // logits.shape[1]) if logits.device.type == "cpu" else max(1, len(logits))
    ignored = targets == IGNORED
    fills = ignored.device.type == "cpu" and bool(ignored.any())
    targets = targets.masked_fill(ignored, 0) if fills else targets
    parts = (t.split(rows) for t in (logits, targets[:, None], ignored, nats))
    for part, at, fill, losses in zip(*parts, strict=True):
        largest, at_target = part.amax(1, keepdim=True), part.gather(1, at)
        torch.softmax(part, 1, out=part)
        # softmax at the largest is 1 / Σ e^(x − most)
        losses.copy_((largest - part.amax(1, keepdim=True).log() - at_target)[:, 0])
        part.scatter_add_(1, at, part.new_full((), -1.0).expand(at.shape))
        if fills:
            losses[fill] = 0.0
            part[fill] = 0.0
    return nats


class _CrossEntropy(torch.autograd.Function):
    """Σ −log softmax(logits)[target] over targets that are not IGNORED, which writes the gradient over the logits.
    Nothing else may use them afterwards; autograd raises if the operation that made them needs its result."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor) -> Tensor:
        ctx.dtype, logits = logits.dtype, logits.float()
        nats = _nats(logits, targets)
        ctx.gradient = logits
        return nats.sum(dtype=torch.float64 if nats.device.type == "cpu" else torch.float32).float()

    @staticmethod
    def backward(ctx: Any, scale: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        gradient, ctx.gradient = ctx.gradient, None
        if scale.device.type != "cpu" or scale != 1:  # saves a pass through memory
            gradient.mul_(scale)
        return gradient.to(ctx.dtype), None


def cross_entropy_sum(logits: Tensor, targets: Tensor) -> Tensor:
    """() Σ −log softmax(logits)[target], in float32. logits (N, V), targets (N,). With gradients enabled, float32
    logits are overwritten by their gradient."""
    if torch.is_grad_enabled() and logits.requires_grad and not logits.is_leaf:
        return _CrossEntropy.apply(logits, targets)  # pyright: ignore[reportReturnType]
    return F.cross_entropy(logits.float(), targets, reduction="sum", ignore_index=IGNORED)


class _Chunked(torch.autograd.Function):
    """Computes loss and gradient chunk by chunk in the forward pass, so (N, V) never exists whole and nothing is
    computed twice; the backward pass only scales. Exact because the loss is a sum over tokens.

    The weight gradient of a plain Linear head is accumulated in place; any other head is left to autograd."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, loss_of: LossOf, model: Any, *params: Tensor) -> Tensor:
        total = hidden.new_zeros((), dtype=torch.float32)
        grad_hidden = torch.empty_like(hidden)
        grads = [torch.zeros_like(p) for p in params]
        weight = model.head.weight if type(model.head) is nn.Linear else None
        into = next((grad for p, grad in zip(params, grads, strict=True) if p is weight), None)
        rest = [(p, grad) for p, grad in zip(params, grads, strict=True) if grad is not into]

        def add(rows: slice) -> None:  # a function, so that a chunk's tensors are freed before the next chunk
            calls: list[tuple[Tensor, Tensor]] = []
            hook = model.head.register_forward_hook(lambda _, args, out: calls.append((args[0], out)))
            try:
                with torch.enable_grad():
                    chunk = hidden[rows].detach().requires_grad_()
                    logits = model.logits(chunk)
            finally:
                hook.remove()
            if into is None:
                calls.clear()
            with torch.enable_grad():
                loss = loss_of(logits, rows)
                of = (chunk, *(out for _, out in calls), *(p for p, _ in rest))
                found = torch.autograd.grad(loss, of)
            total.add_(loss.detach())
            grad_hidden[rows] = found[0]
            for (given, _), by in zip(calls, found[1:], strict=False):
                _add_product(into, by.flatten(0, -2), given.detach().flatten(0, -2))  # pyright: ignore
            for (_, grad), more in zip(rest, found[1 + len(calls) :], strict=True):
                grad += more

        for rows in _slices(len(hidden), chunk_size(model)):
            add(rows)
        ctx.grads = [grad_hidden, *grads]
        return total

    @staticmethod
    def backward(ctx: Any, scale: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        if ctx.grads is None:
            raise RuntimeError("the gradient of a chunked loss can be taken once")
        (hidden, *grads), ctx.grads = ctx.grads, None
        return (hidden.mul_(scale), None, None, *(g.mul_(scale) for g in grads))


def _add_product(into: Tensor, by: Tensor, given: Tensor) -> None:
    """into (V, D) += byᵀ (V, n) given (n, D)"""
    if by.dtype == given.dtype == into.dtype:
        into.addmm_(by.t(), given)
    else:
        into += by.t() @ given.to(by.dtype)


def _slices(length: int, most: int) -> list[slice]:
    """Slices of nearly equal length, none longer than `most`, a multiple of ROWS; so are all but the last one."""
    size = -(-length // max(1, -(-length // most)))
    size = max(1, -(-size // ROWS)) * ROWS
    return [slice(start, min(start + size, length)) for start in range(0, length, size)]


def chunk_size(model: Any) -> int:
    """Tokens in a chunk."""
    return max(64, CHUNK_LOGITS // model.head.out_features // 64 * 64)


def chunked_sum(model: Any, hidden: Tensor, loss_of: LossOf) -> Tensor:
    """() Σ loss_of(logits of a chunk, its rows) over all tokens of hidden (…, D)."""
    hidden = hidden.flatten(0, -2)
    if torch.is_grad_enabled():
        params = [p for p in model.head.parameters() if p.requires_grad]
        return _Chunked.apply(hidden, loss_of, model, *params)  # pyright: ignore[reportReturnType]
    parts = [loss_of(model.logits(hidden[rows]), rows) for rows in _slices(len(hidden), chunk_size(model))]
    return torch.stack(parts).sum() if parts else hidden.new_zeros(())


def counted(loss_mask: Tensor, *of: Tensor) -> list[Tensor]:
    """Selects the tokens of loss_mask (B, T) from each (B, T, …), (N, …), so that the head is applied to no others."""
    mask = loss_mask.flatten()
    if bool(mask.all()):
        return [t.flatten(0, 1) for t in of]
    places = mask.nonzero()[:, 0]
    return [t.flatten(0, 1).index_select(0, places) for t in of]


def filled(loss_mask: Tensor, targets: Tensor, *of: Tensor) -> list[Tensor]:
    """`counted` of targets (B, T) and of each (B, T, D); on a CPU more than ROWS tokens are filled up to a multiple of
    ROWS by rows of zeros, whose target IGNORED says that they count nothing."""
    targets, *rows = counted(loss_mask, targets, *of)
    if targets.device.type == "cpu" and (fill := -len(targets) % ROWS) and len(targets) > ROWS:
        targets, rows = F.pad(targets, (0, fill), value=IGNORED), [F.pad(t, (0, 0, 0, fill)) for t in rows]
    return [targets, *rows]


def chunked_cross_entropy(model: Any, hidden: Tensor, targets: Tensor, loss_mask: Tensor) -> Tensor:
    """() Σ −log p(target) over the tokens of loss_mask. hidden (B, T, D), targets and loss_mask (B, T)."""
    targets, hidden = filled(loss_mask, targets, hidden)
    return chunked_sum(model, hidden, lambda logits, rows: cross_entropy_sum(logits, targets[rows]))


class _TokenNats(torch.autograd.Function):
    """−log softmax(logits)[target] of each token of a chunk, and in the same pass over a frozen head its gradient by
    the token's own hidden state, which the backward pass only scales: the logits of a token depend on no other."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, targets: Tensor, model: Any) -> Tensor:
        with torch.enable_grad():
            hidden = hidden.detach().requires_grad_()
            logits = model.logits(hidden)
        by = logits.detach().float()
        nats = _nats(by, targets)
        (gradient,) = torch.autograd.grad(logits, hidden, by.to(logits.dtype))
        ctx.save_for_backward(gradient)
        return nats

    @staticmethod
    def backward(ctx: Any, scale: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        (gradient,) = ctx.saved_tensors
        return gradient * scale[:, None].to(gradient.dtype), None, None


def token_logprobs(model: Any, hidden: Tensor, targets: Tensor, loss_mask: Tensor) -> Tensor:
    """(B, T) log p(target) in float32, 0 outside loss_mask. hidden (B, T, D), targets and loss_mask (B, T). The head
    reads the tokens of loss_mask alone; where it is trained, the backward pass computes the logits of a chunk again,
    since their gradient by the head sums over tokens that are weighed only then."""
    at, states = filled(loss_mask, targets, hidden)

    def recomputed(chunk: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(model.logits(chunk).float(), target, ignore_index=IGNORED, reduction="none")

    nats = list[Any]()
    sizes = [rows.stop - rows.start for rows in _slices(len(states), chunk_size(model))]
    trains_head = any(p.requires_grad for p in model.head.parameters())
    for part in zip(states.split(sizes), at.split(sizes), strict=True):
        if not torch.is_grad_enabled():
            nats.append(_nats(model.logits(part[0]).float(), part[1]))
        elif trains_head:
            nats.append(checkpoint(recomputed, *part, use_reentrant=False))
        else:
            nats.append(_TokenNats.apply(*part, model))
    every = torch.cat(nats or [states[:, 0].float()])
    return torch.zeros_like(targets, dtype=torch.float32).masked_scatter(loss_mask, -every)
