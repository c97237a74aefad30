# SPDX-License-Identifier: Apache-2.0
"""The plan of a finetuning: rows, steps and batches from the examples, time by a few steps, memory by an estimate."""

from __future__ import annotations

import math
import os
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np
import torch

from foundling.adapt.heads import add_head
from foundling.adapt.method import apply
from foundling.adapt.options import AdaptOptions, Method
from foundling.adapt.soft import virtual_ids
from foundling.config import from_dict, merged
from foundling.data.encode import example_lengths, suggest_seq_len
from foundling.data.encoded import EncodedExamples, EncodedSplit
from foundling.data.examples import Examples
from foundling.data.subset import Subset
from foundling.data.transforms.examples import PackedExamples, PaddedExamples
from foundling.data.transforms.virtual import VirtualBatches
from foundling.errors import BudgetError, ConfigError
from foundling.models import FAMILIES, build, count_parameters
from foundling.plan.energy import estimate
from foundling.plan.flops import training_flops_per_token
from foundling.plan.memory import MemoryEstimate, estimate_training_memory, spare_memory
from foundling.plan.probe import choose_precision
from foundling.recipes.adapting import (
    adapted,
    base_framing,
    build_adapted,
    check_kind,
    framing_of,
    head_options,
    objective_of_kind,
)
from foundling.recipes.models import Origin, check_unused, find_origin
from foundling.recipes.progress import Progress
from foundling.recipes.recipe import ObjectiveSpec, Recipe, Request
from foundling.recipes.run import Prepared, Run
from foundling.recipes.training import runtime_of
from foundling.runtime.clock import Clock
from foundling.runtime.device import Runtime, available_threads, default_device, resolve_device
from foundling.runtime.memory import anonymous_bytes, free_memory, trim_memory
from foundling.runtime.rng import generator
from foundling.text import Tokenizer
from foundling.train.loop import train
from foundling.train.options import OptimOptions
from foundling.train.schedule import Schedule
from foundling.train.state import TrainState

LEARNING_RATES = {
    "full": 2e-4, "top-k": 2e-4, "lora": 1e-3, "qlora": 1e-3, "prompt": 0.05, "prefix": 0.01, "bias": 2e-3,
    "head": 0.02,
}  # fmt: skip
"""method -> rate of AdamW, stated at BASE_WIDTH"""
MAX_SEQ_LEN = 2048
"""tokens in a row, unless --seq-len asks for more"""
STEPS_AN_EPOCH, LEAST_EXAMPLES, MOST_EXAMPLES = 50, 4, 32
"""A step reads as many examples as make about so many steps an epoch, within these bounds."""
FORWARD_SHARE = 0.4
"""of a step, that a forward pass alone takes"""
VALIDATED_FROM, VALIDATION_SHARE, MOST_VALIDATED = 200, 0.1, 200
"""From so many examples on, a share of the training examples is kept to choose the best weights by."""
MEASUREMENTS_AN_EPOCH = 4
TIMED_STEPS = 3
USABLE = 0.85
"""share of the free memory that a plan may use"""
N_SAMPLED = 500
"""examples whose lengths decide the rows"""


def parent_tokenizer(recipe: Recipe, examples: Any) -> Tokenizer:
    assert recipe.model.directory
    return Tokenizer.load(recipe.model.directory)


def validation_split(split: EncodedSplit, recipe: Recipe) -> tuple[EncodedSplit, EncodedSplit | None]:
    """(to train on, to choose the best weights by). The second is chosen by the seed, and None for few examples."""
    n = len(split)
    if n < VALIDATED_FROM or not recipe.train.evaluate_every:
        return split, None
    n_validated = min(MOST_VALIDATED, int(VALIDATION_SHARE * n))
    order = np.random.default_rng(recipe.seed).permutation(n)
    return Subset(split, np.sort(order[n_validated:])), Subset(split, np.sort(order[:n_validated]))


def batches_of(split: EncodedSplit, recipe: Recipe, model: Any) -> Any:
    t = recipe.train
    if split.packed:
        batches: Any = PackedExamples(split, seq_len=t.seq_len, batch_size=t.batch_size, seed=recipe.seed)
    else:
        start_id = getattr(model.config, "start_id", 0)
        batches = PaddedExamples(split, batch_size=t.batch_size, seed=recipe.seed, start_id=start_id)
    return with_virtual(batches, model)


