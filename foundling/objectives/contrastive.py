# SPDX-License-Identifier: Apache-2.0
"""Contrastive learning of pairs (Radford et al. 2021, figure 3): each image is matched with its text among all texts of
the batch, and each text with its image. Not a sum over rows, so training passes all representations at once."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from foundling.contracts.data import Batch
from foundling.contracts.model import DualEncoder
from foundling.contracts.objective import Loss, Term

MAX_LOG_SCALE = math.log(100)
"""The logits are multiplied by at most 100 (section 2.5)."""


def info_nce(logits: Tensor) -> Tensor:
    """(B, B) similarities, where row i belongs to column i -> (B,) mean of both cross-entropies, in nats."""
    own = torch.arange(len(logits), device=logits.device)
    rows = F.cross_entropy(logits, own, reduction="none")
    return (rows + F.cross_entropy(logits.T, own, reduction="none")) / 2


class Contrastive:
    """loss: nats per pair; accuracy: share of anchors whose own positive is the most similar one. `anchor` and
    `positive` name what the model embeds (Embedder.embed): two modalities of a row, which is a pair."""

    def __init__(self, anchor: str = "image", positive: str = "text") -> None:
        self.anchor, self.positive = anchor, positive

    def normalizers(self, batch: Batch) -> dict[str, int]:
        rows = len(next(iter(batch.values())))
        return {"loss": rows, "accuracy": rows}

    def represent(self, model: DualEncoder, batch: Batch) -> dict[str, Tensor]:
        """Unit vectors (B, D) of both. The learned scale is multiplied into the anchors, so that it reaches the loss
        through the representations alone."""
        scale = model.scale.clamp_max(MAX_LOG_SCALE).exp()
        positive = model.embed(self.positive, batch)
        return {"anchor": model.embed(self.anchor, batch) * scale, "positive": positive}

    def loss(self, representations: dict[str, Tensor]) -> Loss:
        logits = representations["anchor"].float() @ representations["positive"].float().T
        correct = (logits.argmax(1) == torch.arange(len(logits), device=logits.device)).float().sum()
        return {"loss": Term(info_nce(logits).sum(), len(logits)), "accuracy": Term(correct, len(logits), 0.0)}

    def __call__(self, model: DualEncoder, batch: Batch) -> Loss:
        return self.loss(self.represent(model, batch))
