# SPDX-License-Identifier: Apache-2.0
"""What a head on a model learns: classes of texts, classes of tokens, values of texts (Devlin et al. 2019, section 4).

A batch has `tokens` and `documents` (B, T), a text a row; the losses are sums over texts or tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from foundling.blocks.heads import scores_and_losses
from foundling.contracts.data import Batch
from foundling.contracts.objective import Loss, Term
from foundling.errors import ConfigError


def class_nats(logits: Tensor, labels: Tensor, smoothing: float = 0.0, weights: Tensor | None = None) -> Tensor:
    """logits (N, n), labels (N,) -> (N,) −weight[label] Σ q log p, where q is 1 − smoothing at the label and smoothing
    shared among all classes (Szegedy et al. 2016, section 7)."""
    logprobs = torch.log_softmax(logits.float(), -1)
    nats = -logprobs.gather(1, labels[:, None])[:, 0]
    if smoothing:
        nats = (1 - smoothing) * nats - smoothing * logprobs.mean(1)
    return nats if weights is None else nats * weights.to(nats)[labels]


class Classify:
    """loss: cross-entropy in nats per text; accuracy: share of texts whose likeliest class is their own. Batch:
    `labels` (B,) int64.

    `class_weights`: one for each class, such as the inverse of its frequency, times which its texts count; the mean is
    over texts, not over weights. ConfigError for settings out of range."""

    def __init__(self, *, label_smoothing: float = 0.0, class_weights: Sequence[float] | None = None) -> None:
        if not 0 <= label_smoothing < 1:
            raise ConfigError(f"label_smoothing is {label_smoothing}; expected at least 0 and below 1")
        if class_weights is not None and not all(0 <= w < float("inf") for w in class_weights):
            raise ConfigError(f"class_weights {list(class_weights)} are not all numbers of at least 0")
        self.smoothing = label_smoothing
        self.weights = None if class_weights is None else torch.tensor(class_weights, dtype=torch.float32)

    def normalizers(self, batch: Batch) -> dict[str, int]:
        return dict.fromkeys(("loss", "accuracy"), len(batch["labels"]))

    def __call__(self, model: Any, batch: Batch) -> Loss:
        logits, aux = scores_and_losses(model, batch)
        return self.terms(logits, batch["labels"]) | aux

    def terms(self, logits: Tensor, labels: Tensor) -> Loss:
        """logits (N, n), labels (N,)"""
        if self.weights is not None and len(self.weights) != logits.shape[1]:
            raise ConfigError(f"{len(self.weights)} class_weights, the head has {logits.shape[1]} classes")
        nats = class_nats(logits, labels, self.smoothing, self.weights)
        correct = (logits.argmax(-1) == labels).float()
        return {"loss": Term(nats.sum(), len(labels)), "accuracy": Term(correct.sum(), len(labels), 0.0)}


class Tag(Classify):
    """As Classify, for each token of `loss_mask` (B, T): nats and accuracy per tagged token. Batch: `targets` (B, T)
    int64."""

    def normalizers(self, batch: Batch) -> dict[str, int]:
        return dict.fromkeys(("loss", "accuracy"), int(batch["loss_mask"].sum()))

    def __call__(self, model: Any, batch: Batch) -> Loss:
        logits, aux = scores_and_losses(model, batch)
        mask = batch["loss_mask"]
        return self.terms(logits[mask], batch["targets"][mask]) | aux


class Regress:
    """loss: squared error per text of standardised values, (label − mean) / std as the model's head says, so that its
    size does not depend on the unit. Batch: `labels` (B,) or (B, n) float32, in their own unit."""

    def normalizers(self, batch: Batch) -> dict[str, int]:
        return {"loss": batch["labels"].numel()}

    def __call__(self, model: Any, batch: Batch) -> Loss:
        found, aux = scores_and_losses(model, batch)
        options = model.score.options
        wanted = (batch["labels"].float().view_as(found) - options.mean) / options.std
        return {"loss": Term((found - wanted).square().sum(), found.numel()), **aux}
