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

from foundling.adapt.heads import HeadOptions, is_projection, layout_for
from foundling.adapt.probe import HISTORY, STRENGTHS, fit_probe
from foundling.blocks.heads import pooled_width
from foundling.contracts.model import HeadLayout
from foundling.data.encoded import EncodedSplit
from foundling.data.transforms.examples import example_batches
from foundling.errors import ConfigError
from foundling.plan.flops import skeleton
from foundling.recipes.adapting import with_pool
from foundling.recipes.finetune_data import start_id, with_virtual
from foundling.recipes.recipe import Recipe
from foundling.recipes.training import runtime_of

MOST_BYTES = 768 << 20
"""that the features may take"""
COPIES, SCORES = 2, 4
"""how often the features and the scores of the classes are held at once, in float64: as they are, and a part of them,
standardised; scores, their logarithms, gradients"""
SOFTENED = 0.3
"""factor on the scores: LoRA on 100 package descriptions of 20 sections ends at an accuracy of 0.63 with it, 0.59 at 1,
0.64 from zero; with 1,000 descriptions, and for spans of names, starting from zero is far worse (docs/benchmarks.md)"""
EVALUATIONS = 300
"""of the loss and its gradient, over all strengths, until L-BFGS has converged: 144 to 288 were seen, on 100 to 3,000
vectors of 2 to 20 classes"""


def with_probe(
    recipe: Recipe, split: EncodedSplit, head: HeadOptions | None, layout: HeadLayout | None, new: bool, space: int
) -> Recipe:
    """With the decision whether a head of this layout begins as a probe of `split`, all that there is to train on, in
    `space` bytes beside the model. `new`: nothing was learnt by it. ConfigError where what was asked for cannot be."""
    asked, reason = recipe.adapt.probe, None
    if head is None or layout is None:
        reason = "these examples need no head; leave it out"
    elif recipe.objective.kind == "reward":
        reason = "a reward is learnt from comparisons, not from values; leave it out"
    elif not new:
        reason = "the model has this head already; leave it out"
    elif not is_projection(layout):
        reason = "the head has a dense layer, which nobody has trained"
        reason += "" if head.kind == "tag" else "; leave out --pool published"
    elif feature_bytes(recipe, split, head) > min(MOST_BYTES, space):
        reason = "the features of all examples do not fit into memory; leave it out"
    if reason and (asked or (asked is not None and head is None)):
        raise ConfigError(f"--probe {str(asked).lower()}: {reason}")
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


def _n_vectors(recipe: Recipe, split: EncodedSplit) -> int:
    """At most: one of each example, or of each of its tokens."""
    return int(split.lengths.sum()) if recipe.objective.kind == "tag" else len(split)


def _feature_width(recipe: Recipe, head: HeadOptions) -> int:
    """Numbers of each vector that the head reads."""
    layout = layout_for(skeleton(recipe.model.family, recipe.model.fields), with_pool(head, recipe))
    return pooled_width(layout.pool, recipe.model.fields["d_model"])


def feature_bytes(recipe: Recipe, split: EncodedSplit, head: HeadOptions) -> int:
    width, n = _feature_width(recipe, head), len(head.labels)
    steps = 0 if head.kind == "regress" else (2 * HISTORY + 5) * n * width
    return 8 * ((COPIES * width + SCORES * n) * _n_vectors(recipe, split) + steps)


def seconds_to_solve(recipe: Recipe, split: EncodedSplit, head: HeadOptions, per_example: float) -> float:
    """Of a pass over the examples, and of the solution by the rate of one product of its kind."""
    width, n = _feature_width(recipe, head), _n_vectors(recipe, split)
    columns, products = len(head.labels), 2 * EVALUATIONS
    if head.kind == "regress":
        columns, products = width, len(STRENGTHS) + 1
    x, w = torch.zeros(min(n, 4096), width).double(), torch.zeros(columns, width).double()
    torch.nn.functional.linear(x, w)
    start = time.perf_counter()
    torch.nn.functional.linear(x, w)
    return len(split) * per_example + products * (time.perf_counter() - start) * n / len(x)


def begin_as_probe(recipe: Recipe, model: Any, split: EncodedSplit) -> None:
    """As `solve_head`, but for classes with softer scores, which decide the same: few examples are told apart without
    any error, and nothing would be left to learn from them."""
    solve_head(recipe, model, split)
    if recipe.objective.kind != "regress":
        with torch.no_grad():
            for p in (model.score.weight, model.score.bias):
                if p is not None:
                    p.mul_(SOFTENED)


def solve_head(recipe: Recipe, model: Any, split: EncodedSplit) -> None:
    """In place. OneClassError, with the head as it was, where these examples are all of one class."""
    batches = example_batches(split, batch_size=recipe.train.micro_batch_size, start_id=start_id(model))
    read = with_virtual(batches, model)
    with runtime_of(recipe).autocast():
        fit_probe(model, (read[n] for n in range(len(batches))), seed=recipe.seed)
