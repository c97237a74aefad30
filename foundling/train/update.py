# SPDX-License-Identifier: Apache-2.0
"""One update of one model: micro-batches, global counts, clipping, the optimiser, and steps that are not finite."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from foundling.contracts.data import Batch
from foundling.contracts.objective import ContrastiveObjective, Objective, total
from foundling.errors import ConfigError, DivergedError
from foundling.runtime.device import Runtime
from foundling.train.buffers import broadcast_buffers, buffers_replaced, copies, restore_where
from foundling.train.ema import EMA
from foundling.train.options import TrainOptions
from foundling.train.parallel import (
    gather_rows,
    local,
    sum_counts,
    sum_over_ranks,
    sync_gradients,
    total_norm,
    wrap,
)
from foundling.train.randomness import global_rng_kept, module_seed, seed_modules
from foundling.train.state import MODEL, TrainState
from foundling.train.step import Step, checkpoint_layers, compile_layers
from foundling.train.unfreeze import check_unfreezing, gradually_unfrozen


@dataclass
class StepRecord:
    """What an update did. Reading a number waits for the device; not reading it does not."""

    n: int
    """updates done, this one included"""
    normalizers: dict[str, int]
    """term -> what its sum was divided by: the count of the whole global batch"""
    lr_scale: float
    metrics: dict[str, Tensor]
    """term -> its sum over the global batch or, where `normalizers` does not name it, its mean over micro-batches"""
    grad_norm_tensor: Tensor
    """() the norm before clipping"""

    @cached_property
    def losses(self) -> dict[str, float]:
        """term -> its mean over the global batch, without its weight"""
        return {name: float(value) / max(self.normalizers.get(name, 1), 1) for name, value in self.metrics.items()}

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


def update(
    state: TrainState,
    objective: Objective | ContrastiveObjective,
    batch: Batch,
    options: TrainOptions,
    runtime: Runtime,
    *,
    lr_scale: float = 1.0,
    name: str = MODEL,
) -> StepRecord:
    """Moves state.models[name] by one step of state.optimizers[name] on this rank's part of a global batch, and counts
    it in state.step.

    The loss is the sum over the whole global batch divided by its global count, so neither accumulation nor the number
    of ranks changes it. The other models of the state get no gradients, whatever the objective does with them. An
    update whose gradient is not finite changes nothing (no parameter, optimiser state, buffer or average). This is
    found on the device and read one update later, so DivergedError (more than options.max_skipped of them) comes an
    update late. Modules draw random numbers that depend on (options.seed, state.step, micro-batch counted over all
    ranks) alone;
    torch's global generators are afterwards what they were. ConfigError where no parameter of the model is trainable.
    """
    step = _prepared(state, name, objective, options, runtime)
    model, optimizer = state.models[name], state.optimizers[name]
    params = [p for p in optimizer.params.values() if p.requires_grad]
    if not params:
        raise ConfigError("every parameter of the model is frozen; there is nothing to train")
    # counted before the batch goes to the device, which would have to be waited for
    normalizers = _count(objective, micro_batches(batch, options.micro_batch_size), runtime)
    micro = micro_batches(_to(batch, runtime.device), options.micro_batch_size)
    first = runtime.rank * len(micro)
    seeds = [module_seed(options.seed, state.step, first + i) for i in range(len(micro))]
    before = copies(model)
    accumulate = _accumulate_contrastive if isinstance(objective, ContrastiveObjective) else _accumulate
    unfrozen = gradually_unfrozen(model, optimizer.params, options.unfreeze_every, state.step)
    with global_rng_kept(runtime.device), _others_frozen(state, name), unfrozen:
        metrics = accumulate(step, micro, seeds, normalizers, runtime)
    grads = [p.grad for p in params if p.grad is not None]
    grad_norm = total_norm(grads, runtime)
    torch._foreach_mul_([local(g) for g in grads], (options.clip / (grad_norm + 1e-6)).clamp_max(1.0))
    not_finite = ~torch.isfinite(grad_norm)
    optimizer.step(lr_scale, not_finite.float())
    optimizer.zero_grad()
    restore_where(not_finite, model, before)
    broadcast_buffers(model, runtime)
    if name in state.ema:
        state.ema[name].update(not_finite)
    state.step += 1
    state.settle(not_finite)
    raise_if_diverged(state, options)
    return StepRecord(state.step, normalizers, lr_scale, metrics, grad_norm)


def raise_if_diverged(state: TrainState, options: TrainOptions) -> None:
    if state.skipped > options.max_skipped:
        raise DivergedError(
            f"step {state.step}: {state.skipped} steps had gradients that are not finite, at most "
            f"{options.max_skipped} are skipped; lower learning_rate and matrix_learning_rate"
        )


def _prepared(
    state: TrainState, name: str, objective: Objective | ContrastiveObjective, options: TrainOptions, runtime: Runtime
) -> Any:
    """The Step around the model, compiled, recomputed and wrapped as asked for; ready for this objective."""
    check_unfreezing(options.unfreeze_every, runtime)
    model = state.models[name]
    if not model.training:
        model.train()
    if options.ema_decay is not None and name not in state.ema:
        state.ema[name] = EMA(model, options.ema_decay)
    if name in state.ema and options.ema_decay not in (None, state.ema[name].decay):
        raise ConfigError(f"'ema_decay' is {options.ema_decay}, the state's EMA has {state.ema[name].decay}")
    ways = (options.activation_checkpointing, runtime.compile)
    known = state.steps.get(name)
    if known is None or known[1] != ways:
        if options.activation_checkpointing:
            checkpoint_layers(model, compiled=runtime.compile)
        if runtime.compile:
            compile_layers(model)
        wrapped = wrap(Step(model, objective, runtime), runtime) if known is None else known[0]
        state.steps[name] = known = wrapped, ways
        if runtime.shard:  # sharding has replaced the parameters
            for follower in (state.optimizers[name], state.ema.get(name)):
                if follower is not None:
                    follower.bind(model)
    step = inner(known[0])
    step.objective, step.runtime = objective, runtime
    return known[0]


def _count(objective: Any, micro: list[Batch], runtime: Runtime) -> dict[str, int]:
    own: dict[str, int] = {}
    for batch in micro:
        for name, count in objective.normalizers(batch).items():
            own[name] = own.get(name, 0) + count
    return sum_counts(own, runtime)


@contextmanager
def _others_frozen(state: TrainState, name: str) -> Iterator[None]:
    """Gradients pass through the other models of the state (a generator learns through its discriminator) and stay in
    none of them."""
    others = [p for other, model in state.models.items() if other != name for p in model.parameters()]
    own = {id(p) for p in state.models[name].parameters()} if others else set()
    changed = [p for p in others if p.requires_grad and id(p) not in own]
    for p in changed:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in changed:
            p.requires_grad_(True)


def _accumulate(
    step: Any, micro: list[Batch], seeds: list[int], counts: dict[str, int], runtime: Runtime
) -> dict[str, Tensor]:
    """Gradients of the whole global batch into .grad; returns each term's sum over it."""
    sums: dict[str, Tensor] = {}
    n_micro = len(micro) * runtime.world_size
    for index, batch in enumerate(micro):
        sync_gradients(step, on=index == len(micro) - 1)
        seed_modules(seeds[index], runtime.device)
        loss = step(batch)
        # ranks are averaged over; the global count has already divided by all of them
        (total(loss, counts, n_micro) * runtime.world_size).backward()
        for name, term in loss.items():
            value = term.sum.detach() if name in counts else term.sum.detach() / (term.count * n_micro)
            sums[name] = sums.get(name, torch.zeros_like(value)) + value
    return {name: sum_over_ranks(value.clone(), runtime) for name, value in sums.items()}


