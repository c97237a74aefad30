# SPDX-License-Identifier: Apache-2.0
"""From a budget to a recipe and a prediction: measure a little, choose by the loss law, time the real step, say it."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from foundling.blocks.init import initialise
from foundling.config import from_dict
from foundling.data.ingest import Corpus
from foundling.errors import BudgetError
from foundling.models import build
from foundling.objectives.causal import Causal
from foundling.plan.budget import Budget, Choice, candidate, choose, ladder
from foundling.plan.energy import estimate
from foundling.plan.law import load_law
from foundling.plan.memory import estimate_training_memory, largest_fit, spare_memory
from foundling.plan.probe import LOOK_SIZE, LOOK_STEP_TOKENS, choose_precision, step_seconds
from foundling.recipes.corpus import bytes_per_token, train_tokenizer
from foundling.recipes.probing import anchors, evaluation_seconds, look
from foundling.recipes.progress import Show
from foundling.recipes.recipe import Recipe, Request
from foundling.runtime.device import Runtime, available_threads, compiler_missing, default_device, resolve_device
from foundling.runtime.memory import PeakMemory, anonymous_bytes, free_memory
from foundling.runtime.rng import generator
from foundling.text import Tokenizer
from foundling.text.tokenizer import MULTIPLE, SMALLEST
from foundling.train.optim import OptimOptions

COMPILE_FROM = 90.0
"""Seconds of training from which compiling pays for itself."""
LEAST_STEPS = 20
ENCODE_SECONDS = 0.5e-6
"""A byte, about: reading, encoding and writing text."""
NGRAM_BYTES_PER_BYTE = 14
TRIMMED_BYTES = 330 << 20
"""The process once training has given back what it held."""
MAX_NGRAM_BYTES = 32_000_000


@dataclass
class Planned:
    recipe: Recipe
    prediction: dict[str, Any]
    tokenizer: Tokenizer
    model: Any
    """built, compiled and initialised; training it from here is what the recipe says"""
    considered: list[Choice]
    """the sizes that were compared"""


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
    vocab_size = max(SMALLEST, min(vocab_size, train_bytes // 400 // MULTIPLE * MULTIPLE))
    return vocab_size, max(8, min(seq_len, train_bytes // 16))


def batch_rows(tokens: float, seq_len: int) -> int:
    """Rows of a step: some √(2·tokens) tokens, a power of two."""
    return max(1, 2 ** round(math.log2(math.sqrt(2 * max(tokens, 1)))) // seq_len)


def plan(request: Request, found: Corpus, show: Show, memory: PeakMemory) -> Planned:
    given, budget = request.given, request.budget
    name, seed = given.get("family", "llama"), given.get("seed", 0)
    device = resolve_device(given.get("device", default_device()))
    threads = given.get("threads", available_threads())
    Runtime(threads=threads).setup()
    with show.phase("probe"):
        precision, rate = choose_precision(device)
    precision = given.get("precision", precision)
    vocab_size, seq_len = text_sizes(budget, rate, found.train_bytes)
    seq_len = given.get("seq_len", seq_len)
    with show.phase("tokenizer", "training the tokenizer"):
        tokenizer = train_tokenizer(found, given.get("vocab_size", vocab_size))
        per_token = bytes_per_token(found, tokenizer)
    train_tokens = found.train_bytes / per_token
    if "seq_len" not in given:
        seq_len = max(8, min(seq_len, int(train_tokens / 4)))
    if train_tokens < 2 * seq_len:
        raise BudgetError(
            f"the training text is {train_tokens:.0f} tokens, one window takes {2 * seq_len}; give more text"
        )
    law, vocab_size = load_law(), tokenizer.vocab_size

    optim = OptimOptions()
    runtime = Runtime(device, precision, threads)
    with show.phase("probe", "measuring this machine"):
        corpus, look_seconds = look(found, tokenizer, name, seq_len, runtime)
        slope, per_width = anchors(name, vocab_size, seq_len, runtime, optim, look_seconds)

    def seconds_per_token(flops: int, fields: dict[str, Any]) -> float:
        return slope * flops + per_width * fields["d_model"] * fields["n_layers"]

    left = budget
    if budget.unit == "seconds":
        left = Budget("seconds", max(1.0, 0.85 * (budget.value - show.elapsed)))
    sizes = ladder(name, vocab_size, seq_len, d_model=given.get("d_model"), n_layers=given.get("n_layers"))
    room, settings = (
        int(0.85 * (free_memory() + anonymous_bytes(os.getpid()))),
        {"seq_len": seq_len, "precision": precision},
    )

    def least_bytes(fields: dict[str, Any]) -> int:
        return estimate_training_memory(
            name, fields, micro_batch_size=1, checkpointing=True, accumulates=True, optim=optim, **settings
        ).peak

    choice, considered = choose(
        left, name, sizes, corpus, law, seconds_per_token=seconds_per_token, least_bytes=least_bytes, memory_bytes=room
    )
    if "total_steps" in given and "batch_size" in given:
        choice = _tokens(choice, given["total_steps"] * given["batch_size"] * seq_len)
    batch_size = given.get("batch_size", batch_rows(choice.tokens, seq_len))
    fit = largest_fit(name, choice.fields, memory_bytes=room, batch_size=batch_size, optim=optim, **settings)
    assert fit is not None
    spare_memory(fit[2])
    micro = given.get("micro_batch_size", fit[0])
    twice = given.get("checkpoint_activations", fit[1] and micro == fit[0])

    missing = compiler_missing(device)
    eager = seconds_per_token(choice.flops_per_token, choice.fields)
    compiled = given.get("compile", missing is None and choice.tokens * eager > COMPILE_FROM)
    if missing and (compiled or choice.tokens * eager > COMPILE_FROM):
        show.line(f"note: {missing}, so layers are not compiled; training takes longer than it would")
        compiled = False
    runtime = Runtime(device, precision, threads, compile=compiled)
    model = build(name, device=device, **choice.fields)
    initialise(model, generator("init", seed))
    size = choice.fields["d_model"], choice.fields["n_layers"]
    as_looked = size == LOOK_SIZE and batch_size * seq_len == LOOK_STEP_TOKENS and micro == batch_size
    if as_looked and not compiled and not twice:  # the first look took this very step
        step = look_seconds
    else:
        timed = min(6.0, 0.015 * budget.value) if budget.unit == "seconds" else 1.0
        with show.phase("compile" if compiled else "probe", "compiling the layers" if compiled else ""):
            step = step_seconds(
                name, choice.fields, Causal(), runtime, batch_size, micro, optim, least_seconds=timed, model=model,
                checkpoint_activations=twice,
            )  # fmt: skip
    with show.phase("probe"):
        evaluation = evaluation_seconds(model, found.held_out_bytes / per_token, seq_len, vocab_size, runtime)

    def share(tokens: float) -> float:
        some = min(1.0, 1.2 * tokens / train_tokens)
        return 1.0 if some > 0.5 else some

    def after(tokens: float) -> float:
        return evaluation + ENCODE_SECONDS * (share(tokens) * found.train_bytes + found.held_out_bytes)

    total_steps = _steps(request, choice, show.elapsed, step, after, batch_size * seq_len)
    tokens = total_steps * batch_size * seq_len
    recipe = from_dict(
        Recipe,
        {
            "data": request.data,
            "total_steps": total_steps, "vocab_size": vocab_size, "d_model": choice.fields["d_model"],
            "n_layers": choice.fields["n_layers"], "seq_len": seq_len, "batch_size": batch_size,
            "micro_batch_size": micro, "checkpoint_activations": twice, "threads": threads,
            "precision": precision, "device": device,
            "warmup_steps": total_steps // 50, "checkpoint_every": max(1, min(math.ceil(30 / step), total_steps)),
            "data_share": share(tokens),
        } | given | {"compile": compiled},
        where="recipe",
    )  # fmt: skip
    initialise(model, generator("init", recipe.seed))
    final = candidate(name, choice.fields, lambda _: recipe.tokens, corpus, law)
    seconds = show.elapsed + recipe.total_steps * step + after(tokens)
    memory.sample()  # steps like the run's have been taken by now; baselines come when their memory is given back
    peak = max(memory.peak, TRIMMED_BYTES + NGRAM_BYTES_PER_BYTE * min(found.train_bytes, MAX_NGRAM_BYTES))
    prediction = {
        "seconds": round(seconds, 1),
        "peak_bytes": peak,
        "loss": round(final.bits_per_byte * math.log(2) * per_token, 4),
        "bits_per_byte": round(final.bits_per_byte, 4),
        "joules": estimate(seconds, threads, peak),
        "law_error": law.error,
        "flops": float(final.flops_per_token) * recipe.tokens,
        "params": final.parameters,
        "tokens": recipe.tokens,
        "step_seconds": round(step, 4),
        "train_bytes": found.train_bytes,
        "bytes_per_token": round(per_token, 4),
        "scale": round(corpus.scale, 4),
        "look": round(corpus.look, 4),
    }
    return Planned(recipe, prediction, tokenizer, model, considered)


def _tokens(choice: Choice, tokens: float) -> Choice:
    return Choice(
        choice.fields, tokens, choice.flops_per_token, choice.parameters, choice.matmul_parameters, choice.bits_per_byte
    )


def _steps(
    request: Request, choice: Choice, elapsed: float, step: float, after: Callable[[float], float], tokens_per_step: int
) -> int:
    """The dial's last turn: from here on nothing reads the clock. `after`: tokens trained on -> seconds of what is not
    training."""
    if "total_steps" in request.given:
        return request.given["total_steps"]
    if request.unit == "seconds":
        most = max(0.0, request.value - elapsed - after(0)) / step
        steps = int((request.value - elapsed - after(most * tokens_per_step)) / step)
        if steps < LEAST_STEPS:
            least = (elapsed + after(LEAST_STEPS * tokens_per_step) + LEAST_STEPS * step) / 60
            left, least = max(0, steps), math.ceil(least * 10) / 10
            raise BudgetError(
                f"--minutes {request.value / 60:g} leaves {left} steps; the least that works here is {least:g}"
            )
        return steps
    tokens = request.value if request.unit == "tokens" else request.value / choice.flops_per_token
    steps = round(tokens / tokens_per_step)
    if steps < 1:
        least = tokens_per_step if request.unit == "tokens" else tokens_per_step * choice.flops_per_token
        raise BudgetError(
            f"--{request.unit} {request.value:g} is less than one step; the least that works here is {least:g}"
        )
    return steps
