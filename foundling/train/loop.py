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
from torch.nn.parallel import DistributedDataParallel

from foundling.contracts.data import Batch, Batches
from foundling.contracts.objective import ContrastiveObjective, Objective, total
from foundling.errors import ConfigError, DivergedError
from foundling.runtime.device import Runtime
from foundling.train.optim import Optimizer
from foundling.train.parallel import (
    gather_rows,
    local,
    sum_counts,
    sum_over_ranks,
    sync_gradients,
    total_norm,
    wrap,
)
from foundling.train.schedule import Schedule
from foundling.train.step import Step, checkpoint_layers, compile_layers


@dataclass(frozen=True)
class TrainOptions:
    micro_batch_size: int
    """rows of this rank's share that go through the model at once; it changes memory, not the result"""
    clip: float = 1.0
    checkpoint_activations: bool = False
    """layers are computed twice and their insides not kept; it changes memory and time, not the result"""
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
    wrapped: Any = None
    """the Step around the model as it was first trained here; sharding cannot be done twice"""


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
    objective: Objective | ContrastiveObjective,
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
    if options.checkpoint_activations:
        checkpoint_layers(model)
    if runtime.compile:
        compile_layers(model)
    step = _wrapped(state, objective, runtime)
    params = [p for p in model.parameters() if p.requires_grad]
    if not params:
        raise ConfigError("every parameter of the model is frozen; there is nothing to train")
    accumulate = _accumulate_contrast if isinstance(objective, ContrastiveObjective) else _accumulate
    while state.step < schedule.total_steps:
        micro = micro_batches(_to(batches[state.step], runtime.device), options.micro_batch_size)
        own: dict[str, int] = {}
        for batch in micro:
            for name, count in objective.normalizers(batch).items():
                own[name] = own.get(name, 0) + count
        counts = sum_counts(own, runtime)
        metrics = accumulate(step, micro, counts, runtime)
        grads = [p.grad for p in params if p.grad is not None]
        grad_norm = total_norm(grads, runtime)
        torch._foreach_mul_([local(g) for g in grads], (options.clip / (grad_norm + 1e-6)).clamp_max(1.0))
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


def _wrapped(state: TrainState, objective: Objective | ContrastiveObjective, runtime: Runtime) -> Any:
    if state.wrapped is None:
        state.wrapped = wrap(Step(state.model, objective, runtime), runtime)
        if runtime.shard:
            state.optimizer.bind(state.model)  # sharding has replaced the parameters
    step = state.wrapped.module if isinstance(state.wrapped, DistributedDataParallel) else state.wrapped
    step.objective, step.runtime = objective, runtime
    return state.wrapped


def _accumulate(step: Any, micro: list[Batch], counts: dict[str, int], runtime: Runtime) -> dict[str, Tensor]:
    """Gradients of the whole global batch into .grad; returns each term's sum over it."""
    sums: dict[str, Tensor] = {}
    n_micro = len(micro) * runtime.world_size
    for index, batch in enumerate(micro):
        sync_gradients(step, on=index == len(micro) - 1)
        loss = step(batch)
        # ranks are averaged over; the global count has already divided by all of them
        (total(loss, counts, n_micro) * runtime.world_size).backward()
        for name, term in loss.items():
            value = term.sum.detach() if name in counts else term.sum.detach() / (term.count * n_micro)
            sums[name] = sums.get(name, torch.zeros_like(value)) + value
    return {name: sum_over_ranks(value.clone(), runtime) for name, value in sums.items()}


def _accumulate_contrast(step: Any, micro: list[Batch], counts: dict[str, int], runtime: Runtime) -> dict[str, Tensor]:
    """The same for a loss over the whole batch at once: representations without gradients first, then the loss's
    gradient by them, then each micro-batch again with its share of it (Gao et al. 2021, GradCache). One micro-batch
    needs no second pass."""
    objective: ContrastiveObjective = (step.module if isinstance(step, DistributedDataParallel) else step).objective
    once = len(micro) * runtime.world_size == 1
    with nullcontext() if once else torch.no_grad():
        parts = [step(batch) for batch in micro]
    rows = [len(next(iter(part.values()))) for part in parts]
    own = {name: torch.cat([part[name] for part in parts]).float() for name in parts[0]}
    seen = own if once else {n: gather_rows(t, runtime).requires_grad_() for n, t in own.items()}
    loss = objective.loss(seen)
    total(loss, counts).backward()
    if not once:
        first = runtime.rank * sum(rows)
        shares = {name: t.grad[first : first + sum(rows)].split(rows) for name, t in seen.items() if t.grad is not None}
        for index, batch in enumerate(micro):
            sync_gradients(step, on=index == len(micro) - 1)
            surrogate = step(batch, cotangent={name: share[index] for name, share in shares.items()})
            (surrogate * runtime.world_size).backward()
    return {n: term.sum.detach() if n in counts else term.sum.detach() / term.count for n, term in loss.items()}


def _to(batch: Batch, device: str) -> Batch:
    return batch if device == "cpu" else {k: v.to(device, non_blocking=True) for k, v in batch.items()}
