# SPDX-License-Identifier: Apache-2.0
"""Measurements of a few seconds: which precision multiplies faster, and how long a real training step takes."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from foundling.blocks.init import initialise
from foundling.contracts.data import Batch, Batches
from foundling.contracts.objective import Objective
from foundling.data.loader import packed
from foundling.models import build
from foundling.plan.flops import skeleton, training_flops_per_token
from foundling.plan.memory import estimate_training_memory
from foundling.runtime.device import Precision, Runtime
from foundling.runtime.memory import PeakMemory
from foundling.runtime.rng import generator
from foundling.train.loop import train
from foundling.train.options import OptimOptions, TrainOptions
from foundling.train.schedule import Schedule
from foundling.train.state import TrainState

MAX_STEPS = 10_000
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
    start, n = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        run()
        n += 1
    return 2 * 2048 * 512 * 512 * n / (time.perf_counter() - start)


def choose_precision(device: str) -> tuple[Precision, float]:
    """(precision, FLOP/s): bfloat16 if it multiplies at least 1.5 times as fast, else float32. Many CPUs emulate
    bfloat16."""
    single, half = product_rate("float32", device), product_rate("bfloat16", device)
    return ("bfloat16", half) if half > 1.5 * single else ("float32", single)


class RandomBatches:
    """Random tokens in the shape of real batches."""

    def __init__(self, rows: int, seq_len: int, vocab_size: int) -> None:
        tokens = torch.randint(0, vocab_size, (rows, seq_len + 1), generator=generator("probe"))
        self.batch = packed(tokens, eos=0) | {"sample_ids": torch.arange(rows)}

    def __getitem__(self, n: int) -> Batch:
        return self.batch


@dataclass(frozen=True)
class StepSpec:
    """Everything that the time of a training step depends on. `transform` converts packed batches to the
    objective's."""

    family: str
    fields: dict[str, Any]
    objective: Objective
    runtime: Runtime
    optim: OptimOptions
    batch_size: int
    micro_batch_size: int
    seq_len: int
    activation_checkpointing: bool = False
    transform: Callable[[Batches], Batches] = lambda batches: batches
    target_len: int | None = None
    """Length of the target, for a model that reads a source."""
    ema_decay: float | None = None

    def batches(self) -> Batches:
        return self.transform(RandomBatches(self.batch_size, self.seq_len, self.fields["vocab_size"]))


def step_seconds(spec: StepSpec, *, least_seconds: float = 0.0, least_steps: int = 2, model: Any = None) -> float:
    """Seconds of one full training step on random tokens: the mean over at least `least_seconds` and two steps, after a
    first one that is not counted; at least `least_steps` unless they take over LONG_SECONDS. A mean, since occasional
    slowdowns of the machine affect the run as well.

    A `model` that is passed in is trained on noise: initialise it again.
    """
    if model is None:
        model = build(spec.family, device=spec.runtime.device, **spec.fields)
        initialise(model, generator("probe"))
    state = TrainState.build(model, spec.optim)
    marks: list[float] = []
    options = TrainOptions(
        spec.micro_batch_size, activation_checkpointing=spec.activation_checkpointing, ema_decay=spec.ema_decay
    )
    batches = _Repeated(spec.batches())
    for record in train(state, spec.objective, batches, Schedule(MAX_STEPS), options, spec.runtime):
        record.grad_norm  # noqa: B018  waits for the device
        marks.append(time.perf_counter())
        elapsed = marks[-1] - marks[0]
        if len(marks) > 2 and elapsed >= least_seconds and (len(marks) > least_steps or elapsed > LONG_SECONDS):
            break
    return (marks[-1] - marks[0]) / (len(marks) - 1)


class _Repeated:
    """The same batch every time, so that only the step is timed."""

    def __init__(self, batches: Batches) -> None:
        self.batch = batches[0]

    def __getitem__(self, n: int) -> Batch:
        return self.batch


PROXY_SIZE = (64, 2)
"""d_model and layers of the small model whose loss measures the difficulty of a corpus."""
PROXY_STEPS, PROXY_STEP_TOKENS = 32, 1024


def proxy_run(
    family: str, fields: dict[str, Any], objective: Objective, runtime: Runtime, batches: Batches, optim: OptimOptions,
    schedule: Schedule,
) -> tuple[Any, float]:  # fmt: skip
    """(a new small model, trained over the whole schedule; seconds of a step). Deterministic for the same data."""
    model = build(family, device=runtime.device, **fields)
    initialise(model, generator("look"))
    state, marks = TrainState.build(model, optim), []
    for record in train(state, objective, batches, schedule, TrainOptions(2**30), runtime):
        record.grad_norm  # noqa: B018  waits for the device
        marks.append(time.perf_counter())
    return model, (marks[-1] - marks[0]) / (len(marks) - 1)


