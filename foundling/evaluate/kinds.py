# SPDX-License-Identifier: Apache-2.0
"""Tasks with labels: of texts, which classifiers and language models do alike, and of pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from foundling.evaluate.calibration import as_figures, calibration
from foundling.evaluate.metrics import Figure, macro_f1, matthews
from foundling.evaluate.subject import Continuation, Prompt
from foundling.evaluate.task import Task, best

Row = dict[str, Any]


def classify_task(
    name: str,
    items: Sequence[Row],
    prompt: Callable[[Row], Prompt],
    labels: Callable[[Row], Sequence[str]],
    right: Callable[[Row], int],
    *,
    pictures: bool = False,
) -> Task[Row]:
    """The likeliest of `labels`, each a continuation of the prompt, or with `pictures` a text that describes it;
    `right` is the number of the right one. The figures are macro F1, Matthews' correlation and calibration."""

    def figures(examples: Sequence[Row], answers: Sequence[list[Continuation]]) -> dict[str, Figure]:
        truth = [labels(row)[right(row)] for row in examples]
        predicted = [options[best(options)].text for options in answers]
        values = [[option.logprob for option in options] for options in answers]
        return {
            "macro F1": macro_f1(truth, predicted), "Matthews": matthews(truth, predicted),
            **as_figures(calibration(values, [right(row) for row in examples])),
        }  # fmt: skip

    return Task(
        name, items, prompt, lambda row, options: float(best(options) == right(row)), continuations=labels,
        pictures=pictures, figures=figures, target=lambda row: labels(row)[right(row)],
    )  # fmt: skip
