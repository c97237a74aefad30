# SPDX-License-Identifier: Apache-2.0
"""From a budget to a plan: which size, how many steps, how they are taken, and what they will cost.

Nothing here reads a clock or runs a model. What has to be measured comes from `Probes`, which the caller passes in.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from foundling.errors import BudgetError
from foundling.plan.budget import Budget
from foundling.plan.choose import Choice, candidate, choose
from foundling.plan.energy import estimate
from foundling.plan.law import Corpus, LossLaw
from foundling.plan.memory import NO_TEACHER, FrozenCost, MemoryEstimate, estimate_training_memory, largest_fit
from foundling.runtime.device import Precision
from foundling.text.tokenizer import MULTIPLE, SMALLEST
from foundling.train.options import OptimOptions

COMPILE_FROM = 90.0
"""Seconds of training from which compiling pays for itself."""
LEAST_STEPS = 20
LEAST_WINDOWS = 16
"""rows of training text that a run reads at least, however small its budget"""
ENCODE_SECONDS = 0.5e-6
"""A byte, about: reading, encoding and writing text."""
USABLE = 0.85
"""Share of the free memory that a plan may use."""


class Probes(Protocol):
    """What a plan has to know of this machine and this text, measured when it is asked for."""

    def elapsed(self) -> float:
        """seconds of the budget that are gone"""
        ...

    def seconds_per_token(self, flops: int, fields: dict[str, Any]) -> float:
        """of training a model of these fields, uncompiled"""
        ...

    def step_seconds(self, shape: StepShape, memory: MemoryEstimate) -> float:
        """of a whole training step as the run will take it"""
        ...

    def evaluation_seconds(self) -> float:
        """of the held-out text, by the model of the last step_seconds"""
        ...

    def peak_bytes(self) -> int:
        """the most memory that the process has held so far, steps like the run's included"""
        ...


@dataclass(frozen=True)
class StepShape:
    fields: dict[str, Any]
    batch_size: int
    micro_batch_size: int
    activation_checkpointing: bool
    compile: bool


@dataclass(frozen=True)
class PlanInputs:
    budget: Budget
    family: str
    sizes: list[dict[str, Any]]
    """configurations to choose from; a single one is fixed"""
    corpus: Corpus
    law: LossLaw
    predicts_loss: bool
    """whether the loss law holds for the objective"""
    train_tokens: float
    """tokens of the training text"""
    held_out_bytes: int
    seq_len: int
    optim: OptimOptions
    precision: Precision
    threads: int
    free_bytes: int
    compiler_missing: str | None
    given: dict[str, Any] = field(default_factory=dict)
    """fields of the recipe's train section, and `compile`, `share`: held fixed"""
    target_len: int | None = None
    """columns of the target, for a model that reads a source"""
    later_bytes: int = 0
    """memory that the process holds after training, for baselines"""
    frozen: FrozenCost = NO_TEACHER
    """of a model that is read and not trained: a teacher"""


@dataclass(frozen=True)
class Plan:
    shape: StepShape
    total_steps: int
    warmup_steps: int
    checkpoint_every: int
    share: float
    """of the training text that the budget can use"""
    prediction: dict[str, Any]
    considered: list[Choice]
    notes: list[str]


