# SPDX-License-Identifier: Apache-2.0
"""Predict the next token: −Σ log p(target | what is before it in its document)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from foundling.contracts import Batch, Loss, Out, Term

CHUNK_LOGITS = 1 << 22
"""Logits held at once: 16 MiB in float32, small enough to stay in a processor's last cache."""
LossOf = Callable[[Tensor, slice], Tensor]
"""logits (n, V) of some places, and which of all (N,) they are -> their part of a sum over places"""


def cross_entropy_sum(logits: Tensor, targets: Tensor, loss_mask: Tensor) -> Tensor:
    """Σ over counted places of −log softmax(logits)[target], in float32. logits (N, V), targets and loss_mask (N,)."""
    return F.cross_entropy(logits.float(), torch.where(loss_mask, targets, -100), ignore_index=-100, reduction="sum")


def read(model: Any, batch: Batch, prefix: str = "") -> Out:
    """What the model makes of the batch's `tokens`. Where there is a `source` (B, S) with `source_documents`, of this
    prefix or shared by all, the model encodes it first and the tokens read it."""
    tokens, documents = batch[f"{prefix}tokens"], batch[f"{prefix}documents"]
    source = f"{prefix}source" if f"{prefix}source" in batch else "source"
    if source not in batch:
        return model(tokens, documents=documents)
    memory = model.encode(batch[source], documents=batch[f"{source}_documents"])
    return model(tokens, documents=documents, memory=memory)


class _Chunked(torch.autograd.Function):
    """Runs loss and gradient chunk by chunk in the forward pass, so (N, V) never exists whole and nothing is computed
    twice; backward only scales. Exact because the loss is a sum over places."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, loss_of: LossOf, logits_of: Any, size: int, *params: Tensor) -> Tensor:
        total = hidden.new_zeros((), dtype=torch.float32)
        grad_hidden = torch.empty_like(hidden)
        grads = [torch.zeros_like(p) for p in params]
        for rows in _slices(len(hidden), size):
            with torch.enable_grad():
                chunk = hidden[rows].detach().requires_grad_()
                loss = loss_of(logits_of(chunk), rows)
                found = torch.autograd.grad(loss, (chunk, *params))
            total += loss.detach()
            grad_hidden[rows] = found[0]
            for grad, more in zip(grads, found[1:], strict=True):
                grad += more
        ctx.save_for_backward(grad_hidden, *grads)
        return total

    @staticmethod
    def backward(ctx: Any, scale: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        grad_hidden, *grads = ctx.saved_tensors
        return (grad_hidden * scale, None, None, None, *(g * scale for g in grads))


def _slices(length: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, length)) for start in range(0, length, size)]


def chunk_size(model: Any) -> int:
    """Places whose logits are held at once."""
    return max(64, CHUNK_LOGITS // model.head.out_features)


def chunked_sum(model: Any, hidden: Tensor, loss_of: LossOf) -> Tensor:
    """Σ loss_of(logits of some places, which places), a sum over places, without whole logits. hidden (B, T, D)."""
    hidden, size = hidden.flatten(0, -2), chunk_size(model)
    if torch.is_grad_enabled():
        params = [p for p in model.head.parameters() if p.requires_grad]
        return _Chunked.apply(hidden, loss_of, model.logits, size, *params)  # pyright: ignore[reportReturnType]
    parts = [loss_of(model.logits(hidden[rows]), rows) for rows in _slices(len(hidden), size)]
    return torch.stack(parts).sum()


def chunked_cross_entropy(model: Any, hidden: Tensor, targets: Tensor, loss_mask: Tensor) -> Tensor:
    """Σ −log p(target) over counted places. hidden (B, T, D), targets and loss_mask (B, T)."""
    targets, loss_mask = targets.flatten(), loss_mask.flatten()
    return chunked_sum(model, hidden, lambda logits, rows: cross_entropy_sum(logits, targets[rows], loss_mask[rows]))


class Causal:
    """loss: natural-log nats per counted token. With a `source`, the tokens that answer it."""

    def counts(self, batch: Batch) -> dict[str, int]:
        return {"loss": int(batch["loss_mask"].sum())}

    def __call__(self, model: Any, batch: Batch) -> Loss:
        out = read(model, batch)
        nats = chunked_cross_entropy(model, out.hidden, batch["targets"], batch["loss_mask"])
        return {"loss": Term(nats, batch["loss_mask"].sum()), **out.aux}
