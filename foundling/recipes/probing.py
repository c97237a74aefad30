# SPDX-License-Identifier: Apache-2.0
"""The method 'head': features of all examples are computed once and the head is solved on them, without steps. Where
they would not fit into memory, it is trained by steps like every other method."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import torch

from foundling.adapt.probe import STRENGTHS, fit_probe
from foundling.data.encoded import EncodedSplit
from foundling.data.transforms.examples import example_batches
from foundling.recipes.adapting import HEADED
from foundling.recipes.finetune_data import start_id
from foundling.recipes.recipe import Recipe
from foundling.recipes.training import runtime_of

MOST_FEATURES = 1 << 25
"""numbers, 256 MiB in float64"""
COPIES = 3
"""of them, at most: as they are, a part, the part standardised"""
EVALUATIONS = 400
"""of the loss and its gradient, over all strengths, until L-BFGS has converged: as a rule"""


def n_features(recipe: Recipe, split: EncodedSplit) -> int:
    """Numbers, at most: of each example, or of each of its tokens."""
    rows = int(split.lengths.sum()) if recipe.objective.kind == "tag" else len(split)
    return rows * recipe.model.fields["d_model"]


def is_solved(recipe: Recipe, split: EncodedSplit) -> bool:
    """`split`: all training examples."""
    wanted = recipe.adapt.method == "head" and recipe.objective.kind in HEADED
    return wanted and n_features(recipe, split) <= MOST_FEATURES


def in_one_pass(recipe: Recipe, split: EncodedSplit, rows: int) -> Recipe:
    """One step that reads every example, `rows` of them at once. The strength of the regularisation is chosen on a part
    of them by the probe itself."""
    n = len(split)
    train = replace(
        recipe.train, batch_size=n, micro_batch_size=min(n, rows), total_steps=1, epochs=1.0, evaluate_every=None,
        patience=None, checkpoint_every=1,
    )  # fmt: skip
    return replace(recipe, train=train)


def feature_bytes(recipe: Recipe, split: EncodedSplit) -> int:
    return COPIES * 8 * n_features(recipe, split)


def seconds_to_solve(recipe: Recipe, split: EncodedSplit, n_out: int, per_example: float) -> float:
    """Of a pass over the examples, and of the solution by the rate of one product of its kind."""
    width = recipe.model.fields["d_model"]
    columns, products = n_out, 2 * EVALUATIONS
    if recipe.objective.kind == "regress":
        columns, products = width, len(STRENGTHS) + 1
    rows = n_features(recipe, split) // width
    x, w = torch.zeros(min(rows, 4096), width).double(), torch.zeros(columns, width).double()
    torch.nn.functional.linear(x, w)
    start = time.perf_counter()
    torch.nn.functional.linear(x, w)
    return len(split) * per_example + products * (time.perf_counter() - start) * rows / len(x)


def solve_head(recipe: Recipe, model: Any, split: EncodedSplit) -> None:
    """In place."""
    batches = example_batches(split, batch_size=recipe.train.micro_batch_size, start_id=start_id(model))
    with runtime_of(recipe).autocast():
        fit_probe(model, batches, seed=recipe.seed)