def _accumulate_contrastive(
    step: Any, micro: list[Batch], seeds: list[int], counts: dict[str, int], runtime: Runtime
) -> dict[str, Tensor]:
    """The same for a loss over the whole batch at once: representations without gradients first, then the loss's
    gradient by them, then each micro-batch again with its share of it (Gao et al. 2021, GradCache). Both passes draw
    the same random numbers, and only the second changes buffers. One micro-batch needs no second pass."""
    model: Any = inner(step).model
    objective: Any = inner(step).objective
    once = len(micro) * runtime.world_size == 1
    parts = []
    with nullcontext() if once else torch.no_grad(), nullcontext() if once else buffers_replaced(model):
        for seed, batch in zip(seeds, micro, strict=True):
            seed_modules(seed, runtime.device)
            parts.append(step(batch))
    rows = [len(next(iter(part.values()))) for part in parts]
    own = {name: torch.cat([part[name] for part in parts]).float() for name in parts[0]}
    gathered = own if once else {n: gather_rows(t, runtime).requires_grad_() for n, t in own.items()}
    loss = objective.loss(gathered)
    total(loss, counts).backward()
    if not once:
        first = runtime.rank * sum(rows)
        grads = {name: t.grad for name, t in gathered.items() if t.grad is not None}
        shares = {name: grad[first : first + sum(rows)].split(rows) for name, grad in grads.items()}
        for index, (seed, batch) in enumerate(zip(seeds, micro, strict=True)):
            sync_gradients(step, on=index == len(micro) - 1)
            seed_modules(seed, runtime.device)
            surrogate = step(batch, cotangent={name: share[index] for name, share in shares.items()})
            (surrogate * runtime.world_size).backward()
    return {n: term.sum.detach() if n in counts else term.sum.detach() / term.count for n, term in loss.items()}


def inner(step: Any) -> Step:
    """The Step itself, without DistributedDataParallel around it."""
    return step.module if isinstance(step, DistributedDataParallel) else step


def _to(batch: Batch, device: str) -> Batch:
    """`sample_ids` stay on the CPU, where an objective seeds its draws by them."""
    if device == "cpu":
        return batch
    return {k: v if k == "sample_ids" else v.to(device, non_blocking=True) for k, v in batch.items()}
