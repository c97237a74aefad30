# SPDX-License-Identifier: Apache-2.0
"""The plan of a finetuning: rows, steps and batches from the examples; time by a few steps, memory by an estimate."""

from __future__ import annotations

import math
import os
from dataclasses import asdict, replace
from typing import Any, NamedTuple

import numpy as np

from foundling.adapt.heads import HeadOptions, is_new
from foundling.adapt.options import DEFAULT_METHOD, AdaptOptions
from foundling.config import flattened, from_dict, merged
from foundling.data.encoded import EncodedSplit
from foundling.data.examples import Examples
from foundling.data.kinds import PREFERENCE
from foundling.data.transforms.preference import comparisons_of
from foundling.errors import BudgetError, ConfigError
from foundling.models import FAMILIES, count_parameters
from foundling.plan.energy import estimate
from foundling.plan.flops import training_flops_per_token
from foundling.plan.memory import MemoryEstimate, estimate_training_memory, spare_memory
from foundling.plan.probe import choose_precision
from foundling.recipes.adapting import (
    POOLED,
    adapted,
    base_framing,
    build_adapted,
    check_kind,
    framing_of,
    head_options,
    objective_of,
    saved_whole,
    with_pool,
)
from foundling.recipes.finetune_data import (
    VALIDATED_FROM,
    batches_of,
    choose_seq_len,
    count_examples,
    longest_text,
    parent_tokenizer,
    start_id,
    steps_per_epoch,
    template_text,
    validation_split,
)
from foundling.recipes.judging import Judge
from foundling.recipes.models import Origin, check_unused, fields_read, find_origin
from foundling.recipes.preferences import POLICIES
from foundling.recipes.probing import feature_bytes, in_one_pass, is_solved, seconds_to_solve, with_probe
from foundling.recipes.recipe import PREFERENCE_KINDS, REWARDED, ObjectiveSpec, Recipe, RolloutSpec
from foundling.recipes.run import Prepared, Run
from foundling.recipes.training import runtime_of, time_steps
from foundling.runtime.device import Runtime, available_threads, default_device, resolve_device
from foundling.runtime.memory import anonymous_bytes, free_memory, trim_memory
from foundling.text import Tokenizer
from foundling.train.options import OptimOptions

LEARNING_RATES = {
    "full": 2e-4, "top-k": 2e-4, "lora": 1e-3, "qlora": 1e-3, "prompt": 0.05, "prefix": 0.01, "bias": 2e-3,
    "head": 0.2,
}  # fmt: skip
"""method -> rate of AdamW, stated at BASE_WIDTH"""
POLICY_RATE = 0.1
"""of these, for a policy that learns from comparisons or rewards; not of a prefix, which starts away from its
reference"""
STEPS_AN_EPOCH, LEAST_EXAMPLES, MOST_EXAMPLES = 50, 4, 32
"""A step reads as many examples as make about so many steps an epoch, within these bounds."""
MEASUREMENTS_AN_EPOCH = 4
USABLE = 0.85
"""share of the free memory that a plan may use"""


class Draft(NamedTuple):
    """A plan before its memory and time are known."""

    recipe: Recipe
    head: HeadOptions | None
    new_head: bool
    """the model does not have it yet"""
    tokenizer: Tokenizer
    model: Any
    """adapted; the steps that are timed train it"""
    judge: Judge


def draft_of(run: Run, examples: Examples) -> Draft:
    """Chooses rows and batches within what was given."""
    given, kind = run.request.given, choose_kind(examples, run.request.get("objective.kind"))
    options = from_dict(AdaptOptions, {"method": DEFAULT_METHOD} | given.get("adapt", {}), where="adapt")
    check_settings(given, options, kind)
    origin = find_origin(given["model"])
    check_kind(origin.model, kind)
    directory, longest = given["model"]["directory"], origin.model.config.max_seq_len
    head = head_options(kind, examples)
    recipe = begin_recipe(run, origin, kind, options, runtime_given(run))
    tokenizer = parent_tokenizer(recipe)
    framing = framing_of(directory, tokenizer, origin.model)
    seq_len = choose_seq_len(run.request.get("train.seq_len"), examples, framing, longest, options)
    recipe = _with(recipe, seq_len=seq_len)
    model = adapted(origin.model, recipe, head)
    del origin
    framing = framing_of(directory, tokenizer, model)
    encoded = run.encoded(examples, base_framing(framing), longest_text(recipe))
    judge = Judge(examples, encoded, framing, objective_of(recipe.objective), runtime_of(recipe), start_id(model), kind)
    if kind in POLICIES:  # the plan times steps, which any numbers do for
        for split in (encoded.train, encoded.held_out):
            split.reference = np.zeros(len(split), dtype="<f4")
    new = head is not None and is_new(model.score)
    layout = None if head is None else model.score.layout
    space = usable_bytes() - model_bytes(recipe, head)
    recipe = with_probe(recipe, encoded.train, head, layout, new, space)
    if is_solved(recipe):
        report_unread_settings(run)
        recipe = in_one_pass(recipe, encoded.train, given.get("train", {}).get("micro_batch_size", judge.rows))
    else:
        recipe = with_rows(recipe, run, encoded.train)
    return Draft(recipe, head, new, tokenizer, model, judge)


