# SPDX-License-Identifier: Apache-2.0
"""Pretraining by a recipe, broken off and taken up again without a bit of difference."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from foundling.data.loader import PackedBatches
from foundling.data.shards import TokenShards
from foundling.errors import Interrupted, MismatchError
from foundling.models import family
from foundling.objectives.causal import Causal
from foundling.plan.memory import estimate_training_memory, spare_memory
from foundling.recipes.progress import Show
from foundling.recipes.recipe import Recipe
from foundling.runtime.device import Runtime, compiler_missing
from foundling.train.checkpoint import latest_checkpoint, load_checkpoint, save_checkpoint
from foundling.train.log import Log
from foundling.train.loop import train
from foundling.train.options import TrainOptions
from foundling.train.state import TrainState
from foundling.train.step import is_compiled


class Stop:
    """Set by SIGINT or SIGTERM: the step at hand is finished and saved first; a second signal ends at once."""

    signal: int | None = None


@contextmanager
def stoppable() -> Iterator[Stop]:
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def hear(number: int, _: Any) -> None:
        stop.signal = number
        signal.signal(number, before[number])

    before = {int(number): signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in before:
        signal.signal(number, hear)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def pretrain(
    recipe: Recipe,
    model: Any,
    shards: TokenShards,
    directory: Path,
    show: Show,
    bytes_per_token: float,
    spent: float = 0.0,
) -> tuple[Log, float]:
    """Trains `model` in place to the end of the recipe, from the newest whole checkpoint in directory/checkpoints.

    Returns the log and the seconds that runs before this one had spent. Raises Interrupted (75) or KeyboardInterrupt
    after saving when told to stop.
    """
    runtime = Runtime(recipe.device, recipe.precision, recipe.threads, compile=recipe.compile)
    if recipe.compile and (missing := compiler_missing(recipe.device)):
        raise MismatchError(f"the recipe compiles, and {missing} here; install it: uncompiled, the bits would differ")
    if recipe.compile and not is_compiled(model):
        show.line("compiling the layers at the first step")
    sizes = family(recipe.family).module.sized(recipe.vocab_size, recipe.seq_len, recipe.d_model, recipe.n_layers)
    spare_memory(
        estimate_training_memory(
            recipe.family,
            sizes,
            micro_batch_size=recipe.micro_batch_size,
            seq_len=recipe.seq_len,
            precision=recipe.precision,
            optim=recipe.optim(),
            checkpointing=recipe.checkpoint_activations,
        )
    )
    state = TrainState.build(model, recipe.optim())
    found, damaged = latest_checkpoint(directory / "checkpoints")
    for line in damaged:
        show.line(f"note: checkpoint {line}; going back to the one before")
    if found:
        about = load_checkpoint(found, state)
        spent += about["seconds"]
        show.line(f"going on from step {state.step} of {recipe.total_steps}")
    log = Log(directory / "log.jsonl", after_step=state.step)
    before = log.entries[-1]["seconds"] if log.entries else 0.0
    batches = PackedBatches(shards, seq_len=recipe.seq_len, batch_size=recipe.batch_size, seed=recipe.seed)
    options = TrainOptions(recipe.micro_batch_size, recipe.clip, recipe.checkpoint_activations)
    per_step = recipe.batch_size * recipe.seq_len
    begin = time.monotonic()
    bits = 1 / (bytes_per_token * torch.log(torch.tensor(2.0)).item())

    with (
        stoppable() as stop,
        show.bar("training", recipe.total_steps, done=state.step, scale=per_step, unit="tokens") as bar,
    ):
        for step in train(state, Causal(), batches, recipe.make_schedule(), options, runtime):
            skipped = step.skipped
            loss = None if skipped else round(step.loss, 5)
            log.write(
                step=step.n, tokens=step.n * per_step, seconds=round(before + time.monotonic() - begin, 3), loss=loss,
                bits_per_byte=None if loss is None else round(loss * bits, 5), lr=recipe.learning_rate * step.lr_scale,
                grad_norm=None if skipped else round(step.grad_norm, 5), skipped=skipped,
            )  # fmt: skip
            bar.advance("skipped" if loss is None else f"loss {loss:.3f}")
            if stop.signal or step.n % recipe.checkpoint_every == 0 or step.n == recipe.total_steps:
                save_checkpoint(directory / "checkpoints", state, {"seconds": spent + show.elapsed})
            if stop.signal:
                log.close()
                if stop.signal == signal.SIGINT:
                    raise KeyboardInterrupt
                raise Interrupted(f"stopped at step {step.n} of {recipe.total_steps}; go on with --resume")
    log.close()
    return log, spent
