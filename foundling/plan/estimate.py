# SPDX-License-Identifier: Apache-2.0
"""What training a model of stated size would take, without training it: memory by part, time, energy, loss.

Pure: free memory, the time of a step and the facts of a corpus are passed in."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from foundling.errors import BudgetError
from foundling.models import count_parameters
from foundling.plan.energy import estimate
from foundling.plan.flops import matmul_parameters, skeleton, training_flops_per_token
from foundling.plan.law import Corpus, LossLaw
from foundling.plan.memory import (
    NO_TEACHER,
    FrozenCost,
    MemoryEstimate,
    estimate_training_memory,
    largest_fit,
    serving_bytes,
)
from foundling.plan.plan import batch_rows
from foundling.plan.probe import StepEstimate
from foundling.runtime.device import Precision
from foundling.train.options import OptimOptions

RANKS = (2, 4, 8, 16, 32, 64, 128, 256)


@dataclass(frozen=True)
class Shape:
    """A model of stated size, and how it is to be trained. None: chosen."""

    family: str
    fields: dict[str, Any]
    seq_len: int
    precision: Precision
    optim: OptimOptions
    batch_size: int | None = None
    micro_batch_size: int | None = None
    activation_checkpointing: bool | None = None
    ranks: int = 1
    target_len: int | None = None
    frozen: FrozenCost = NO_TEACHER
    """of a teacher beside it"""

    def counts(self) -> dict[str, Any]:
        model = skeleton(self.family, self.fields)
        return {
            "family": self.family, "params": count_parameters(model)["total"],
            "active": count_parameters(model)["active"],
            "flops_per_token": training_flops_per_token(model, self.seq_len, self.target_len) + self.frozen.flops,
        }  # fmt: skip

    def memory(self, process: int, **changes: Any) -> MemoryEstimate:
        """Of a training step, with `changes` to micro_batch_size, checkpointing or ranks."""
        batch_size = self.batch_size or 8
        settings = {
            "micro_batch_size": self.micro_batch_size or batch_size,
            "checkpointing": bool(self.activation_checkpointing), "ranks": self.ranks,
        } | changes  # fmt: skip
        return estimate_training_memory(
            self.family, self.fields, seq_len=self.seq_len, precision=self.precision, optim=self.optim,
            process=process, target_len=self.target_len, accumulates=settings["micro_batch_size"] < batch_size,
            frozen_bytes=self.frozen.bytes, **settings,
        )  # fmt: skip


def estimate_memory(shape: Shape, *, free: int, held: int, process: int) -> dict[str, Any]:
    """Parts of the step's memory, whether it fits, and what would make it fit. `free`: bytes that can be taken;
    `held`: those and what this process has already; `process`: what it has or will have besides the model."""
    found = shape.memory(process)
    ways: list[dict[str, Any]] = []
    if found.peak > held:
        one, again = {"micro_batch_size": 1}, {"checkpointing": True}
        for change in (one, again, one | again, *(one | again | {"ranks": n} for n in RANKS if n > shape.ranks)):
            peak = shape.memory(process, **change).peak
            if peak <= held:
                named = {("activation_checkpointing" if k == "checkpointing" else k): v for k, v in change.items()}
                ways.append(named | {"peak": peak})
                if "ranks" in change:
                    break
    batch_size = shape.batch_size or 8
    return {
        **shape.counts(), "batch_size": batch_size, "seq_len": shape.seq_len, "precision": shape.precision,
        "training": found.parts(), "free_bytes": free, "fits": found.peak <= held, "ways": ways,
        "serving": serving_bytes(shape.family, shape.fields, rows=batch_size, seq_len=shape.seq_len),
    }  # fmt: skip


def settle_shape(shape: Shape, tokens: float, *, held: int, process: int) -> tuple[Shape, int, MemoryEstimate]:
    """(shape with its batch chosen, steps, memory). BudgetError for less than one step or what cannot fit."""
    batch_size = shape.batch_size or batch_rows(tokens, shape.seq_len)
    steps = round(tokens / (batch_size * shape.seq_len))
    if steps < 1:
        raise BudgetError(
            f"--tokens {tokens:g} is less than one step; the least that works here is {batch_size * shape.seq_len}"
        )
    shape = replace(shape, batch_size=batch_size)
    fit = None
    if shape.micro_batch_size is None and shape.activation_checkpointing is None:
        fit = largest_fit(
            shape.family, shape.fields, memory_bytes=int(0.9 * held), batch_size=batch_size, seq_len=shape.seq_len,
            precision=shape.precision, optim=shape.optim, process=process, target_len=shape.target_len,
            frozen_bytes=shape.frozen.bytes,
        )  # fmt: skip
    if fit is not None:
        return replace(shape, micro_batch_size=fit[0], activation_checkpointing=fit[1]), steps, fit[2]
    shape = replace(shape, micro_batch_size=shape.micro_batch_size or 1)
    memory = shape.memory(process)
    if memory.peak > held:
        raise BudgetError(_too_large(shape, memory.peak, held, process))
    return shape, steps, memory


def estimate_run(
    shape: Shape,
    steps: int,
    memory: MemoryEstimate,
    step_of: Callable[[float], StepEstimate],
    corpus: Corpus | None,
    law: LossLaw,
    threads: int,
) -> dict[str, Any]:
    """FLOPs, time, memory by part, energy and, where `corpus` is known, held-out loss. `step_of`: FLOPs per token ->
    the time of a step."""
    counts = shape.counts()
    assert shape.batch_size
    step = step_of(counts["flops_per_token"])
    peak, tokens = step.peak_bytes or memory.peak, steps * shape.batch_size * shape.seq_len
    loss: dict[str, Any] = {}
    if corpus is not None:
        n = matmul_parameters(skeleton(shape.family, shape.fields))
        bits = law.bits_per_byte(n, tokens * corpus.bytes_per_token, corpus)
        loss = {
            "bits_per_byte": round(bits, 4), "loss": round(bits * math.log(2) * corpus.bytes_per_token, 4),
            "law_error": law.error,
        }  # fmt: skip
    return {
        **counts, "tokens": tokens, "steps": steps, "batch_size": shape.batch_size,
        "micro_batch_size": shape.micro_batch_size, "activation_checkpointing": bool(shape.activation_checkpointing),
        "precision": shape.precision, "optimizer": shape.optim.optimizer, "flops": counts["flops_per_token"] * tokens,
        "step_seconds": step.seconds, "seconds": steps * step.seconds, "how": step.how, "memory": memory.parts(),
        "peak_bytes": peak, "joules": estimate(steps * step.seconds, threads, peak), **loss,
    }  # fmt: skip


def _too_large(shape: Shape, peak: int, held: int, process: int) -> str:
    least = replace(shape, micro_batch_size=1, activation_checkpointing=True, batch_size=1)
    ways = estimate_memory(least, free=held, held=held, process=process)["ways"]
    ranks = next((f"; split over {w['ranks']} processes it would fit" for w in ways if "ranks" in w), "")
    return f"training takes at least {peak / 2**30:.1f} GiB, {held / 2**30:.1f} GiB are free here{ranks}"
