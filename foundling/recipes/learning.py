# SPDX-License-Identifier: Apache-2.0
"""What a text objective is: its loss, what it makes of packed batches, and what it is measured by. Planning, training
and evaluation use the same."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from foundling.contracts.data import Batches
from foundling.data.transforms.infill import InfillBatches
from foundling.data.transforms.mask import MaskedBatches
from foundling.data.transforms.span import SpanBatches
from foundling.data.transforms.special import mask_id, sentinel_ids
from foundling.objectives.bilm import BiLM
from foundling.objectives.causal import Causal
from foundling.objectives.distil_bert import DistilBERTLoss
from foundling.objectives.distill import Distill
from foundling.recipes.recipe import ObjectiveSpec, Recipe
from foundling.text import Tokenizer
from foundling.weights.directory import load

POSITIONS: dict[str, int] = dict.fromkeys(("masked", "bilm"), 500)
"""held-out tokens that pseudo-perplexity masks, one row each"""
EVALUATE_ROWS, EVALUATE_STRIDE = 16, 2
"""Held-out windows overlap by half: each token is predicted with at least half a window before it."""


@dataclass(frozen=True)
class Learning:
    objective: Any
    """an Objective"""
    transform: Callable[[Batches], Batches] = lambda batches: batches
    """packed batches -> what the objective reads"""
    target_len: int | None = None
    """columns of the target, where a source is read"""
    teacher: Any = None
    """frozen, of a student"""

    @property
    def measure(self) -> Any:
        """The Objective that held-out text is measured by: of a student it is the loss of the text alone."""
        return self.objective if self.teacher is None else Causal()


def target_len(spec: ObjectiveSpec, seq_len: int) -> int | None:
    """Length in tokens of the target for a source of `seq_len`: for "span" the masked tokens, one sentinel per span and
    a margin of 16; for "infill" the whole text and the margin. None where there is no source."""
    if spec.kind == "span":
        return int(seq_len * spec.mask_rate * (1 + 1 / spec.mean_span)) + 16
    return seq_len + 16 if spec.kind == "infill" else None


def learning_of(
    spec: ObjectiveSpec, tokenizer: Tokenizer, fields: dict[str, Any], seq_len: int, seed: int, device: str = "cpu"
) -> Learning:
    """`fields`: of the model's configuration; `device`: of a teacher, which says what its student reads: masked text
    where it fills gaps. The loss of all but distillation is cross-entropy: what differs is which tokens are read and
    which are predicted."""
    teacher = load(spec.teacher, device=device) if spec.teacher else None
    if teacher is not None and not teacher.capabilities.fills:
        return Learning(Distill(teacher, temperature=spec.temperature, alpha=spec.alpha), teacher=teacher)
    if spec.kind == "masked" or teacher is not None:
        hidden: dict[str, Any] = dict(
            seed=seed, mask=mask_id(tokenizer), vocab_size=tokenizer.vocab_size, rate=spec.mask_rate
        )
        objective = Causal() if teacher is None else DistilBERTLoss(teacher, temperature=spec.temperature)
        transform = lambda batches: MaskedBatches(batches, never=tuple(tokenizer.opening), **hidden)  # noqa: E731
        return Learning(objective, transform, teacher=teacher)
    if spec.kind == "bilm":
        return Learning(BiLM())
    target = target_len(spec, seq_len)
    if target is None:
        return Learning(Causal())
    common: dict[str, Any] = dict(
        seed=seed, eos=tokenizer.eos, start_id=fields["start_id"], mean_span=spec.mean_span, target_len=target
    )
    if spec.kind == "infill":
        mask = mask_id(tokenizer)
        return Learning(
            Causal(), lambda batches: InfillBatches(batches, mask=mask, rate=spec.infill_rate, **common), target
        )
    marks = sentinel_ids(tokenizer)
    return Learning(
        Causal(), lambda batches: SpanBatches(batches, sentinels=marks, density=spec.mask_rate, **common), target
    )


def learning_for(recipe: Recipe, tokenizer: Tokenizer) -> Learning:
    """Of a resolved recipe."""
    return learning_of(
        recipe.objective, tokenizer, recipe.model.fields, recipe.train.seq_len, recipe.seed, recipe.runtime.device
    )
