# SPDX-License-Identifier: Apache-2.0
"""What learning from comparisons needs besides other finetuning: what the model that it starts from thinks of each
completion, computed once; and how often it prefers the better one of held-out completions."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from foundling.blocks.heads import scores
from foundling.contracts.data import Batch
from foundling.contracts.records import Result
from foundling.data.encoded import EncodedExamples, EncodedSplit
from foundling.data.transforms.preference import REFERENCE, comparison_batches
from foundling.evaluate.intervals import interval_of
from foundling.objectives.preference import as_rows, completion_logprobs, pairs
from foundling.recipes.finetune_data import with_virtual
from foundling.recipes.journal import REFERENCES
from foundling.recipes.models import load_start
from foundling.recipes.run import Run
from foundling.runtime.device import Runtime
from foundling.runtime.files import write_directory

POLICIES = ("dpo", "ipo")
"""kinds whose policy is compared with the model that it starts from"""
N_BINS = 5
"""of margins, with about as many comparisons each"""
TASK = "held-out comparisons"


def add_reference(run: Run, model: Any, encoded: EncodedExamples, rows: int, runtime: Runtime) -> None:
    """Gives both splits the log-probability of each completion by the model that the policy starts from: a column,
    computed once and kept in the run's directory, so that no second model is needed while the policy trains. What an
    adaptation adds in front of a text, a soft prompt or a prefix, is no part of it; all others begin as the base."""
    folder = run.directory / "reference"
    splits = {"train": encoded.train, "held_out": encoded.held_out}

    def compute(aside: Path) -> None:
        assert run.recipe and run.recipe.model.directory
        start = model
        if run.recipe.adapt.method == "prefix":
            start = load_start(run.recipe.model.directory).to(runtime.device)
        for name, split in splits.items():
            logprobs_of(start, split, rows, runtime).tofile(aside / f"{name}.bin")

    def make() -> None:
        if not folder.exists():
            run.progress.line("computing the log-probabilities of all completions by the model that is the reference")
            write_directory(folder, compute)

    with run.clock.phase("evaluate"):
        run.ensure("reference", REFERENCES, make)
    for name, split in splits.items():
        split.reference = np.fromfile(folder / f"{name}.bin", dtype="<f4")


def logprobs_of(model: Any, split: EncodedSplit, rows: int, runtime: Runtime) -> np.ndarray:
    """(n,) float32: Σ log p of the tokens of each completion."""
    batches = comparison_batches(split, batch_size=rows)
    values = _by_prompt(model, batches, lambda batch: completion_logprobs(model, batch)[0], runtime, virtual=False)
    return np.concatenate([row.astype("<f4") for row in values])


def _by_prompt(
    model: Any, batches: Sequence[Batch], value: Callable[[Batch], Tensor], runtime: Runtime, *, virtual: bool = True
) -> list[np.ndarray]:
    """A number for each completion, of each prompt in order; after the tokens of a soft prompt unless not `virtual`."""
    model.eval()
    read, out = with_virtual(batches, model) if virtual else batches, list[np.ndarray]()
    with torch.inference_mode(), torch.compiler.set_stance("force_eager"), runtime.autocast():
        for n in range(len(batches)):
            batch = {name: column.to(runtime.device) for name, column in read[n].items()}
            numbers = value(batch).float().cpu().numpy()
            out += [row[:count] for row, count in zip(numbers, batch["n_completions"].tolist(), strict=True)]
    return out


def preferences(model: Any, split: EncodedSplit, kind: str, rows: int, runtime: Runtime) -> list[np.ndarray]:
    """What the model thinks of the completions of each prompt, the best first: rewards, or of a policy the log-ratio to
    its reference."""

    def value(batch: Batch) -> Tensor:
        if kind == "reward":
            return scores(model, as_rows(batch)).view(batch["tokens"].shape[:2])
        return completion_logprobs(model, batch)[0] - batch[REFERENCE]

    return _by_prompt(model, comparison_batches(split, batch_size=rows, whole=kind == "reward"), value, runtime)


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
