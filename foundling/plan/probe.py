# SPDX-License-Identifier: Apache-2.0
"""A few seconds of measurement: which precision multiplies faster here, and how long a real training step takes."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch

from foundling.blocks.init import initialise
from foundling.contracts.data import Batch, Batches
from foundling.contracts.objective import Objective
from foundling.data.loader import packed
from foundling.models import build
from foundling.plan.memory import estimate_training_memory
from foundling.runtime.device import Precision, Runtime
from foundling.runtime.memory import PeakMemory
from foundling.runtime.rng import generator
from foundling.train.loop import train
from foundling.train.options import OptimOptions, TrainOptions
from foundling.train.schedule import Schedule
from foundling.train.state import TrainState

MOST_STEPS = 10_000
LONG_SECONDS = 15.0


def product_rate(precision: Precision, device: str, seconds: float = 0.1) -> float:
    """FLOP/s of a (2048, 512) x (512, 512) product."""
    dtype = torch.float32 if precision == "float32" else torch.bfloat16
    a = torch.ones(2048, 512, dtype=dtype, device=device)
    b = torch.ones(512, 512, dtype=dtype, device=device)

    def run() -> None:
        torch.nn.functional.linear(a, b)
        if device != "cpu":
            torch.cuda.synchronize()

    run()
    begin, n = time.perf_counter(), 0
    while time.perf_counter() - begin < seconds:
        run()
        n += 1
    return 2 * 2048 * 512 * 512 * n / (time.perf_counter() - begin)


def choose_precision(device: str) -> tuple[Precision, float]:
    """bfloat16 where it multiplies at least 1.5 times as fast; elsewhere it is emulated and slower."""
    single, half = product_rate("float32", device), product_rate("bfloat16", device)
    return ("bfloat16", half) if half > 1.5 * single else ("float32", single)


class RandomBatches:
    """Random tokens in the shape of real batches."""

    def __init__(self, rows: int, seq_len: int, vocab_size: int) -> None:
        tokens = torch.randint(0, vocab_size, (rows, seq_len + 1), generator=generator("probe"))
        self.batch = packed(tokens, eos=0)

    def __getitem__(self, n: int) -> Batch:
        return self.batch


def step_seconds(
    family: str, fields: dict[str, Any], objective: Objective, runtime: Runtime, batch_size: int, micro_batch_size: int,
    optim: OptimOptions, *, least_seconds: float = 0.0, least_steps: int = 2, model: Any = None,
    checkpoint_activations: bool = False,
) -> float:  # fmt: skip
    """Seconds of one whole training step on random tokens: the mean over `least_seconds` and at least two steps, after
    a first one that is not counted; `least_steps` more, unless that takes long. A mean, since what slows a machine now
    and then will slow the run as well.

    A `model` given is used, compiled and left trained on noise: initialise it again.
    """
    if model is None:
        model = build(family, device=runtime.device, **fields)
        initialise(model, generator("probe"))
    state = TrainState.build(model, optim)
    batches = RandomBatches(batch_size, fields["max_seq_len"], fields["vocab_size"])
    marks: list[float] = []
    options = TrainOptions(micro_batch_size, activation_checkpointing=checkpoint_activations)
    for record in train(state, objective, batches, Schedule(MOST_STEPS), options, runtime):
        record.grad_norm  # noqa: B018  waits for the device
        marks.append(time.perf_counter())
        gone = marks[-1] - marks[0]
        if len(marks) > 2 and gone >= least_seconds and (len(marks) > least_steps or gone > LONG_SECONDS):
            break
    return (marks[-1] - marks[0]) / (len(marks) - 1)


LOOK_SIZE = (64, 2)
"""d_model and layers of the model that takes a first look at a corpus."""
LOOK_STEPS, LOOK_STEP_TOKENS = 32, 1024


def proxy_run(
    family: str, fields: dict[str, Any], objective: Objective, runtime: Runtime, batches: Batches, optim: OptimOptions,
    schedule: Schedule,
) -> tuple[Any, float]:  # fmt: skip
    """(a new model trained over the whole schedule, seconds of a step). The same model each time on the same data."""
    model = build(family, device=runtime.device, **fields)
    initialise(model, generator("look"))
    state, marks = TrainState.build(model, optim), []
    for record in train(state, objective, batches, schedule, TrainOptions(2**30), runtime):
        record.grad_norm  # noqa: B018  waits for the device
        marks.append(time.perf_counter())
    return model, (marks[-1] - marks[0]) / (len(marks) - 1)


REAL_SECONDS = 4.0
"""A step expected to take no longer is timed as it is."""
SETTLED = 8
"""Micro-batches after which an allocator has taken most of what it ever will (docs/benchmarks.md)."""
FEW = (1, 4)
"""Layers of the shallow models that a deep one's step is put together from."""


