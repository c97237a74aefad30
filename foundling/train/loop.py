# SPDX-License-Identifier: Apache-2.0
"""The one training loop: an iterator of updates. Evaluation, saving and logging are ordinary code around it."""

from __future__ import annotations

from collections.abc import Iterator

from foundling.contracts.data import Batches
from foundling.contracts.objective import ContrastiveObjective, Objective
from foundling.runtime.device import Runtime
from foundling.train.options import TrainOptions
from foundling.train.schedule import Schedule
from foundling.train.state import TrainState
from foundling.train.update import StepRecord, raise_if_diverged, update


def train(
    state: TrainState,
    objective: Objective | ContrastiveObjective,
    batches: Batches,
    schedule: Schedule,
    options: TrainOptions,
    runtime: Runtime,
) -> Iterator[StepRecord]:
    """Trains the model called "model" from state.step to schedule.total_steps, yielding after each update.

    Step n is trained on batches[n]. See `update` for what a step does. A step whose gradient is not finite moves
    nothing and is counted; more than options.max_skipped of them raise DivergedError, one step late or at the end.
    """
    while state.step < schedule.total_steps:
        yield update(state, objective, batches[state.step], options, runtime, lr_scale=schedule(state.step))
    state.settle()
    raise_if_diverged(state, options)
