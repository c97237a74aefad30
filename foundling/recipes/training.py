# SPDX-License-Identifier: Apache-2.0
"""Training by a recipe, stopped and resumed without a bit of difference: checkpoints, signals, log, progress."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from foundling.contracts.data import Batches
from foundling.contracts.objective import ContrastiveObjective, Objective
from foundling.errors import Interrupted, MismatchError
from foundling.recipes.progress import Progress
from foundling.recipes.recipe import Recipe
from foundling.runtime.device import Runtime, compiler_missing
from foundling.train.checkpoint import latest_checkpoint, load_checkpoint, save_checkpoint
from foundling.train.log import Log
from foundling.train.loop import train
from foundling.train.state import MODEL, TrainState
from foundling.train.step import is_compiled
from foundling.train.update import StepRecord


class Stop:
    """Set by SIGINT or SIGTERM: the step under way is finished and saved first; a second signal ends at once."""

    signal: int | None = None


@contextmanager
def stoppable() -> Iterator[Stop]:
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def handle(number: int, _: Any) -> None:
        stop.signal = number
        signal.signal(number, before[number])

    before = {int(number): signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in before:
        signal.signal(number, handle)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def runtime_of(recipe: Recipe) -> Runtime:
    r = recipe.runtime
    return Runtime(r.device, r.precision, r.threads, compile=r.compile)


def run_training(
    recipe: Recipe,
    model: Any,
    objective: Objective | ContrastiveObjective,
    batches: Batches,
    directory: Path,
    progress: Progress,
    spent: Callable[[], dict[str, float]],
    bits_per_nat: float | None = None,
) -> tuple[Log, dict[str, float]]:
    """Trains `model` in place to the end of the recipe, from the newest whole checkpoint in directory/checkpoints.

    Returns the log and what earlier processes had spent (seconds, peak_bytes, joules); `spent` says what this one has.
    The figures of a step are read one step late, so that no step waits for the device. With
    `bits_per_nat` the log states the loss in bits per byte too. Raises Interrupted (exit code 75) or KeyboardInterrupt,
    after saving, when told to stop."""
    runtime = runtime_of(recipe)
    if runtime.compile and (missing := compiler_missing(runtime.device)):
        raise MismatchError(f"the recipe compiles, and {missing} here; install it: uncompiled, the bits would differ")
    if runtime.compile and not is_compiled(model):
        progress.line("compiling the layers at the first step")
    state = TrainState.build(model, recipe.optim)
    found, damaged = latest_checkpoint(directory / "checkpoints")
    for line in damaged:
        progress.line(f"note: checkpoint {line}; it is not used")
    before = {"seconds": 0.0, "peak_bytes": 0.0, "joules": 0.0}
    if found:
        saved = load_checkpoint(found, state, batches=batches)
        before = {name: saved[name] for name in before}
        progress.line(f"resuming at step {state.step} of {recipe.train.total_steps}")
    log = Log(directory / "log.jsonl", after_step=state.step)
    logged = log.entries[-1]["seconds"] if log.entries else 0.0
    total, per_step, start = recipe.train.total_steps, recipe.train.batch_size * recipe.train.seq_len, time.monotonic()

    def write(step: StepRecord) -> None:
        loss = None if step.skipped else round(step.loss, 5)
        bits = {} if bits_per_nat is None else {"bits_per_byte": loss and round(loss * bits_per_nat, 5)}
        log.write(
            step=step.n, tokens=step.n * per_step, seconds=round(logged + time.monotonic() - start, 3), loss=loss,
            **bits, lr=recipe.optim.learning_rate * step.lr_scale,
            grad_norm=None if step.skipped else round(step.grad_norm, 5), skipped=step.skipped,
        )  # fmt: skip
        bar.advance("skipped" if loss is None else f"loss {loss:.3f}")

    unwritten: StepRecord | None = None
    with (
        stoppable() as stop,
        progress.bar("training", total, done=state.step, scale=per_step, unit="tokens") as bar,
    ):
        for step in train(state, objective, batches, recipe.make_schedule(), recipe.train_options(), runtime):
            if unwritten:
                write(unwritten)
            unwritten = step
            if stop.signal or step.n % recipe.train.checkpoint_every == 0 or step.n == total:
                write(step)
                unwritten, now = None, spent()
                about = {
                    "seconds": before["seconds"] + now["seconds"], "joules": before["joules"] + now["joules"],
                    "peak_bytes": max(before["peak_bytes"], now["peak_bytes"]),
                }  # fmt: skip
                save_checkpoint(directory / "checkpoints", state, about, batches=batches)
            if stop.signal:
                log.close()
                if stop.signal == signal.SIGINT:
                    raise KeyboardInterrupt
                raise Interrupted(f"stopped at step {step.n} of {total}")
    log.close()
    if state.ema:
        use_averages(model, state.ema[MODEL].state_tensors())
    return log, before


@torch.no_grad()
def use_averages(model: Any, averages: dict[str, torch.Tensor]) -> None:
    """Puts averaged weights in place of the last ones: what is measured and published."""
    params = dict(model.named_parameters())
    for name, average in averages.items():
        params[name].copy_(average)
