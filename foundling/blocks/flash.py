# SPDX-License-Identifier: Apache-2.0
"""Flash attention on a CPU in bfloat16 with a gradient of our own: torch's takes fifteen times as long as its forward
pass, a quarter of a training step of short rows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

CACHED_SCORES = 1 << 19
"""Scores that are computed at once, 2 MiB in float32: what the caches of a core hold."""
LONGEST = 1024
"""Keys beyond which torch's gradient, which works in blocks of keys, is used."""


def short_attention(q: Tensor, k: Tensor, v: Tensor, dense: Tensor | None, causal: bool, scale: float | None) -> Tensor:
    """softmax(scale · q kᵀ) v as of F.scaled_dot_product_attention, to the bit; the gradient differs by rounding. q
    (B, H, T, P), k and v (B, K, S, P), dense (B or 1, 1, T, S) bool or None."""
    return _Attention.apply(q, k, v, dense, causal, q.shape[-1] ** -0.5 if scale is None else scale)  # pyright: ignore


def applies(q: Tensor, k: Tensor, v: Tensor, dense: Tensor | None, causal: bool, dropout: float) -> bool:
    """Whether `short_attention` computes this, and gains by it."""
    plain = dense is None or (dense.dtype == torch.bool and dense.ndim == 4 and dense.shape[1] == 1)
    return (
        q.device.type == "cpu"
        and q.dtype == k.dtype == v.dtype == torch.bfloat16
        and torch.is_grad_enabled()
        and q.requires_grad and k.requires_grad and v.requires_grad
        and plain
        and not dropout
        and k.shape[2] <= LONGEST
        and (q.shape[2] == k.shape[2] or not causal)
        and q.shape[3] == v.shape[3]
        and not torch.compiler.is_compiling()
    )  # fmt: skip


class _Attention(torch.autograd.Function):
    """With P = softmax: dv = Pᵀ g, ds = P ∘ (g vᵀ − Σ g ∘ y), dq = scale · ds k, dk = scale · dsᵀ q (Dao et al. 2022,
    appendix B.2). P is computed again from the logarithm of its denominators; scores stay in float32."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, dense: Tensor | None, causal: bool, scale: float) -> Tensor:
        added = None if dense is None else torch.zeros(dense.shape, dtype=q.dtype).masked_fill_(~dense, -torch.inf)
        y, logs = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            q, k, v, 0.0, causal and dense is None, attn_mask=added, scale=scale
        )
        ctx.save_for_backward(q, k, v, y, logs, dense)
        ctx.causal, ctx.scale = causal and dense is None, scale
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        q, k, v, y, logs, dense = ctx.saved_tensors
        groups, length = k.shape[1], k.shape[2]
        found = tuple(torch.empty(t.shape, dtype=t.dtype) for t in (q, k, v))
        rows = max(1, CACHED_SCORES // (q.shape[1] * q.shape[2] * length))
        for first in range(0, len(q), rows):
            part = slice(first, first + rows)

            def stacked(t: Tensor, part: slice = part) -> Tensor:  # queries of one key side by side
                return t[part].reshape(len(t[part]) * groups, -1, t.shape[-1])

            queries, keys, values, by, out = (stacked(t) for t in (q, k, v, grad, y))
            single = by.float()
            weights = torch.baddbmm(
                stacked(logs[..., None]), queries.float(), keys.float().mT, beta=-1, alpha=ctx.scale
            ).exp_()
            by_head = weights.view(-1, q.shape[1], q.shape[2], length)
            if ctx.causal:
                by_head.tril_()
            elif dense is not None:
                by_head.masked_fill_(~(dense if len(dense) == 1 else dense[part]), 0.0)
            mean = (single * out).sum(-1, keepdim=True)
            change = torch.baddbmm(mean, single, values.float().mT, beta=-ctx.scale, alpha=ctx.scale)
            change, half = change.mul_(weights).to(q.dtype), weights.to(q.dtype)
            into = [stacked(t) for t in found]  # views: they are contiguous
            torch.bmm(change, keys, out=into[0])
            torch.bmm(change.mT, queries, out=into[1])
            torch.bmm(half.mT, by, out=into[2])
        return *found, None, None, None