@dataclass(frozen=True)
class StepEstimate:
    """A whole step, before any is taken for real."""

    seconds: float
    peak_bytes: int | None
    """the most memory the process had while it was tried, or would have; None if nothing could be tried"""
    how: str

    def times(self, n: float, more: StepEstimate) -> StepEstimate:
        """This, and n times what `more` takes beyond it."""
        assert self.peak_bytes and more.peak_bytes
        seconds = self.seconds + n * (more.seconds - self.seconds)
        return StepEstimate(seconds, round(self.peak_bytes + n * (more.peak_bytes - self.peak_bytes)), more.how)


def estimate_step(
    family: str, fields: dict[str, Any], objective: Objective, runtime: Runtime, batch_size: int, micro_batch_size: int,
    optim: OptimOptions, *, flops_per_token: float, memory_bytes: int, least_seconds: float = 2.0,
    checkpoint_activations: bool = False,
) -> StepEstimate:  # fmt: skip
    """Seconds and memory of a whole step: tried, where that takes seconds; else put together from shallow models of the
    same width and one or two micro-batches, since both are linear in either; else, where even those do not fit, seconds
    alone, from the rate of a bare product."""
    tokens, depth = micro_batch_size * fields["max_seq_len"], fields["n_layers"]
    rate, n_micro = product_rate(runtime.precision, runtime.device), -(-batch_size // micro_batch_size)
    expected = 2 * flops_per_token * tokens / rate

    def tried(layers: int, micro: int, how: str = "put together from fewer layers") -> StepEstimate:
        memory = PeakMemory(0.02)
        seconds = step_seconds(
            family, fields | {"n_layers": layers}, objective, runtime, micro * micro_batch_size, micro_batch_size,
            optim, least_seconds=least_seconds, least_steps=-(-SETTLED // micro),
            checkpoint_activations=checkpoint_activations,
        )  # fmt: skip
        memory.done.set()
        return StepEstimate(seconds, memory.peak, how)

    def bytes_of(layers: int) -> int:
        return estimate_training_memory(
            family, fields | {"n_layers": layers}, micro_batch_size=micro_batch_size, seq_len=fields["max_seq_len"],
            precision=runtime.precision, optim=optim, checkpointing=checkpoint_activations,
        ).peak  # fmt: skip

    if expected * n_micro <= REAL_SECONDS and bytes_of(depth) < memory_bytes:
        return tried(depth, n_micro, "tried")
    low, high = FEW if depth > FEW[1] else (depth, depth)
    if expected * high / depth > 5 * REAL_SECONDS or bytes_of(high) > memory_bytes:
        return StepEstimate(expected * n_micro, None, "from the rate of a product, within a factor of two")

    def whole(micro: int) -> StepEstimate:
        first = tried(low, micro)
        return first if low == high else first.times((depth - low) / (high - low), tried(high, micro))

    one = whole(1)
    if n_micro == 1:
        return one
    two = whole(2)
    # the second micro-batch finds the first one's gradients there; from then on nothing is added
    return StepEstimate(one.seconds + (two.seconds - one.seconds) * (n_micro - 1), two.peak_bytes, two.how)