READ = ("train.seq_len", "train.micro_batch_size")
"""what a head that is solved reads of the settings of training"""


def report_unread_settings(run: Run) -> None:
    given = {key: v for key, v in flattened(run.request.given).items() if v is not None and key not in READ}
    keys = [key for key in given if key.startswith(("optim.", "schedule.", "train."))]
    without = f"; no effect: {', '.join(keys)}" if keys else ""
    run.progress.line(f"the head is solved in one pass over the examples, without epochs or steps{without}")


class Cost(NamedTuple):
    """Seconds."""

    step: float
    """0 where there is none"""
    validation: float
    """that each step has a share of"""
    once: float
    """measurements before and after"""
    probe: float
    """a head that begins so"""


def cost_of(draft: Draft, recipe: Recipe, batches: Any, validation: EncodedSplit | None) -> Cost:
    """By some steps, which change the model, and some examples."""
    measured, per_example = draft.judge.probe(draft.model)
    once, spread, probe = 2 * measured, 0.0, 0.0
    if recipe.objective.kind in POLICIES:  # the reference reads everything once
        splits = draft.judge.encoded.train, draft.judge.encoded.held_out
        once += per_example * sum(count_examples(split, recipe) for split in splits)
    if draft.head:
        probe = seconds_to_solve(recipe, draft.judge.encoded.train, draft.head, per_example)
    if validation is not None:
        n = count_examples(validation, recipe)
        once += n * per_example
        spread = n * per_example / (recipe.train.evaluate_every or 1)
    step = 0.0 if is_solved(recipe) else time_steps(recipe, draft.model, batches, draft.judge.objective)
    return Cost(step, spread, once, probe)


def prepare(run: Run, examples: Examples) -> Prepared:
    """The plan: rows, batches and steps within what was given, and a prediction of what they cost."""
    draft = draft_of(run, examples)
    recipe, head = draft.recipe, draft.head
    train, validation = validation_split(draft.judge.encoded.train, recipe)
    if (fit := fit_memory(recipe, head)).bytes > usable_bytes():
        raise BudgetError(
            f"the method '{recipe.adapt.method}' takes at least {fit.bytes / 2**30:.1f} GiB, "
            f"{usable_bytes() / 2**30:.1f} GiB can be used here; see what each method takes with --plan, or give a "
            "smaller --seq-len"
        )
    recipe = with_fit(recipe, fit)
    batches = batches_of(train, recipe, draft.model)
    with run.clock.phase("probe"):
        run.progress.line("timing a few steps, and answers to some examples")
        cost = cost_of(draft, recipe, batches, validation)
    once = cost.once + (cost.probe if recipe.adapt.probe else 0.0)
    if not is_solved(recipe):
        recipe = settle_steps(run, recipe, steps_per_epoch(batches), cost.step + cost.validation, once)
    elif run.request.budget.unit == "seconds" and run.clock.elapsed + once > run.request.budget.value:
        least = math.ceil((run.clock.elapsed + once) / 6) / 10
        raise BudgetError(f"{run.request.budget} is not enough; the least that works here is {least:g}")
    t, flops = recipe.train, training_flops_per_token(draft.model, recipe.train.seq_len)
    params, tokenizer = count_parameters(draft.model)["total"], draft.tokenizer
    features = peak_of_probe(recipe, head, draft.judge.encoded.train)
    del draft
    trim_memory()
    seconds = run.clock.elapsed + t.total_steps * (cost.step + cost.validation) + once
    run.memory.sample()
    peak = max(fit.bytes, features, run.memory.peak)
    prediction = {
        "seconds": round(seconds, 1), "peak_bytes": peak, "joules": estimate(seconds, recipe.runtime.threads, peak),
        "flops": flops * t.tokens, "params": params, "tokens": t.tokens, "step_seconds": round(cost.step, 4),
        "train_bytes": examples.train_bytes,
    }  # fmt: skip
    return Prepared(recipe, prediction, tokenizer, build_within(recipe, head))


