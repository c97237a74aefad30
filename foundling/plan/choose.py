# SPDX-License-Identifier: Apache-2.0
"""The size of a model that a budget is best spent on, by the loss law."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from foundling.errors import BudgetError
from foundling.models import count_parameters, family
from foundling.plan.budget import Budget
from foundling.plan.flops import matmul_parameters, skeleton, training_flops_per_token
from foundling.plan.law import Corpus, LossLaw

LADDER = [
    (64, 2), (96, 3), (128, 4), (160, 4), (192, 5), (256, 5), (320, 6), (384, 7), (512, 8), (640, 10), (768, 12),
    (1024, 14), (1280, 18), (1536, 22), (2048, 24), (2560, 32), (4096, 32),
]  # fmt: skip
"""(d_model, n_layers) of the sizes that are considered, each 1.5 to 3.5 times the weights of the one before, twice as a
rule."""

MOST_WEIGHTS_PER_BYTE = 1.25
"""of text that does not repeat: in no run that the law was fitted to were there more (plan/calibration.json). Where a
text is read to its end the law gives larger sizes a lower loss, and a few pages could get the largest of all."""


@dataclass(frozen=True)
class Choice:
    """A size with what it would reach within the budget."""

    fields: dict[str, Any]
    tokens: float
    flops_per_token: int
    parameters: int
    matmul_parameters: int
    bits_per_byte: float


def candidate(
    family_name: str,
    fields: dict[str, Any],
    tokens_for: Callable[[int], float],
    corpus: Corpus,
    law: LossLaw,
    *,
    seq_len: int,
    target_len: int | None = None,
) -> Choice:
    """`tokens_for`: FLOPs per token -> tokens that the budget allows. Rows are `seq_len` tokens; a model that reads a
    source answers it with `target_len`."""
    model = skeleton(family_name, fields)
    flops = training_flops_per_token(model, seq_len, target_len)
    n, tokens = matmul_parameters(model), tokens_for(flops)
    bpb = law.bits_per_byte(n, max(tokens, 1) * corpus.bytes_per_token, corpus)
    return Choice(fields, tokens, flops, count_parameters(model)["total"], n, bpb)


def ladder(
    family_name: str, vocab_size: int, max_seq_len: int, *, d_model: int | None = None, n_layers: int | None = None
) -> list[dict[str, Any]]:
    """Configurations to choose from; a width or depth that was given is kept."""
    sized = family(family_name).module.sized
    sizes = [(d_model or d, n_layers or depth) for d, depth in LADDER]
    if d_model and not n_layers:
        sizes = [(d_model, min(LADDER, key=lambda size: abs(size[0] - d_model))[1])]
    return [sized(vocab_size, max_seq_len, d, depth) for d, depth in dict.fromkeys(sizes)]


def choose(
    budget: Budget,
    family_name: str,
    sizes: list[dict[str, Any]],
    corpus: Corpus,
    law: LossLaw,
    *,
    seconds_per_token: Callable[[int, dict[str, Any]], float],
    least_bytes: Callable[[dict[str, Any]], int],
    memory_bytes: int,
    seq_len: int,
    target_len: int | None = None,
    frozen_flops: float = 0.0,
) -> tuple[Choice, list[Choice]]:
    """The size with the lowest predicted loss in the budget, and all that were considered. For a budget in tokens: the
    one for which so many tokens are compute-optimal. Sizes that are too large for the text are not chosen.
    `frozen_flops`: per token, of a model beside it that is not trained. BudgetError if not even the smallest fits into
    memory."""

    def all_within(tokens_for: Callable[[int, dict[str, Any]], float]) -> list[Choice]:
        return [
            candidate(
                family_name, f, lambda flops, f=f: tokens_for(flops, f), corpus, law,
                seq_len=seq_len, target_len=target_len,
            )
            for f in sizes
        ]  # fmt: skip

    def distance(choice: Choice) -> float:
        compute = choice.flops_per_token * budget.value
        best = min(all_within(lambda flops, _: compute / flops), key=lambda c: c.bits_per_byte)
        return abs(math.log(best.tokens / budget.value))

    worth: Callable[[Choice], float] = lambda choice: choice.bits_per_byte  # noqa: E731
    if budget.unit == "flops":
        considered = all_within(lambda flops, _: budget.value / (flops + frozen_flops))
    elif budget.unit == "seconds":
        considered = all_within(lambda flops, f: budget.value / seconds_per_token(flops, f))
    else:
        considered, worth = all_within(lambda *_: budget.value), distance
    most = MOST_WEIGHTS_PER_BYTE * corpus.train_bytes
    worthwhile = [choice for choice in considered if choice.matmul_parameters <= most] or considered[:1]
    for choice in sorted(worthwhile, key=worth):  # memory takes a moment to estimate
        if least_bytes(choice.fields) <= memory_bytes:
            return choice, considered
    least = least_bytes(sizes[0])
    raise BudgetError(
        f"training takes at least {least / 2**30:.1f} GiB of memory, {memory_bytes / 2**30:.1f} GiB are free; "
        "choose a smaller d_model or n_layers"
    )
