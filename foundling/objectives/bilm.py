# SPDX-License-Identifier: Apache-2.0
"""Both neighbours' prediction of a token: −½ Σ (log p(token | those before) + log p(token | those after)) (Peters et
al. 2018, section 3.1)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from foundling.contracts.data import Batch
from foundling.contracts.objective import Loss, Term
from foundling.objectives.chunked import chunked_cross_entropy


def sides(documents: Tensor) -> tuple[Tensor, Tensor]:
    """documents (B, T) -> (B, T) bool twice: tokens that have one before them in their document, and one after."""
    real, same = documents >= 0, documents[:, 1:] == documents[:, :-1]
    none = torch.zeros_like(real[:, :1])
    return torch.cat((none, same), 1) & real, torch.cat((same, none), 1) & real


class BiLM:
    """loss: cross-entropy in nats per token and direction, of the tokens that have a neighbour on that side. Batch:
    `tokens` and `documents` (B, T); `loss_mask` (B, T) tells which tokens count."""

    def normalizers(self, batch: Batch) -> dict[str, int]:
        return {"loss": sum(int(mask.sum()) for mask in self._masks(batch))}

    def _masks(self, batch: Batch) -> list[Tensor]:
        return [batch["loss_mask"] & side for side in sides(batch["documents"])]

    def __call__(self, model: Any, batch: Batch) -> Loss:
        masks = self._masks(batch)
        both = model.directions(batch["tokens"], batch["documents"])
        nats = [
            chunked_cross_entropy(model, hidden, batch["tokens"], mask)
            for hidden, mask in zip(both, masks, strict=True)
        ]
        return {"loss": Term(nats[0] + nats[1], masks[0].sum() + masks[1].sum())}