def with_virtual(batches: Any, model: Any) -> Any:
    """With the virtual tokens of a soft prompt before each text, where the model has them."""
    ids = virtual_ids(model)
    return VirtualBatches(batches, ids) if ids else batches


def steps_per_epoch(batches: Any) -> int:
    inner: Any = batches.batches if isinstance(batches, VirtualBatches) else batches
    return inner.steps_per_epoch


def prepare(run: Run, examples: Examples) -> Prepared:
    """Chooses rows, batches and steps within what was given, and predicts what they cost."""
    given, kind = run.request.given, examples.kind
    check_unused(given)
    origin = find_origin(given["model"])
    check_kind(origin.model, kind)
    options = from_dict(AdaptOptions, {"method": "lora"} | given.get("adapt", {}), where="adapt")
    tokenizer = Tokenizer.load(given["model"]["directory"])
    runtime, seq_len = runtime_given(run), choose_seq_len(run, examples, origin, tokenizer, options)
    head = head_options(kind, examples)
    recipe = _recipe(run, origin, examples, options, runtime, seq_len)
    model = adapted(origin.model, recipe, head)
    del origin
    framing = base_framing(framing_of(given["model"]["directory"], tokenizer, model))
    encoded = run.encoded(examples, framing, seq_len)
    recipe = with_rows(recipe, run, encoded.train)
    train, _ = validation_split(encoded.train, recipe)
    batches = batches_of(train, recipe, model)
    peak = fit_memory(recipe, head)
    recipe = _with(recipe, micro_batch_size=peak.rows, activation_checkpointing=peak.checkpointing)
    step = time_steps(run, recipe, model, batches)
    others = other_seconds(recipe, encoded, step)
    recipe = settle_steps(run, recipe, steps_per_epoch(batches), step, others)
    t, flops = recipe.train, training_flops_per_token(model, seq_len)
    params = count_parameters(model)["total"]
    del model
    trim_memory()
    seconds = run.clock.elapsed + t.total_steps * step + others
    prediction = {
        "seconds": round(seconds, 1), "peak_bytes": peak.bytes,
        "joules": estimate(seconds, recipe.runtime.threads, peak.bytes), "flops": flops * t.tokens, "params": params,
        "tokens": t.tokens, "step_seconds": round(step, 4), "train_bytes": examples.train_bytes,
    }  # fmt: skip
    return Prepared(recipe, prediction, tokenizer, build_within(recipe, head))


def _with(recipe: Recipe, **train: Any) -> Recipe:
    return replace(recipe, train=replace(recipe.train, **train))


def runtime_given(run: Run) -> Runtime:
    given = run.request.given.get("runtime", {})
    device = resolve_device(given.get("device", default_device()))
    threads = given.get("threads", available_threads())
    Runtime(threads=threads).setup()
    with run.clock.phase("probe"):
        precision, _ = choose_precision(device)
    return Runtime(device, given.get("precision", precision), threads, compile=given.get("compile", False))


def choose_seq_len(run: Run, examples: Examples, origin: Origin, tokenizer: Tokenizer, options: AdaptOptions) -> int:
    """As given, else what nearly all examples fit into. ConfigError for more than the model reads."""
    longest = origin.model.config.max_seq_len
    if (asked := run.request.get("train.seq_len")) is not None:
        extra = options.n_virtual if options.method == "prompt" else 0
        if asked + extra > longest:
            raise ConfigError(f"--seq-len {asked} is more than the {longest} tokens that the model reads (max_seq_len)")
        return asked
    framing = framing_of(run.request.given["model"]["directory"], tokenizer, origin.model)
    most = min(longest, MAX_SEQ_LEN) - (options.n_virtual if options.method == "prompt" else 0)
    lengths = example_lengths(examples.train, examples.kind, framing, most, classes=examples.labels, n=N_SAMPLED)
    return suggest_seq_len(lengths, most)


