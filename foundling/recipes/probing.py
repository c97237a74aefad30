# SPDX-License-Identifier: Apache-2.0
"""A new head begins as a linear probe: the features of all examples are computed once and the head is solved on them.
With the method 'head' that is all; the others train on from there, which distorts the features less than a head that
knows nothing (Kumar et al. 2022, "Fine-tuning can distort pretrained features")."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from typing import Any

import torch

from foundling.adapt.heads import HeadOptions, is_new, is_projection
from foundling.adapt.probe import STRENGTHS, OneClassError, fit_probe
from foundling.data.encoded import EncodedSplit
from foundling.data.transforms.examples import example_batches
from foundling.errors import ConfigError
from foundling.recipes.finetune_data import start_id, with_virtual
from foundling.recipes.recipe import Recipe
from foundling.recipes.training import runtime_of

MOST_BYTES = 768 << 20
"""that the features may take"""
COPIES, SCORES = 3, 4
"""numbers of the features and of the scores of the classes that are held at once, in float64: as they are, a part, the
part standardised; scores, their logarithms, gradients"""
EVALUATIONS = 400
"""of the loss and its gradient, over all strengths, until L-BFGS has converged: as a rule"""


def with_probe(recipe: Recipe, model: Any, split: EncodedSplit, head: HeadOptions | None, usable: int) -> Recipe:
    """With the decision whether the head of the adapted model begins as a probe of `split`, all that there is to train
    on, in half of the `usable` memory. ConfigError where that was asked for and cannot be."""
    asked, reason = recipe.adapt.probe, None
    if head is None:
        reason = "these examples need no head"
    elif not is_new(model.score):
        reason = "the model has this head already, which is trained on"
    elif not is_projection(model.score.layout):
        reason = "the head has a dense layer, which nobody has trained; say --pool mean"
    elif feature_bytes(recipe, split, head) > min(MOST_BYTES, usable // 2):
        reason = "the features of all examples do not fit into memory"
    if asked and reason:
        raise ConfigError(f"--probe cannot be: {reason}")
    probe = None if head is None else reason is None and asked is not False
    return replace(recipe, adapt=replace(recipe.adapt, probe=probe))


def is_solved(recipe: Recipe) -> bool:
    """Whether the probe is all there is to do."""
    return recipe.adapt.method == "head" and bool(recipe.adapt.probe)


def in_one_pass(recipe: Recipe, split: EncodedSplit, rows: int) -> Recipe:
    """As many steps as it takes to read each example once, `rows` at a time. The strength of the regularisation is
    chosen on a part of them by the probe itself."""
    n = len(split)
    rows = min(n, rows)
    train = replace(
        recipe.train, batch_size=rows, micro_batch_size=rows, total_steps=math.ceil(n / rows), epochs=1.0,
        evaluate_every=None, patience=None, checkpoint_every=math.ceil(n / rows),
    )  # fmt: skip
    return replace(recipe, train=train)


def _n_features(recipe: Recipe, split: EncodedSplit) -> int:
    """Vectors, at most: of each example, or of each of its tokens."""
    return int(split.lengths.sum()) if recipe.objective.kind == "tag" else len(split)


def feature_bytes(recipe: Recipe, split: EncodedSplit, head: HeadOptions) -> int:
    width = COPIES * recipe.model.fields["d_model"] + SCORES * len(head.labels)
    return 8 * width * _n_features(recipe, split)


def seconds_to_solve(recipe: Recipe, split: EncodedSplit, head: HeadOptions, per_example: float) -> float:
    """Of a pass over the examples, and of the solution by the rate of one product of its kind."""
    width, n = recipe.model.fields["d_model"], _n_features(recipe, split)
    columns, products = len(head.labels), 2 * EVALUATIONS
    if head.kind == "regress":
        columns, products = width, len(STRENGTHS) + 1
    x, w = torch.zeros(min(n, 4096), width).double(), torch.zeros(columns, width).double()
    torch.nn.functional.linear(x, w)
    start = time.perf_counter()
    torch.nn.functional.linear(x, w)
    return len(split) * per_example + products * (time.perf_counter() - start) * n / len(x)


def solve_head(recipe: Recipe, model: Any, split: EncodedSplit) -> bool:
    """In place; False where these examples are all of one class, which leaves the head as it is."""
    batches = example_batches(split, batch_size=recipe.train.micro_batch_size, start_id=start_id(model))
    read = with_virtual(batches, model)
    try:
        with runtime_of(recipe).autocast():
            fit_probe(model, (read[n] for n in range(len(batches))), seed=recipe.seed)
    except OneClassError:
        return False
    return True
