# SPDX-License-Identifier: Apache-2.0
"""The one training loop: an iterator of steps. Evaluation, saving and logging are ordinary code around it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from foundling.contracts import Batch, Batches, Objective, total
from foundling.errors import DivergedError
from foundling.runtime import Runtime
from foundling.train.optim import Optimizer
from foundling.train.parallel import sum_counts, sum_over_ranks, wrap
from foundling.train.schedule import Schedule
from foundling.train.step import Step, compile_layers


@dataclass(frozen=True)
class TrainOptions:
    micro_batch_size: int
    """rows of this rank's share that go through the model at once; it changes memory, not the result"""
    clip: float = 1.0
    max_skipped: int = 20
    """non-finite steps in a run before it stops"""


@dataclass
class TrainState:
    """Everything that saving and resuming handle. Randomness is drawn from (seed, step or sample), so there is none to
    keep."""

    model: Any
    optimizer: Optimizer
    step: int = 0
    skipped: int = 0


@dataclass
class StepRecord:
    """What a step did. Reading a figure waits for the device; not reading it does not."""

    n: int
    """updates done, this one included"""
    counts: dict[str, int]
    lr_scale: float
    metrics: dict[str, Tensor]
    grad_norm_tensor: Tensor

    @cached_property
    def losses(self) -> dict[str, float]:
        return {name: float(value) / max(self.counts.get(name, 1), 1) for name, value in self.metrics.items()}

    @property
    def loss(self) -> float:
        return self.losses["loss"]

    @cached_property
    def grad_norm(self) -> float:
        return float(self.grad_norm_tensor)

    @property
    def skipped(self) -> bool:
        return not torch.isfinite(self.grad_norm_tensor).item()


def micro_batches(batch: Batch, size: int) -> list[Batch]:
    rows = len(next(iter(batch.values())))
    return [{k: v[i : i + size] for k, v in batch.items()} for i in range(0, rows, size)]


def train(
    state: TrainState,
    objective: Objective,
    batches: Batches,
    schedule: Schedule,
    options: TrainOptions,
    runtime: Runtime,
) -> Iterator[StepRecord]:
    """Trains from state.step to schedule.total_steps, yielding after each update.

    The loss is the sum over the whole global batch divided by its global count, so accumulation and the number of
    processes change nothing. A step whose gradient is not finite moves nothing and is counted; DivergedError past
    options.max_skipped.
    """
    model = state.model.train()
    if runtime.compile:
        compile_layers(model)
    step = wrap(Step(model, objective, runtime), runtime)
    params = [p for p in model.parameters() if p.requires_grad]
    while state.step < schedule.total_steps:
        micro = micro_batches(_to(batches[state.step], runtime.device), options.micro_batch_size)
        local: dict[str, int] = {}
        for batch in micro:
            for name, count in objective.counts(batch).items():
                local[name] = local.get(name, 0) + count
        counts = sum_counts(local, runtime)
        metrics = _accumulate(step, micro, counts, runtime)
        grad_norm = torch.nn.utils.get_total_norm([p.grad for p in params if p.grad is not None])
        torch.nn.utils.clip_grads_with_norm_(params, options.clip, grad_norm)
        scale = schedule(state.step)
        state.optimizer.step(scale, (~torch.isfinite(grad_norm)).float())
        state.optimizer.zero_grad()
        state.step += 1
        record = StepRecord(state.step, counts, scale, metrics, grad_norm)
        if record.skipped:
            state.skipped += 1
            if state.skipped > options.max_skipped:
                raise DivergedError(
                    f"step {state.step}: {state.skipped} steps had gradients that are not finite; "
                    "lower learning_rate and matrix_learning_rate"
                )
        yield record


def _accumulate(step: Any, micro: list[Batch], counts: dict[str, int], runtime: Runtime) -> dict[str, Tensor]:
    """Gradients of the whole global batch into .grad; returns each term's sum over it."""
    sums: dict[str, Tensor] = {}
    for index, batch in enumerate(micro):
        last = index == len(micro) - 1
        with nullcontext() if last or runtime.world_size == 1 else step.no_sync():
            loss = step(batch)
            # DDP averages over ranks; the global count has already divided by all of them
            (total(loss, counts) * runtime.world_size).backward()
        for name, term in loss.items():
            value = term.sum.detach() if name in counts else term.sum.detach() / (term.count * len(micro))
            sums[name] = sums.get(name, torch.zeros_like(value)) + value
    if runtime.world_size > 1:
        for name, value in sums.items():
            sums[name] = sum_over_ranks(value.clone(), runtime)
    return sums


def _to(batch: Batch, device: str) -> Batch:
    return batch if device == "cpu" else {k: v.to(device, non_blocking=True) for k, v in batch.items()}