def _recipe(
    run: Run, origin: Origin, examples: Examples, options: AdaptOptions, runtime: Runtime, seq_len: int
) -> Recipe:
    """What is chosen before the examples are encoded, under what was given; rows and steps are settled later."""
    rate = {"optimizer": "adamw", "learning_rate": LEARNING_RATES[options.method]}
    optim = from_dict(OptimOptions, rate | run.request.given.get("optim", {}), where="optim")
    chosen = {
        "data": {"source": run.request.data},
        "schedule": {"warmup_steps": 0},
        "train": {"total_steps": 1, "seq_len": seq_len, "batch_size": 1, "micro_batch_size": 1},
    }  # fmt: skip
    fixed = {
        "optim": asdict(optim), "adapt": asdict(options), "objective": asdict(ObjectiveSpec(examples.kind)),
        "model": {
            "family": origin.family, "directory": origin.directory, "weights_hash": origin.weights_hash,
            "fields": origin.fields,
        },
        "runtime": {
            "device": runtime.device, "precision": runtime.precision, "threads": runtime.threads,
            "compile": runtime.compile,
        },
    }  # fmt: skip
    return from_dict(Recipe, merged(chosen, run.request.given) | fixed, where="recipe")


def with_rows(recipe: Recipe, run: Run, split: EncodedSplit) -> Recipe:
    """With the rows of a step, a power of two unless given, and the steps between validations."""
    n, given = len(split), run.request.given.get("train", {})
    examples = max(LEAST_EXAMPLES, min(MOST_EXAMPLES, n / STEPS_AN_EPOCH, n))
    a_row = recipe.train.seq_len / max(1.0, float(split.lengths.mean())) if split.packed else 1.0
    rows = given.get("batch_size", max(1, 2 ** round(math.log2(max(1.0, examples / a_row)))))
    every = given.get("evaluate_every")
    if every is None and n >= VALIDATED_FROM:
        every = max(1, math.ceil(n / (rows * a_row) / MEASUREMENTS_AN_EPOCH))
    micro = given.get("micro_batch_size", rows)
    return _with(recipe, batch_size=rows, micro_batch_size=micro, evaluate_every=every)


class Fit(NamedTuple):
    rows: int
    """of a micro-batch"""
    checkpointing: bool
    bytes: int


def fit_memory(recipe: Recipe, head: Any) -> Fit:
    """The most rows of a micro-batch that fit into memory. BudgetError if nothing does."""
    usable = int(USABLE * (free_memory() + anonymous_bytes(os.getpid())))
    smallest = Fit(1, True, 0)
    for checkpointing in (False, True):
        micro = recipe.train.micro_batch_size
        while micro:
            smallest = Fit(micro, checkpointing, memory_of(recipe, head, micro, checkpointing).peak)
            if smallest.bytes <= usable:
                return smallest
            micro //= 2
    raise BudgetError(
        f"the method '{recipe.adapt.method}' takes at least {smallest.bytes / 2**30:.1f} GiB, {usable / 2**30:.1f} GiB "
        "can be used here; see what each method takes with --plan, or give a smaller --seq-len"
    )


def memory_of(recipe: Recipe, head: Any, micro: int, checkpointing: bool) -> MemoryEstimate:
    t, reads = recipe.train, head is None and FAMILIES[recipe.model.family].kind == "seq2seq"
    return estimate_training_memory(
        recipe.model.family, recipe.model.fields, micro_batch_size=micro, seq_len=t.seq_len,
        precision=recipe.runtime.precision, optim=recipe.optim, accumulates=micro < t.batch_size,
        checkpointing=checkpointing, target_len=t.seq_len if reads else None, adapt=recipe.adapt, head=head,
    )  # fmt: skip


def build_within(recipe: Recipe, head: Any) -> Any:
    """The model as training starts, in a process that gives freed memory back where there is little."""
    t = recipe.train
    spare_memory(memory_of(recipe, head, t.micro_batch_size, t.activation_checkpointing))
    return build_adapted(recipe, head)