def fit_step_time(small: StepSpec, large: StepSpec, small_seconds: float | None = None) -> tuple[float, float]:
    """(slope, per_width), fitted to two timed sizes: seconds per token = slope · FLOPs + per_width · d_model ·
    n_layers, that is matrix products plus memory traffic. `small_seconds`: the time of the small one, if already
    measured."""
    measured = []
    for spec, seconds in ((small, small_seconds), (large, None)):
        seconds = step_seconds(spec, least_seconds=0.2) if seconds is None else seconds
        flops = training_flops_per_token(skeleton(spec.family, spec.fields), spec.seq_len, spec.target_len)
        width = spec.fields["d_model"] * spec.fields["n_layers"]
        measured.append((flops, width, seconds / (spec.batch_size * spec.seq_len)))
    (f0, w0, s0), (f1, w1, s1) = measured
    slope = (s0 * w1 - s1 * w0) / (f0 * w1 - f1 * w0)
    per_width = (f0 * s1 - f1 * s0) / (f0 * w1 - f1 * w0)
    return max(slope, 1e-15), max(per_width, 0.0)


MAX_TIMED_SECONDS = 4.0
"""A full step that is expected to take at most this long is timed directly."""
WARM_MICRO_BATCHES = 8
"""Micro-batches after which an allocator has nearly reached its peak (docs/benchmarks.md)."""
SHALLOW_LAYERS = (1, 4)
"""Layers of the shallow models from which the step of a deep one is extrapolated."""


@dataclass(frozen=True)
class StepEstimate:
    """Estimated time and memory of a full step."""

    seconds: float
    peak_bytes: int | None
    """Peak memory of the process, measured or extrapolated; None if nothing could be timed."""
    how: str

    def extrapolated(self, n: float, more: StepEstimate) -> StepEstimate:
        """self + n · (more − self)."""
        assert self.peak_bytes and more.peak_bytes
        seconds = self.seconds + n * (more.seconds - self.seconds)
        return StepEstimate(seconds, round(self.peak_bytes + n * (more.peak_bytes - self.peak_bytes)), more.how)


def estimate_step(
    spec: StepSpec, *, flops_per_token: float, memory_bytes: int, least_seconds: float = 2.0
) -> StepEstimate:
    """Seconds and memory of a full step.

    Timed directly if that takes seconds. Otherwise extrapolated from shallow models of the same width with one or two
    micro-batches, since time and memory are linear in both. If even those do not fit, only seconds, from the rate of a
    matrix product."""
    tokens, depth = spec.micro_batch_size * spec.seq_len, spec.fields["n_layers"]
    rate, n_micro = (
        product_rate(spec.runtime.precision, spec.runtime.device),
        -(-spec.batch_size // spec.micro_batch_size),
    )
    expected = 2 * flops_per_token * tokens / rate

    def timed(layers: int, micro: int, how: str = "extrapolated from fewer layers") -> StepEstimate:
        memory = PeakMemory(0.02)
        trial = replace(spec, fields=spec.fields | {"n_layers": layers}, batch_size=micro * spec.micro_batch_size)
        seconds = step_seconds(trial, least_seconds=least_seconds, least_steps=-(-WARM_MICRO_BATCHES // micro))
        memory.done.set()
        return StepEstimate(seconds, memory.peak, how)

    def bytes_of(layers: int) -> int:
        return estimate_training_memory(
            spec.family, spec.fields | {"n_layers": layers}, micro_batch_size=spec.micro_batch_size,
            seq_len=spec.seq_len, precision=spec.runtime.precision, optim=spec.optim,
            checkpointing=spec.activation_checkpointing, target_len=spec.target_len,
            ema=spec.ema_decay is not None,
        ).peak  # fmt: skip

    if expected * n_micro <= MAX_TIMED_SECONDS and bytes_of(depth) < memory_bytes:
        return timed(depth, n_micro, "timed")
    low, high = SHALLOW_LAYERS if depth > SHALLOW_LAYERS[1] else (depth, depth)
    if expected * high / depth > 5 * MAX_TIMED_SECONDS or bytes_of(high) > memory_bytes:
        return StepEstimate(expected * n_micro, None, "from the rate of a product, within a factor of two")

    def full_depth(micro: int) -> StepEstimate:
        first = timed(low, micro)
        return first if low == high else first.extrapolated((depth - low) / (high - low), timed(high, micro))

    one = full_depth(1)
    if n_micro == 1:
        return one
    two = full_depth(2)
    # from the second micro-batch on, gradients exist already and memory stays constant
    return StepEstimate(one.seconds + (two.seconds - one.seconds) * (n_micro - 1), two.peak_bytes, two.how)
