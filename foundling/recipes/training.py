# SPDX-License-Identifier: Apache-2.0
"""Training by a recipe, stopped and resumed without a bit of difference: checkpoints, signals, log, progress."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import isfinite
from pathlib import Path
from typing import Any

import torch

from foundling.contracts.data import Batches
from foundling.contracts.objective import ContrastiveObjective, Objective
from foundling.errors import DivergedError, Interrupted, MismatchError
from foundling.recipes.journal import CHECKPOINTS, LOG, Journal
from foundling.recipes.progress import Progress
from foundling.recipes.recipe import Recipe
from foundling.recipes.validation import Validation
from foundling.runtime import signals
from foundling.runtime.device import Runtime, compiler_missing
from foundling.train.checkpoint import latest_checkpoint, load_checkpoint, save_checkpoint
from foundling.train.log import Log
from foundling.train.loop import train
from foundling.train.schedule import Schedule
from foundling.train.state import MODEL, TrainState
from foundling.train.step import is_compiled
from foundling.train.update import StepRecord
from foundling.weights.manifest import MANIFEST

TIMED_STEPS, TIMED_SECONDS = 3, 10.0
"""that are timed at most; long steps differ little"""


def runtime_of(recipe: Recipe) -> Runtime:
    r = recipe.runtime
    return Runtime(r.device, r.precision, r.threads, compile=r.compile)


def time_steps(recipe: Recipe, model: Any, batches: Batches, objective: Any) -> float:
    """Seconds of a step, the mean of some after a first one. The model is trained by them: build it again."""
    state, marks = TrainState.build(model, recipe.optim), list[float]()
    options = replace(recipe.train_options(), unfreeze_every=None)  # what the last steps take
    for record in train(state, objective, batches, Schedule(1 + TIMED_STEPS), options, runtime_of(recipe)):
        record.grad_norm  # noqa: B018  waits for the device
        marks.append(time.perf_counter())
        if marks[-1] - marks[0] > TIMED_SECONDS:
            break
    return (marks[-1] - marks[0]) / (len(marks) - 1)


def run_training(
    recipe: Recipe,
    model: Any,
    objective: Objective | ContrastiveObjective,
    batches: Batches,
    journal: Journal,
    progress: Progress,
    spent: Callable[[], dict[str, float]],
    bits_per_nat: float | None = None,
    validation: Validation | None = None,
) -> tuple[Log, dict[str, float]]:
    """Trains `model` in place to the end of the recipe, or until its validation no longer improves, from the newest
    whole checkpoint that the journal knows. With a validation, the weights are the best ones afterwards.

    Returns the log and what earlier processes had spent (seconds, peak_bytes, joules); `spent` says what this one has.
    The figures of a step are read one step late, so that no step waits for the device. With
    `bits_per_nat` the log states the loss in bits per byte too. Told to stop, it ends the step under way, saves,
    and raises Interrupted."""
    runtime = runtime_of(recipe)
    if runtime.compile:
        _check_compiler(runtime, model, progress)
    state = TrainState.build(model, recipe.optim)
    log, before = _resume(recipe, state, batches, journal, progress, validation)
    if validation and not state.step:
        validation.after(0, model, journal)
    total, per_step = recipe.train.total_steps, recipe.train.batch_size * recipe.train.seq_len
    keeper = _Keeper(recipe, state, log, before, spent, bits_per_nat, journal, validation)
    with (
        signals.deferred() as stop,
        progress.bar("training", total, done=state.step, scale=per_step, unit="tokens") as bar,
        keeper.saving(batches),
    ):
        steps = train(state, objective, batches, recipe.make_schedule(), recipe.train_options(), runtime)
        for step in () if validation and validation.stopped else steps:
            if keeper.unwritten:
                bar.advance(keeper.write(keeper.unwritten))
            keeper.unwritten = step
            due = validation is not None and validation.is_due(step.n, total)
            if stop.number or due or step.n % recipe.train.checkpoint_every == 0 or step.n == total:
                figures = {}
                if validation and due:
                    figures = {"validation_loss": round(validation.after(step.n, model, journal), 5)}
                bar.advance(keeper.write(step, **figures))
                keeper.save(batches)
            if stop.number:
                log.close()
                raise Interrupted(stop.number, at=f"at step {step.n} of {total}")
            if validation and validation.stopped:
                progress.line(f"stopping at step {step.n}: no better than at step {validation.best_step}")
                break
    log.close()
    if state.ema:
        use_averages(model, state.ema[MODEL].state_tensors())
    if validation:
        validation.restore_best(model, journal)
    return log, before


@dataclass
class _Keeper:
    """Writes the log and the checkpoints of a run."""

    recipe: Recipe
    state: TrainState
    log: Log
    before: dict[str, float]
    spent: Callable[[], dict[str, float]]
    bits_per_nat: float | None
    journal: Journal
    validation: Validation | None
    unwritten: StepRecord | None = None
    """a step whose figures nobody has read yet"""
    saved: int = -1
    """the step of the last checkpoint"""

    def __post_init__(self) -> None:
        self.logged = self.log.entries[-1]["seconds"] if self.log.entries else 0.0
        self.start = time.monotonic()

    def write(self, step: StepRecord, **more: Any) -> str:
        """A line of the log; its loss, or reward, in words."""
        self.unwritten = None
        t, loss = self.recipe.train, None if step.skipped else round(step.loss, 5)
        bits = {} if self.bits_per_nat is None else {"bits_per_byte": loss and round(loss * self.bits_per_nat, 5)}
        self.log.write(
            step=step.n, tokens=step.n * t.batch_size * t.seq_len,
            seconds=round(self.logged + time.monotonic() - self.start, 3), loss=loss, **bits,
            lr=self.recipe.optim.learning_rate * step.lr_scale,
            grad_norm=None if step.skipped else round(step.grad_norm, 5), skipped=step.skipped,
            **{name: round(value, 6) for name, value in step.losses.items() if name != "loss" and isfinite(value)},
            **more,
        )  # fmt: skip
        if loss is None:
            return "skipped"
        return f"reward {step.losses['reward']:.3f}" if "reward" in step.losses else f"loss {loss:.3f}"

    @contextmanager
    def saving(self, batches: Batches) -> Iterator[None]:
        """Where a batch cannot be made (a reward that fails, a signal while answers are drawn), a checkpoint holds what
        was learnt before."""
        try:
            yield
        except DivergedError:
            raise
        except (Exception, Interrupted) as error:
            if self.unwritten:
                self.write(self.unwritten)
            if self.state.step not in (0, self.saved):
                self.save(batches)
            if isinstance(error, Interrupted) and not error.at:
                at = f"at step {self.state.step} of {self.recipe.train.total_steps}"
                raise Interrupted(error.number, at=at) from None
            raise

    def save(self, batches: Batches) -> None:
        now, before = self.spent(), self.before
        about = {
            "seconds": before["seconds"] + now["seconds"], "joules": before["joules"] + now["joules"],
            "peak_bytes": max(before["peak_bytes"], now["peak_bytes"]), "log": self.log.state(),
            "validation": self.validation and self.validation.state(),
        }  # fmt: skip
        path = save_checkpoint(self.journal.directory / CHECKPOINTS, self.state, about, batches=batches)
        self.journal.record(f"{CHECKPOINTS}/{path.name}/{MANIFEST}")
        self.saved = self.state.step


def _check_compiler(runtime: Runtime, model: Any, progress: Progress) -> None:
    if missing := compiler_missing(runtime.device):
        raise MismatchError(f"the recipe compiles, and {missing} here; install it: uncompiled, the bits would differ")
    if not is_compiled(model):
        progress.line("compiling the layers at the first step")


def _resume(
    recipe: Recipe,
    state: TrainState,
    batches: Batches,
    journal: Journal,
    progress: Progress,
    validation: Validation | None = None,
) -> tuple[Log, dict[str, float]]:
    """Puts the newest whole checkpoint into `state` and `batches`, if there is one. The log up to there, and what
    earlier processes had spent."""
    known = {Path(name).parent.name: d for name, d in journal.files.items() if name.startswith(CHECKPOINTS)}
    found, damaged = latest_checkpoint(journal.directory / CHECKPOINTS, known)
    for line in damaged:
        progress.line(f"note: checkpoint {line}; it is not used")
    before, logged_before = {"seconds": 0.0, "peak_bytes": 0.0, "joules": 0.0}, None
    if found:
        saved = load_checkpoint(found, state, batches=batches)
        before, logged_before = {name: saved[name] for name in before}, saved["log"]
        if validation:
            validation.load_state(saved["validation"])
        progress.line(f"resuming at step {state.step} of {recipe.train.total_steps}")
    log = Log(journal.directory / LOG, logged_before)
    if log.missing:
        progress.line(f"note: {log.path} is missing; the report will not have the steps up to {state.step}")
    return log, before


@torch.no_grad()
def use_averages(model: Any, averages: dict[str, torch.Tensor]) -> None:
    """Puts averaged weights in place of the last ones: what is measured and published."""
    params = dict(model.named_parameters())
    for name, average in averages.items():
        params[name].copy_(average)