def peak_of_probe(recipe: Recipe, head: HeadOptions | None, split: EncodedSplit) -> int:
    """Bytes while the features of all examples are held; 0 where no head begins so."""
    if head is None or not recipe.adapt.probe:
        return 0
    return model_bytes(recipe, head) + feature_bytes(recipe, split, head)


def model_bytes(recipe: Recipe, head: HeadOptions | None) -> int:
    """Of the process and the weights, before anything is computed."""
    memory = memory_of(recipe, head, 1, False)
    return memory.process + memory.weights


READ_BY = {
    "pattern": ("lora", "qlora"), "rank": ("lora", "qlora"), "alpha": ("lora", "qlora"), "merged": ("lora", "qlora"),
    "n_virtual": ("prompt", "prefix"), "top_layers": ("top-k",),
}  # fmt: skip
"""setting of an adaptation -> the methods that read it"""


def check_settings(given: dict[str, Any], options: AdaptOptions, kind: str) -> None:
    """ConfigError for a setting that would be ignored."""
    check_unused(given | {"optim": {"optimizer": "adamw"} | given.get("optim", {})})
    for name, methods in READ_BY.items():
        if options.method not in methods and getattr(options, name) != getattr(AdaptOptions, name):
            flag = name.replace("_", "-")
            raise ConfigError(
                f"--{flag} is for the method {' or '.join(methods)}, this is {options.method}; leave it out"
            )
    for name, value in given.get("rollout", {}).items() if kind not in REWARDED else ():
        if value not in (None, (), []) and value != vars(RolloutSpec())[name]:  # a written recipe has all
            raise ConfigError(f"--{name.replace('_', '-')} is for {' and '.join(REWARDED)}, not for '{kind}'")
    if kind not in ("chat", *PREFERENCE_KINDS, *REWARDED) and given.get("data", {}).get("chat_template") is not None:
        raise ConfigError(f"--chat-template is for chats, and '{kind}' has none; leave it out")
    if options.pool and kind not in POOLED:
        raise ConfigError(f"--pool is for a head on whole texts ({', '.join(POOLED)}), not for '{kind}'; leave it out")
    if given.get("train", {}).get("ema_decay") is not None:
        raise ConfigError("ema_decay is not for finetuning, which keeps the best weights; leave it out")


def choose_kind(examples: Examples, asked: str | None) -> str:
    """The kind of objective for these examples: DPO for comparisons, unless another one was asked for."""
    return (asked or "dpo") if examples.kind == PREFERENCE else examples.kind


def given_objective(given: dict[str, Any], kind: str) -> dict[str, Any]:
    """ConfigError for a setting that this kind does not read."""
    reads = fields_read(kind, "")
    for name, value in given.items():
        if name not in ("kind", *reads) and value != getattr(ObjectiveSpec, name):
            raise ConfigError(f"--{name.replace('_', '-')} is not for '{kind}'; leave it out")
    return asdict(from_dict(ObjectiveSpec, {**given, "kind": kind}, where="objective"))


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


def begin_recipe(run: Run, origin: Origin, kind: str, options: AdaptOptions, runtime: Runtime) -> Recipe:
    """What is chosen before the examples are encoded, under what was given; rows and steps are settled later."""
    options = saved_whole(str(origin.directory), options, run.progress)
    scale = POLICY_RATE if kind in (*POLICIES, *REWARDED) and options.method != "prefix" else 1.0
    rate = {"optimizer": "adamw", "learning_rate": scale * LEARNING_RATES[options.method]}
    optim = from_dict(OptimOptions, rate | run.request.given.get("optim", {}), where="optim")
    chosen = {
        "data": {"source": run.request.data},
        "schedule": {"warmup_steps": 0},
        "train": {"total_steps": 1, "seq_len": 1, "batch_size": 1, "micro_batch_size": 1},
    }  # fmt: skip
    fixed = {
        "optim": asdict(optim), "adapt": asdict(options),
        "objective": given_objective(run.request.given.get("objective", {}), kind),
        "model": {
            "family": origin.family, "directory": origin.directory, "weights_hash": origin.weights_hash,
            "fields": origin.fields,
        },
        "runtime": {
            "device": runtime.device, "precision": runtime.precision, "threads": runtime.threads,
            "compile": runtime.compile,
        },
    }  # fmt: skip
    resolved = merged(chosen, run.request.given) | fixed
    template = template_text(run.request.get("data.chat_template"))
    resolved["data"] |= {"source": run.request.data, "chat_template": template}  # whatever a written recipe had
    return from_dict(Recipe, resolved, where="recipe")