def text_sizes(budget: Budget, flops_per_second: float, train_bytes: int) -> tuple[int, int]:
    """(vocab_size, seq_len) by the compute there is, smaller where the corpus is small."""
    compute = {
        "seconds": 0.4 * flops_per_second * budget.value,
        "flops": budget.value,
        "tokens": 6 * budget.value**2 / 20,
    }[budget.unit]
    vocab_size = next(
        v for limit, v in ((4e13, 2048), (1e15, 4096), (1e17, 16384), (math.inf, 32768)) if compute < limit
    )
    seq_len = next(t for limit, t in ((2e14, 256), (1e17, 512), (math.inf, 1024)) if compute < limit)
    return cap_vocab_size(vocab_size, train_bytes), max(8, min(seq_len, train_bytes // 16))


def cap_vocab_size(vocab_size: int, train_bytes: int) -> int:
    """What a tokenizer can learn from so much text, at most `vocab_size`."""
    most = min(vocab_size // MULTIPLE * MULTIPLE, train_bytes // 400 // MULTIPLE * MULTIPLE)
    return max(SMALLEST, most)


def batch_rows(tokens: float, seq_len: int) -> int:
    """Rows of a step: some √(2·tokens) tokens, a power of two."""
    return max(1, 2 ** round(math.log2(math.sqrt(2 * max(tokens, 1)))) // seq_len)


def make_plan(inputs: PlanInputs, probes: Probes) -> Plan:
    """BudgetError where the budget is below the least that works, or nothing fits into memory."""
    given, usable, notes = inputs.given, int(USABLE * inputs.free_bytes), list[str]()
    choice, considered = _choose(inputs, probes, usable)
    if "total_steps" in given and "batch_size" in given:
        choice = replace(choice, tokens=given["total_steps"] * given["batch_size"] * inputs.seq_len)
    batch_size = given.get("batch_size", batch_rows(choice.tokens, inputs.seq_len))
    fit = largest_fit(
        inputs.family, choice.fields, memory_bytes=usable, batch_size=batch_size, **_memory_settings(inputs)
    )
    assert fit is not None
    micro = given.get("micro_batch_size", fit[0])
    checkpointing = given.get("activation_checkpointing", fit[1] and micro == fit[0])

    seconds = choice.tokens * probes.seconds_per_token(choice.flops_per_token, choice.fields)
    compiled = given.get("compile", seconds > COMPILE_FROM)
    if compiled and inputs.compiler_missing:
        notes.append(f"{inputs.compiler_missing}, so layers are not compiled; training takes longer than it would")
        compiled = False
    shape = StepShape(choice.fields, batch_size, micro, checkpointing, compiled)
    step = probes.step_seconds(shape, fit[2])
    evaluation = probes.evaluation_seconds()

    def share(tokens: float) -> float:
        some = min(1.0, max(1.2 * tokens, LEAST_WINDOWS * inputs.seq_len) / inputs.train_tokens)
        return given.get("share", 1.0 if some > 0.5 else some)

    def after(tokens: float) -> float:
        """seconds of what is not training"""
        read = 1.0 if "share" in given else share(tokens)  # a share that was given is in train_bytes already
        return evaluation + ENCODE_SECONDS * (read * inputs.corpus.train_bytes + inputs.held_out_bytes)

    per_step = batch_size * inputs.seq_len
    total_steps = _steps(inputs, choice, probes.elapsed(), step, after, per_step)
    tokens = total_steps * per_step
    final = candidate(
        inputs.family, choice.fields, lambda _: tokens, inputs.corpus, inputs.law,
        seq_len=inputs.seq_len, target_len=inputs.target_len,
    )  # fmt: skip
    return Plan(
        shape,
        total_steps=total_steps,
        warmup_steps=total_steps // 50,
        checkpoint_every=max(1, min(math.ceil(30 / step), total_steps)),
        share=share(tokens),
        prediction=_prediction(
            inputs, final, tokens, step, probes.elapsed() + total_steps * step + after(tokens), probes
        ),
        considered=considered,
        notes=notes,
    )


def _memory_settings(inputs: PlanInputs) -> dict[str, Any]:
    return {
        "seq_len": inputs.seq_len, "precision": inputs.precision, "optim": inputs.optim,
        "target_len": inputs.target_len, "ema": inputs.given.get("ema_decay") is not None,
        "frozen_bytes": inputs.frozen.bytes,
    }  # fmt: skip


def _choose(inputs: PlanInputs, probes: Probes, usable: int) -> tuple[Choice, list[Choice]]:
    left = inputs.budget
    if left.unit == "seconds":
        left = Budget("seconds", max(1.0, 0.85 * (left.value - probes.elapsed())))

    def least_bytes(fields: dict[str, Any]) -> int:
        for checkpointing in (False, True):  # each takes a moment to estimate; most sizes fit without
            estimate = estimate_training_memory(
                inputs.family, fields, micro_batch_size=1, checkpointing=checkpointing, accumulates=True,
                **_memory_settings(inputs),
            )  # fmt: skip
            if estimate.peak <= usable:
                break
        return estimate.peak

    return choose(
        left, inputs.family, inputs.sizes, inputs.corpus, inputs.law, seconds_per_token=probes.seconds_per_token,
        least_bytes=least_bytes, memory_bytes=usable, seq_len=inputs.seq_len, target_len=inputs.target_len,
        frozen_flops=inputs.frozen.flops,
    )  # fmt: skip


def _prediction(
    inputs: PlanInputs, final: Choice, tokens: int, step: float, seconds: float, probes: Probes
) -> dict[str, Any]:
    peak, per_token = max(probes.peak_bytes(), inputs.later_bytes), inputs.corpus.bytes_per_token
    loss: dict[str, Any] = {}
    if inputs.predicts_loss:
        loss = {
            "loss": round(final.bits_per_byte * math.log(2) * per_token, 4),
            "bits_per_byte": round(final.bits_per_byte, 4),
            "law_error": inputs.law.error,
            "scale": round(inputs.corpus.scale, 4),
            "look": round(inputs.corpus.look, 4),
        }
    return {
        "seconds": round(seconds, 1),
        "peak_bytes": peak,
        "joules": estimate(seconds, inputs.threads, peak),
        **loss,
        "flops": (final.flops_per_token + inputs.frozen.flops) * tokens,
        "params": final.parameters,
        "tokens": tokens,
        "step_seconds": round(step, 4),
        "train_bytes": inputs.corpus.train_bytes,
        "bytes_per_token": round(per_token, 4),
    }


def _steps(
    inputs: PlanInputs,
    choice: Choice,
    elapsed: float,
    step: float,
    after: Callable[[float], float],
    tokens_per_step: int,
) -> int:
    """From here on nothing reads the clock. `after`: tokens trained on -> seconds of what is not training."""
    budget = inputs.budget
    if "total_steps" in inputs.given:
        return inputs.given["total_steps"]
    if budget.unit == "seconds":
        most = max(0.0, budget.value - elapsed - after(0)) / step
        steps = int((budget.value - elapsed - after(most * tokens_per_step)) / step)
        if steps < LEAST_STEPS:
            least = (elapsed + after(LEAST_STEPS * tokens_per_step) + LEAST_STEPS * step) / 60
            raise BudgetError(
                f"{budget} leaves {max(0, steps)} steps; the least that works here is {math.ceil(least * 10) / 10:g}"
            )
        return steps
    flops = choice.flops_per_token + inputs.frozen.flops
    tokens = budget.value if budget.unit == "tokens" else budget.value / flops
    steps = round(tokens / tokens_per_step)
    if steps < 1:
        least = tokens_per_step if budget.unit == "tokens" else tokens_per_step * flops
        raise BudgetError(f"{budget} is less than one step; the least that works here is {least:g}")
    return steps
