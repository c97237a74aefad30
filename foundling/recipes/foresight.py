# SPDX-License-Identifier: Apache-2.0
"""What a run would take, without the run: of a stated size, of the best one for a budget, or its memory alone."""

from __future__ import annotations

import math
import os
from dataclasses import asdict, dataclass, replace
from typing import Any

from foundling.config import from_dict, nearest
from foundling.errors import BudgetError, ConfigError
from foundling.models import FAMILIES, count_parameters, family
from foundling.objectives.causal import Causal
from foundling.plan.energy import estimate
from foundling.plan.flops import matmul_parameters, skeleton, training_flops_per_token
from foundling.plan.law import Corpus, load_law
from foundling.plan.memory import (
    MemoryEstimate,
    estimate_training_memory,
    largest_fit,
    process_bytes,
    serving_bytes,
    spare_memory,
)
from foundling.plan.probe import choose_precision, estimate_step
from foundling.recipes import corpus
from foundling.recipes.planning import batch_rows, plan
from foundling.recipes.probing import look
from foundling.recipes.progress import Show
from foundling.recipes.recipe import Request, recipe_dict
from foundling.runtime.device import Precision, Runtime, available_threads, default_device, resolve_device
from foundling.runtime.memory import PeakMemory, anonymous_bytes, free_memory
from foundling.train.options import OptimOptions

LOOK_WINDOW = 256
RANKS = (2, 4, 8, 16, 32, 64, 128, 256)


@dataclass(frozen=True)
class Shape:
    """A decoder of stated size, and how it is to be trained. None is: chosen."""

    family: str
    fields: dict[str, Any]
    seq_len: int
    precision: Precision
    optim: OptimOptions
    batch_size: int | None = None
    micro_batch_size: int | None = None
    checkpoint_activations: bool | None = None
    ranks: int = 1


def shape_of(given: dict[str, Any], preset: str | None, ranks: int = 1) -> Shape:
    """From a published size, or from keys of the recipe; ConfigError for what is unknown or missing."""
    Request("", given=dict(given))  # checks names and ranges
    if ranks < 1:
        raise ConfigError(f"--ranks {ranks}: expected at least 1")
    if preset is not None:
        everyone = {p: n for n in FAMILIES for p in family(n).module.PRESETS}
        presets = {p: n for p, n in everyone.items() if FAMILIES[n].kind == "decoder"}
        if preset in everyone and preset not in presets:
            raise ConfigError(f"preset '{preset}' is of {everyone[preset]}; plans are of what reads from left to right")
        if preset not in presets:
            raise ConfigError(f"unknown preset '{preset}'; {nearest(preset, list(presets))}")
        for key in ("family", "d_model", "n_layers", "vocab_size"):
            if key in given:
                raise ConfigError(f"--preset {preset} says what --{key.replace('_', '-')} is; leave one out")
        name = presets[preset]
        fields = dict(family(name).module.PRESETS[preset])
        longest = asdict(from_dict(family(name).config, fields))["max_seq_len"]
        seq_len = given.get("seq_len", longest)
        if seq_len > longest:
            raise ConfigError(f"--seq-len {seq_len} is more than the {longest} that {preset} has")
    else:
        if "d_model" not in given or "n_layers" not in given:
            raise ConfigError("the size is missing: give --d-model and --n-layers, or --preset (foundling families)")
        name, seq_len = given.get("family", "llama"), given.get("seq_len", 512)
        fields = family(name).module.sized(given.get("vocab_size", 4096), seq_len, given["d_model"], given["n_layers"])
    precision = given["precision"] if "precision" in given else choose_precision(default_device())[0]
    optim = OptimOptions(optimizer=given.get("optimizer", "muon"))
    return Shape(
        name, fields, seq_len, precision, optim, given.get("batch_size"),
        given.get("micro_batch_size"), given.get("checkpoint_activations"), ranks,
    )  # fmt: skip


def memory_of(shape: Shape, free: int | None = None) -> dict[str, Any]:
    """Parts of the step's memory, whether it fits into `free` bytes, and what would make it fit."""
    free, batch_size = free_memory() if free is None else free, shape.batch_size or 8
    process = process_bytes()
    held = free + anonymous_bytes(os.getpid())

    def footprint(**changes: Any) -> MemoryEstimate:
        settings = {
            "micro_batch_size": shape.micro_batch_size or batch_size,
            "checkpointing": bool(shape.checkpoint_activations),
            "optim": shape.optim, "ranks": shape.ranks,
        } | changes  # fmt: skip
        settings["accumulates"] = settings["micro_batch_size"] < batch_size
        return estimate_training_memory(
            shape.family, shape.fields, seq_len=shape.seq_len, precision=shape.precision, process=process, **settings
        )

    found = footprint()
    ways: list[dict[str, Any]] = []
    if found.peak > held:
        one = {"micro_batch_size": 1}
        twice = {"checkpointing": True}
        split = [one | twice | {"ranks": n} for n in RANKS if n > shape.ranks]
        for change in (one, twice, one | twice, *split):
            peak = footprint(**change).peak
            if peak <= held:
                ways.append({("checkpoint_activations" if k == "checkpointing" else k): v for k, v in change.items()})
                ways[-1]["peak"] = peak
                if "ranks" in change:
                    break
    return {
        **_counts(shape), "batch_size": batch_size, "seq_len": shape.seq_len, "precision": shape.precision,
        "training": found.parts(), "free_bytes": free, "fits": found.peak <= held, "ways": ways,
        "serving": serving_bytes(shape.family, shape.fields, rows=batch_size, seq_len=shape.seq_len),
    }  # fmt: skip