def time_steps(run: Run, recipe: Recipe, model: Any, batches: Any) -> float:
    """Seconds of a step, the mean of some after a first one. The model is trained by them: build it again."""
    state, marks = TrainState.build(model, recipe.optim), list[float]()
    with run.clock.phase("probe"):
        run.progress.line("timing a few steps")
        steps = train(
            state, objective_of_kind(recipe.objective.kind), batches, Schedule(1 + TIMED_STEPS),
            recipe.train_options(), runtime_of(recipe),
        )  # fmt: skip
        for record in steps:
            record.grad_norm  # noqa: B018  waits for the device
            marks.append(time.perf_counter())
    return (marks[-1] - marks[0]) / (len(marks) - 1)


def other_seconds(recipe: Recipe, encoded: EncodedExamples, step: float) -> float:
    """Of measuring before and after; that of validations is spread over the steps. A forward pass takes about a third
    of a step."""
    rows = max(1.0, recipe.train.batch_size)
    return 2 * len(encoded.held_out) / rows * step * FORWARD_SHARE


def settle_steps(run: Run, recipe: Recipe, per_epoch: int, step: float, others: float) -> Recipe:
    """With the steps of the epochs or minutes that were asked for. BudgetError where no step fits."""
    given, budget = run.request.given, run.request.budget
    steps = given.get("train", {}).get("total_steps")
    if steps is None and budget.unit == "epochs":
        steps = max(1, round(budget.value * per_epoch))
    if steps is None and budget.unit == "seconds":
        steps = int((budget.value - run.clock.elapsed - others) / step)
        if steps < 1:
            least = (run.clock.elapsed + others + step) / 60
            raise BudgetError(f"{budget} leaves no step; the least that works here is {math.ceil(least * 10) / 10:g}")
    if steps is None:
        raise BudgetError(f"{budget} is not for finetuning; give --epochs or --minutes")
    every = recipe.train.evaluate_every
    warmup = run.request.get("schedule.warmup_steps", max(1, steps // 20))
    recipe = replace(recipe, schedule=replace(recipe.schedule, warmup_steps=warmup))
    return _with(
        recipe, total_steps=steps, epochs=round(steps / per_epoch, 3),
        checkpoint_every=run.request.get("train.checkpoint_every", max(1, min(math.ceil(60 / step), steps))),
        evaluate_every=None if every is None else min(every, steps),
    )  # fmt: skip


def plan_methods(request: Request, *, progress: Progress, clock: Clock) -> dict[str, Any]:
    """The recipe and prediction that `finetune` would begin with, and what each method would take: time by the ratio of
    FLOPs to the one that is timed, memory by the estimate. Nothing is written."""
    with tempfile.TemporaryDirectory(prefix="foundling-plan-") as folder:
        run = Run(request, Path(folder), progress, clock)
        try:
            examples = run.examples()
            prepared = prepare(run, examples)
        finally:
            run.memory.done.set()
    recipe, prediction = prepared.recipe, prepared.prediction
    head = head_options(examples.kind, examples)
    usable = int(USABLE * (free_memory() + anonymous_bytes(os.getpid())))
    rows, chosen = dict[str, dict[str, Any]](), recipe.adapt.method
    for method in get_args(Method):
        if method != "head" or head is not None:
            rows[method] = _method(replace(recipe, adapt=replace(recipe.adapt, method=method)), head, usable)
    for row in rows.values():
        ratio = row["flops_per_token"] / rows[chosen]["flops_per_token"]
        row["step_seconds"] = round(prediction["step_seconds"] * ratio, 4)
        row["seconds"] = round(row["step_seconds"] * recipe.train.total_steps, 1)
    return {"recipe": asdict(recipe), "prediction": prediction, "method": chosen, "methods": rows}


def _method(recipe: Recipe, head: Any, usable: int) -> dict[str, Any]:
    with torch.device("meta"):
        model = build(recipe.model.family, **recipe.model.fields)
    if head is not None:
        add_head(model, head, generator("head"))
    apply(model, recipe.adapt, generator("adapt"))
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    peak = memory_of(recipe, head, recipe.train.micro_batch_size, recipe.train.activation_checkpointing).peak
    return {
        "trained": trained, "share": trained / count_parameters(model)["total"], "peak_bytes": peak,
        "fits": peak <= usable, "flops_per_token": training_flops_per_token(model, recipe.train.seq_len),
    }  # fmt: skip
