# SPDX-License-Identifier: Apache-2.0
"""Distillation (Hinton et al. 2015): a student learns the output distribution of a frozen teacher."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from foundling.contracts.data import Batch
from foundling.contracts.objective import Loss, Term
from foundling.errors import ConfigError
from foundling.objectives.causal import read
from foundling.objectives.chunked import IGNORED, chunked_sum, filled


def distillation_sum(student: Tensor, teacher: Tensor, temperature: float, weights: Tensor | None = None) -> Tensor:
    """T² Σ KL(teacher ‖ student) over tokens, both at temperature T (section 2.1: T² keeps the gradient's size).
    `student` and `teacher` are logits (N, V); `weights` (N,) of the tokens, else 1."""
    ours = torch.log_softmax(student.float() / temperature, dim=-1)
    theirs = torch.log_softmax(teacher.float() / temperature, dim=-1)
    nats = (theirs.exp() * (theirs - ours)).sum(dim=-1)
    return temperature**2 * (nats if weights is None else nats * weights).sum()


def check_vocabulary(teacher: Any, student: Any) -> None:
    """ConfigError unless both predict the same tokens."""
    if teacher.head.out_features != student.head.out_features:
        raise ConfigError(
            f"the teacher's vocabulary is {teacher.head.out_features}, the student's {student.head.out_features}; both "
            "need the same tokenizer"
        )


class Distill:
    """loss: alpha · T² KL(teacher ‖ student) + (1 − alpha) · cross-entropy, in nats per token of `loss_mask`.

    The teacher is frozen here and is not part of the step: it is not trained, wrapped, sharded or saved. ConfigError
    for a temperature or alpha out of range, and for a teacher with another vocabulary.
    """

    def __init__(self, teacher: Any, *, temperature: float = 1.0, alpha: float = 0.5) -> None:
        if temperature <= 0 or not 0 <= alpha <= 1:
            raise ConfigError(f"temperature {temperature} is not positive, or alpha {alpha} not between 0 and 1")
        self.teacher = teacher.requires_grad_(False).eval()
        self.temperature, self.alpha = temperature, alpha

    def normalizers(self, batch: Batch) -> dict[str, int]:
        return {"loss": int(batch["loss_mask"].sum())}

    def __call__(self, model: Any, batch: Batch) -> Loss:
        check_vocabulary(self.teacher, model)
        with torch.no_grad():
            teacher_hidden = read(self.teacher, batch).hidden
        out = read(model, batch)
        targets, hidden, teacher_hidden = filled(batch["loss_mask"], batch["targets"], out.hidden, teacher_hidden)

        def loss_of(logits: Tensor, rows: slice) -> Tensor:
            with torch.no_grad():
                theirs = self.teacher.logits(teacher_hidden[rows])
            soft = distillation_sum(logits, theirs, self.temperature, targets[rows] != IGNORED)
            hard = F.cross_entropy(logits.float(), targets[rows], reduction="sum", ignore_index=IGNORED)
            return self.alpha * soft + (1 - self.alpha) * hard

        return {"loss": Term(chunked_sum(model, hidden, loss_of), batch["loss_mask"].sum()), **out.aux}