def with_rows(recipe: Recipe, run: Run, split: EncodedSplit) -> Recipe:
    """With the rows of a step, a power of two unless given, and the steps between validations."""
    compares, given = recipe.objective.kind in PREFERENCE_KINDS, run.request.given.get("train", {})
    n = count_examples(split, recipe)
    if compares:
        recipe = _with(recipe, n_completions=max(map(len, comparisons_of(split))))
    examples = max(LEAST_EXAMPLES, min(MOST_EXAMPLES, n / STEPS_AN_EPOCH, n))
    a_row = recipe.train.seq_len / max(1.0, float(split.lengths.mean())) if split.packed and not compares else 1.0
    rows = given.get("batch_size", max(1, 2 ** round(math.log2(max(1.0, examples / a_row)))))
    every = given.get("evaluate_every")
    if every is None and n >= VALIDATED_FROM:
        every = max(1, math.ceil(n / (rows * a_row) / MEASUREMENTS_AN_EPOCH))
    if given.get("patience") is not None and not every:
        raise ConfigError(
            f"--patience needs validation examples; with {n} training examples (fewer than {VALIDATED_FROM}) ask for "
            "them with --evaluate-every N"
        )
    micro = given.get("micro_batch_size", rows)
    return _with(recipe, batch_size=rows, micro_batch_size=micro, evaluate_every=every)


class Fit(NamedTuple):
    rows: int
    """of a micro-batch"""
    checkpointing: bool
    bytes: int


def with_fit(recipe: Recipe, fit: Fit) -> Recipe:
    return _with(recipe, micro_batch_size=fit.rows, activation_checkpointing=fit.checkpointing)


def usable_bytes() -> int:
    return int(USABLE * (free_memory() + anonymous_bytes(os.getpid())))


def fit_memory(recipe: Recipe, head: HeadOptions | None, *, beside: int = 0, fixed: bool | None = None) -> Fit:
    """The most rows of a micro-batch that fit into memory, with activation checkpointing only where it must be; what
    was given stays (`fixed`; by default rows that are not those of the batch). Where nothing fits, the least. `beside`:
    bytes of what else is in memory, which the fit has too."""
    t, usable = recipe.train, usable_bytes()
    fixed = t.micro_batch_size != t.batch_size if fixed is None else fixed
    least = Fit(1, True, 0)
    for checkpointing in (False, True) if t.activation_checkpointing is False else (True,):
        micro = t.micro_batch_size
        while micro:
            least = Fit(micro, checkpointing, beside + memory_of(recipe, head, micro, checkpointing).peak)
            if least.bytes <= usable or fixed:
                return least
            micro //= 2
    return least


def memory_of(recipe: Recipe, head: Any, micro: int, checkpointing: bool) -> MemoryEstimate:
    t, reads = recipe.train, head is None and FAMILIES[recipe.model.family].kind == "seq2seq"
    length = t.seq_len + recipe.adapt.added_tokens
    return estimate_training_memory(
        recipe.model.family, recipe.model.fields, micro_batch_size=micro * t.n_completions, seq_len=length,
        precision=recipe.runtime.precision, optim=recipe.optim, accumulates=micro < t.batch_size,
        checkpointing=checkpointing, target_len=length if reads else None, adapt=recipe.adapt,
        head=None if head is None else with_pool(head, recipe),
    )  # fmt: skip


def build_within(recipe: Recipe, head: Any) -> Any:
    """The model as training starts, in a process that gives freed memory back where there is little."""
    t = recipe.train
    spare_memory(memory_of(recipe, head, t.micro_batch_size, t.activation_checkpointing))
    return build_adapted(recipe, head)


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
        recipe, total_steps=steps, epochs=steps / per_epoch,
        checkpoint_every=run.request.get("train.checkpoint_every", max(1, min(math.ceil(60 / step), steps))),
        evaluate_every=None if every is None else min(every, steps),
    )  # fmt: skip
