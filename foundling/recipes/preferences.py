# SPDX-License-Identifier: Apache-2.0
"""What learning from comparisons needs besides other finetuning: what the model that it starts from thinks of each
completion, computed once; and how often it prefers the better one of held-out completions."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from foundling.blocks.heads import scores
from foundling.contracts.data import Batch
from foundling.contracts.records import Result
from foundling.data.encoded import EncodedExamples, EncodedSplit
from foundling.data.transforms.preference import REFERENCE, comparison_batches, comparisons_of, longest_first
from foundling.evaluate.intervals import interval_of
from foundling.objectives.preference import as_rows, completion_logprobs, pairs
from foundling.recipes.finetune_data import with_virtual
from foundling.recipes.models import load_start
from foundling.recipes.progress import Bar
from foundling.recipes.run import Run
from foundling.runtime.device import Runtime
from foundling.runtime.files import write_bytes

POLICIES = ("dpo", "ipo")
"""kinds whose policy is compared with the model that it starts from"""
LEAST_BATCHES, MOST_PARTS = 8, 100
"""Each part of the reference's pass has so many batches or more, a split so many parts or fewer: what a kill loses."""
N_BINS = 5
"""of margins, with about as many comparisons each"""
TASK = "held-out comparisons"


class Part(NamedTuple):
    """Some batches of the reference's pass over a split, and the file of the run that has their log-probabilities."""

    file: str
    split: EncodedSplit
    batches: Sequence[Batch]
    """of the whole pass"""
    own: range
    """numbers of those of this part"""


def add_reference(run: Run, model: Any, encoded: EncodedExamples, rows: int, runtime: Runtime) -> None:
    """Gives both splits the log-probability of each completion by the model that the policy starts from: a column,
    computed once and kept in the run's directory, so that no second model is needed while the policy trains. What an
    adaptation adds in front of a text, a soft prompt or a prefix, is no part of it; all others begin as the base.

    A part of the batches is a file that is whole or absent: a run that was killed goes on after the last one."""
    assert run.recipe and run.recipe.model.directory
    splits = {"train": encoded.train, "held_out": encoded.held_out}
    parts = [part for name, split in splits.items() for part in _parts(name, split, rows)]
    left = [part for part in parts if run.journal.problem(part.file)]
    reference = model
    if left and run.recipe.adapt.method == "prefix":
        reference = load_start(run.recipe.model.directory).to(runtime.device)
    n, n_left = (sum(len(part.own) for part in some) for some in (parts, left))
    if left:
        run.progress.line("computing the log-probabilities of all completions by the model that is the reference")
    with (
        run.clock.phase("evaluate"),
        run.progress.bar("reference", n, done=n - n_left, scale=rows, unit="prompts") as bar,
    ):
        for part in left:
            run.ensure(part.file, (part.file,), lambda part=part: _write(run, part, reference, runtime, bar))
    for split in splits.values():
        files = [run.directory / part.file for part in parts if part.split is split]
        split.reference = np.empty(len(split), dtype="<f4")
        groups = comparisons_of(split)
        places = np.concatenate([groups[int(i)] for i in longest_first(split)])
        split.reference[places] = np.concatenate([np.fromfile(file, dtype="<f4") for file in files])


def _parts(name: str, split: EncodedSplit, rows: int) -> list[Part]:
    batches = comparison_batches(split, batch_size=rows, order=longest_first(split))
    size = max(LEAST_BATCHES, math.ceil(len(batches) / MOST_PARTS))
    owns = [range(len(batches))[at : at + size] for at in range(0, len(batches), size)]
    return [Part(f"reference/{name}-{n:03d}.bin", split, batches, own) for n, own in enumerate(owns)]


def _write(run: Run, part: Part, model: Any, runtime: Runtime, bar: Bar) -> None:
    """float32 Σ log p of the tokens of each completion, in the order of the pass."""
    values = list[np.ndarray]()
    for n in part.own:
        values += _of_batch(model, part.batches[n], lambda batch: completion_logprobs(model, batch)[0], runtime)
        bar.advance()
    write_bytes(run.directory / part.file, np.concatenate(values).astype("<f4").tobytes())


def _of_batch(model: Any, batch: Batch, value: Callable[[Batch], Tensor], runtime: Runtime) -> list[np.ndarray]:
    """Of each prompt, a number for each of its completions."""
    model.eval()
    with torch.inference_mode(), torch.compiler.set_stance("force_eager"), runtime.autocast():
        batch = {name: column.to(runtime.device) for name, column in batch.items()}
        numbers = value(batch).float().cpu().numpy()
        return [row[:count] for row, count in zip(numbers, batch["n_completions"].tolist(), strict=True)]


def preferences(model: Any, split: EncodedSplit, kind: str, rows: int, runtime: Runtime) -> list[np.ndarray]:
    """What the model thinks of the completions of each prompt, the best first: rewards, or of a policy the log-ratio to
    its reference."""

    def value(batch: Batch) -> Tensor:
        if kind == "reward":
            return scores(model, as_rows(batch)).view(batch["tokens"].shape[:2])
        return completion_logprobs(model, batch)[0] - batch[REFERENCE]

    # batches as the reference has read them, so that a policy that is as it was differs by no rounding
    order = longest_first(split)
    batches = comparison_batches(split, batch_size=rows, whole=kind == "reward", order=order)
    read = with_virtual(batches, model)
    numbers = [row for n in range(len(batches)) for row in _of_batch(model, read[n], value, runtime)]
    return [numbers[at] for at in np.argsort(order)]


def accuracy_of(values: Sequence[np.ndarray], subject: str, *, expects: bool = True) -> Result:
    """How often the better completion has the larger number; equal numbers count half. Comparisons of one prompt are
    one item, their mean. `figures`: the mean margin and, by bins of the margin |a − b|, the accuracy and, where the
    model `expects` something, what Bradley and Terry's says of it, σ(margin)."""
    margins = [_margins(numbers) for numbers in values]
    each = [float(np.mean((m > 0) + 0.5 * (m == 0))) for m in margins]
    low, high, method = interval_of(each)
    every = np.concatenate(margins)
    figures: dict[str, tuple[float | None, float | None, float | None]] = {"margin": (float(every.mean()), None, None)}
    order = np.argsort(np.abs(every))
    for number, part in enumerate(np.array_split(order, N_BINS), 1):
        if len(part):
            size, right = np.abs(every[part]), (every[part] > 0) + 0.5 * (every[part] == 0)
            name = f"margins {number} of {N_BINS}, up to {size.max():.2g}"
            figures[name] = (float(right.mean()), None, None)
            if expects:
                figures[f"{name}: expected"] = (float(np.mean(1 / (1 + np.exp(-size)))), None, None)
    value = sum(each) / len(each) if each else math.nan
    return Result(TASK, "accuracy", value, len(each), subject, low, high, method, figures=figures)


def _margins(values: np.ndarray) -> np.ndarray:
    """Of all comparisons of one prompt's completions, the better one's number less the worse one's."""
    difference, _ = pairs(torch.from_numpy(values)[None], torch.tensor([len(values)]))
    return difference[0].numpy()