def run_of(shape: Shape, tokens: float, data: str, show: Show, given: dict[str, Any]) -> dict[str, Any]:
    """FLOPs, time by a probe, memory by part, energy and held-out loss of training on so many tokens of `data`;
    of `given` the keys threads, device and field. BudgetError for less than one step or what cannot fit into memory."""
    device, threads = resolve_device(given.get("device", default_device())), given.get("threads", available_threads())
    runtime = Runtime(device, shape.precision, threads)
    runtime.setup()
    batch_size = shape.batch_size or batch_rows(tokens, shape.seq_len)
    steps = round(tokens / (batch_size * shape.seq_len))
    if steps < 1:
        raise BudgetError(
            f"--tokens {tokens:g} is less than one step; the least that works here is {batch_size * shape.seq_len}"
        )
    free = free_memory() + anonymous_bytes(os.getpid())
    settings: dict[str, Any] = {
        "seq_len": shape.seq_len, "precision": shape.precision, "optim": shape.optim, "process": process_bytes(),
    }  # fmt: skip
    fit = largest_fit(shape.family, shape.fields, memory_bytes=int(0.9 * free), batch_size=batch_size, **settings)
    micro, twice = shape.micro_batch_size, shape.checkpoint_activations
    if micro is not None or twice is not None or fit is None:
        micro, twice = micro or (fit[0] if fit else 1), bool(twice if twice is not None else fit and fit[1])
        footprint = estimate_training_memory(
            shape.family, shape.fields, micro_batch_size=micro, checkpointing=twice, accumulates=micro < batch_size,
            **settings,
        )  # fmt: skip
    else:
        micro, twice, footprint = fit
    if footprint.peak > free:
        raise BudgetError(_too_large(shape, footprint.peak, free))
    spare_memory(footprint)
    fields = shape.fields | {"max_seq_len": shape.seq_len}
    counts = _counts(shape)
    with show.phase("probe", "measuring this machine"):
        step = estimate_step(
            shape.family, fields, Causal(), runtime, batch_size, micro, shape.optim,
            flops_per_token=counts["flops_per_token"], memory_bytes=free, checkpoint_activations=twice,
        )  # fmt: skip
    peak = step.peak_bytes or footprint.peak
    seen, n = steps * batch_size * shape.seq_len, matmul_parameters(skeleton(shape.family, shape.fields))
    text, law = _text(data, given.get("field", "text"), shape, runtime, show), load_law()
    bits = law.bits_per_byte(n, seen * text.bytes_per_token, text)
    return {
        **counts, "tokens": seen, "steps": steps, "batch_size": batch_size, "micro_batch_size": micro,
        "checkpoint_activations": twice, "precision": shape.precision, "flops": counts["flops_per_token"] * seen,
        "step_seconds": step.seconds, "seconds": steps * step.seconds, "how": step.how, "memory": footprint.parts(),
        "peak_bytes": peak, "joules": estimate(steps * step.seconds, threads, peak), "bits_per_byte": round(bits, 4),
        "loss": round(bits * math.log(2) * text.bytes_per_token, 4), "law_error": law.error,
    }  # fmt: skip


def optimal(request: Request, show: Show) -> dict[str, Any]:
    """The recipe and prediction that `raise` would begin with, and what the other sizes would reach."""
    memory = PeakMemory()
    try:
        with show.phase("read", f"reading {request.data}"):
            found, _ = corpus.read(request.data, request.given.get("field", "text"))
        planned = plan(request, found, show, memory)
    finally:
        memory.done.set()
    sizes = [
        {
            "d_model": choice.fields["d_model"], "n_layers": choice.fields["n_layers"], "params": choice.parameters,
            "tokens": round(choice.tokens), "bits_per_byte": round(choice.bits_per_byte, 4),
        }
        for choice in planned.considered
    ]  # fmt: skip
    return {"recipe": recipe_dict(planned.recipe), "prediction": planned.prediction, "sizes": sizes}


def _counts(shape: Shape) -> dict[str, Any]:
    model = skeleton(shape.family, shape.fields)
    return {
        "family": shape.family, "params": count_parameters(model)["total"],
        "active": count_parameters(model)["active"],
        "flops_per_token": training_flops_per_token(model, shape.seq_len),
    }  # fmt: skip


def _text(data: str, field: str, shape: Shape, runtime: Runtime, show: Show) -> Corpus:
    with show.phase("read", f"reading {data}"):
        found, _ = corpus.read(data, field)
    with show.phase("tokenizer", "training a tokenizer"):
        tokenizer = corpus.train_tokenizer(found, shape.fields["vocab_size"])
    with show.phase("probe", "a first look at the text"):
        return look(found, tokenizer, shape.family, min(shape.seq_len, LOOK_WINDOW), runtime)[0]


def _too_large(shape: Shape, peak: int, free: int) -> str:
    ways = memory_of(replace(shape, micro_batch_size=1, checkpoint_activations=True, batch_size=1), free)["ways"]
    ranks = next((f"; split over {w['ranks']} processes it would fit" for w in ways if "ranks" in w), "")
    return f"training takes at least {peak / 2**30:.1f} GiB, {free / 2**30:.1f} GiB are free here{ranks}"
