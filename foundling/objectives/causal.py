# SPDX-License-Identifier: Apache-2.0
"""Predict the next token: −Σ log p(target | what is before it in its document)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from foundling.contracts import Batch, Loss, Term

CHUNK_LOGITS = 1 << 22
"""Logits held at once: 16 MiB in float32, small enough to stay in a processor's last cache."""


def cross_entropy_sum(logits: Tensor, targets: Tensor, loss_mask: Tensor) -> Tensor:
    """Σ over counted places of −log softmax(logits)[target], in float32. logits (N, V), targets and loss_mask (N,)."""
    return F.cross_entropy(logits.float(), torch.where(loss_mask, targets, -100), ignore_index=-100, reduction="sum")


class _ChunkedLoss(torch.autograd.Function):
    """Runs loss and gradient chunk by chunk in the forward pass, so (N, V) never exists whole and nothing is computed
    twice; backward only scales. Exact because the loss is a sum over places."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, targets: Tensor, mask: Tensor, logits_of: Any, size: int, *params: Tensor
    ) -> Tensor:
        total = hidden.new_zeros((), dtype=torch.float32)
        grad_hidden = torch.empty_like(hidden)
        grads = [torch.zeros_like(p) for p in params]
        for rows in torch.arange(len(hidden), device=hidden.device).split(size):
            part = slice(int(rows[0]), int(rows[-1]) + 1)
            with torch.enable_grad():
                chunk = hidden[part].detach().requires_grad_()
                loss = cross_entropy_sum(logits_of(chunk), targets[part], mask[part])
                found = torch.autograd.grad(loss, (chunk, *params))
            total += loss.detach()
            grad_hidden[part] = found[0]
            for grad, more in zip(grads, found[1:], strict=True):
                grad += more
        ctx.save_for_backward(grad_hidden, *grads)
        return total

    @staticmethod
    def backward(ctx: Any, scale: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        grad_hidden, *grads = ctx.saved_tensors
        return (grad_hidden * scale, None, None, None, None, *(g * scale for g in grads))


def chunked_cross_entropy(
    hidden: Tensor,
    targets: Tensor,
    loss_mask: Tensor,
    logits_of: Callable[[Tensor], Tensor],
    params: list[Tensor],
    vocab_size: int,
) -> Tensor:
    """Σ −log p(target) over counted places, without whole logits. hidden (B, T, D), targets and loss_mask (B, T)."""
    hidden, targets, loss_mask = hidden.flatten(0, -2), targets.flatten(), loss_mask.flatten()
    size = max(64, CHUNK_LOGITS // vocab_size)
    if torch.is_grad_enabled():
        return _ChunkedLoss.apply(hidden, targets, loss_mask, logits_of, size, *params)
    total = hidden.new_zeros((), dtype=torch.float32)
    for h, t, m in zip(hidden.split(size), targets.split(size), loss_mask.split(size), strict=True):
        total += cross_entropy_sum(logits_of(h), t, m)
    return total


class Causal:
    """loss: natural-log nats per counted token."""

    def counts(self, batch: Batch) -> dict[str, int]:
        return {"loss": int(batch["loss_mask"].sum())}

    def __call__(self, model: Any, batch: Batch) -> Loss:
        out = model(batch["tokens"], documents=batch["documents"])
        params = [p for p in model.head.parameters() if p.requires_grad]
        nats = chunked_cross_entropy(
            out.hidden, batch["targets"], batch["loss_mask"], model.logits, params, model.head.out_features
        )
        return {"loss": Term(nats, batch["loss_mask"].sum()), **out.aux}
