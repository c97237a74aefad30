# SPDX-License-Identifier: Apache-2.0
"""Contrastive learning of pairs (Radford et al. 2021, figure 3): each image is to find its text among all of the batch,
and each text its image. No sum over rows: the loop hands over all representations at once."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from foundling.contracts.data import Batch
from foundling.contracts.model import DualEncoder
from foundling.contracts.objective import Loss, Term

MOST = math.log(100)
"""The logits are never scaled by more (section 2.5)."""


def info_nce(logits: Tensor) -> Tensor:
    """(B, B) similarities, row i belonging to column i -> (B,) mean of both cross-entropies, in nats."""
    own = torch.arange(len(logits), device=logits.device)
    rows = F.cross_entropy(logits, own, reduction="none")
    return (rows + F.cross_entropy(logits.T, own, reduction="none")) / 2


class Contrastive:
    """Batch: `pixels` (B, C, H, W), `tokens` and `documents` (B, T), row by row together."""

    def normalizers(self, batch: Batch) -> dict[str, int]:
        rows = len(batch["pixels"])
        return {"loss": rows, "accuracy": rows}

    def represent(self, model: DualEncoder, batch: Batch) -> dict[str, Tensor]:
        """The learned scale goes with the images, so that it reaches the loss through them and needs no gradient path
        of its own."""
        scale = model.scale.clamp_max(MOST).exp()
        text = model.embed("text", batch)
        return {"image": model.embed("image", batch) * scale, "text": text}

    def loss(self, representations: dict[str, Tensor]) -> Loss:
        logits = representations["image"].float() @ representations["text"].float().T
        found = (logits.argmax(1) == torch.arange(len(logits), device=logits.device)).float().sum()
        return {"loss": Term(info_nce(logits).sum(), len(logits)), "accuracy": Term(found, len(logits), 0.0)}

    def __call__(self, model: DualEncoder, batch: Batch) -> Loss:
        return self.loss(self.represent(model, batch))
