# SPDX-License-Identifier: Apache-2.0
"""DistilBERT's three losses (Sanh et al. 2019, section 3): soft targets, masked language modelling, and the direction
of the hidden states."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from foundling.contracts.data import Batch
from foundling.contracts.objective import Loss, Term
from foundling.errors import ConfigError
from foundling.objectives.chunked import IGNORED, chunked_sum, counted, filled
from foundling.objectives.distill import check_vocabulary, distillation_sum


def cosine_loss_sum(student: Tensor, teacher: Tensor) -> Tensor:
    """() Σ 1 − cos(student, teacher) over tokens; both (N, D)"""
    return (1 - F.cosine_similarity(student.float(), teacher.float(), dim=-1)).sum()


class DistilBERTLoss:
    """soft · T² KL(teacher ‖ student) + hard · cross-entropy + cosine · (1 − cos of the last layers' states).

    The first two are nats per masked token (`loss_mask`), the third a mean over all tokens, padding apart; the term
    `loss` is the first two. The weights are those of the reference code (transformers, research_projects/distillation:
    alpha_ce 5, alpha_mlm 2, alpha_cos 1, T = 2). Both models are encoders with a head over the vocabulary and of one
    width; the batch is that of masked language modelling. The teacher is frozen here and is no part of the step.
    ConfigError for weights or a temperature out of range, and for models that do not fit each other."""

    def __init__(
        self, teacher: Any, *, temperature: float = 2.0, soft: float = 5.0, hard: float = 2.0, cosine: float = 1.0
    ) -> None:
        if temperature <= 0 or min(soft, hard, cosine) < 0:
            raise ConfigError(
                f"temperature {temperature} is not positive, or a weight of {(soft, hard, cosine)} is below 0"
            )
        if not teacher.capabilities.fills:
            raise ConfigError(
                f"the teacher {type(teacher).__name__} predicts no masked tokens; take an encoder that does"
            )
        self.teacher = teacher.requires_grad_(False).eval()
        self.temperature, self.soft, self.hard, self.cosine = temperature, soft, hard, cosine

    def normalizers(self, batch: Batch) -> dict[str, int]:
        return {"loss": int(batch["loss_mask"].sum()), "cosine": int((batch["documents"] >= 0).sum())}

    def __call__(self, model: Any, batch: Batch) -> Loss:
        check_vocabulary(self.teacher, model)
        if self.teacher.config.d_model != model.config.d_model:
            raise ConfigError(
                f"the teacher's states have {self.teacher.config.d_model} channels, the student's "
                f"{model.config.d_model}; the cosine of states needs as many"
            )
        tokens, documents, mask = batch["tokens"], batch["documents"], batch["loss_mask"]
        with torch.no_grad():
            theirs = self.teacher.encode(tokens, documents=documents).states
        out = model.encode(tokens, documents=documents)
        real = documents >= 0
        apart = cosine_loss_sum(*counted(real, out.states, theirs))
        targets, states, teacher_states = filled(mask, batch["targets"], out.states, theirs)
        hidden = model.transformed(states)
        with torch.no_grad():
            teacher_hidden = self.teacher.transformed(teacher_states)

        def loss_of(logits: Tensor, rows: slice) -> Tensor:
            with torch.no_grad():
                soft_targets = self.teacher.logits(teacher_hidden[rows])
            soft = distillation_sum(logits, soft_targets, self.temperature, targets[rows] != IGNORED)
            hard = F.cross_entropy(logits.float(), targets[rows], reduction="sum", ignore_index=IGNORED)
            return self.soft * soft + self.hard * hard

        return {
            "loss": Term(chunked_sum(model, hidden, loss_of), mask.sum()),
            "cosine": Term(apart, real.sum(), self.cosine),
            **out.aux,
        }
