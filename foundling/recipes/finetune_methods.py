# SPDX-License-Identifier: Apache-2.0
"""`foundling finetune … --plan`: what each method would take, before any is chosen. Nothing is written."""

from __future__ import annotations

import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, get_args

import torch

from foundling.adapt.heads import add_head
from foundling.adapt.method import apply
from foundling.adapt.options import AdaptOptions, Method
from foundling.errors import AdaptError, ConfigError
from foundling.models import build, count_parameters
from foundling.plan.flops import training_flops_per_token
from foundling.recipes.adapting import with_pool
from foundling.recipes.finetune_data import batches_of, steps_per_epoch, validation_split
from foundling.recipes.finetune_plan import (
    Draft,
    cost_of,
    draft_of,
    fit_memory,
    model_bytes,
    peak_of_probe,
    settle_steps,
    usable_bytes,
    with_fit,
)
from foundling.recipes.probing import is_solved, with_probe
from foundling.recipes.progress import Progress
from foundling.recipes.recipe import Recipe, Request
from foundling.recipes.run import Run
from foundling.runtime.clock import Clock
from foundling.runtime.rng import generator


def plan_methods(request: Request, *, progress: Progress, clock: Clock) -> dict[str, Any]:
    """The recipe that `finetune` would begin with, and for each method the share that it trains, the memory of a step
    by an estimate, and the time that it takes, measurements included: that of the request's method is timed where it
    fits, the others follow by their FLOPs."""
    with tempfile.TemporaryDirectory(prefix="foundling-plan-") as folder:
        run = Run(request, Path(folder), progress, clock)
        try:
            draft = draft_of(run, run.examples())
            fit, split = fit_memory(draft.recipe, draft.head), draft.judge.encoded.train
            recipe = with_fit(draft.recipe, fit)
            train, validation = validation_split(split, recipe)
            batches, cost = batches_of(train, recipe, draft.model), None
            if fit.bytes <= usable_bytes():
                with clock.phase("probe"):
                    progress.line("timing a few steps, and answers to some examples")
                    cost = cost_of(draft, recipe, batches, validation)
        finally:
            run.memory.done.set()
    chosen = recipe.adapt.method
    rows = {method: _method(_by(draft.recipe, method, request), draft) for method in get_args(Method)}
    if draft.head is None:
        del rows["head"]
    if not is_solved(recipe):
        step, once = (cost.step + cost.validation, cost.once) if cost else (1.0, 0.0)
        once += cost.probe if cost and recipe.adapt.probe else 0.0
        recipe = settle_steps(run, recipe, steps_per_epoch(batches), step, once)
    for name, row in rows.items():
        probed = row.pop("probed", False)
        if cost is None or "flops_per_token" not in row:
            continue
        once = cost.once + (cost.probe if probed else 0.0)
        if name == "head" and probed:
            row |= {"step_seconds": 0.0, "seconds": round(once, 1)}
        elif cost.step:
            step = cost.step * row["flops_per_token"] / rows[chosen]["flops_per_token"]
            seconds = recipe.train.total_steps * (step + cost.validation) + once
            row |= {"step_seconds": round(step, 4), "seconds": round(seconds, 1)}
    return {"recipe": asdict(recipe), "method": chosen, "methods": rows}


def _by(recipe: Recipe, method: Any, request: Request) -> Recipe:
    """By another method, its settings as they are by default."""
    if method == recipe.adapt.method:
        return recipe
    probe = False if request.get("adapt.probe") is False else None
    return replace(recipe, adapt=AdaptOptions(method, probe=probe))


def _method(recipe: Recipe, draft: Draft) -> dict[str, Any]:
    """`unsupported`, in words, where the method does not fit the model."""
    head, split, layout = draft.head, draft.judge.encoded.train, None
    with torch.device("meta"):
        model = build(recipe.model.family, **recipe.model.fields)
    try:
        if head is not None:
            layout = add_head(model, with_pool(head, recipe), generator("head")).layout
        apply(model, recipe.adapt, generator("adapt"))
    except (AdaptError, ConfigError) as error:
        return {"unsupported": str(error)}
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    if head is not None and recipe.adapt.method != draft.recipe.adapt.method:
        space = usable_bytes() - model_bytes(recipe, head)
        recipe = with_probe(recipe, split, head, layout, draft.new_head, space)
    fit = fit_memory(recipe, head)
    return {
        "trained": trained, "share": trained / count_parameters(model)["total"],
        "peak_bytes": max(fit.bytes, peak_of_probe(recipe, head, split)), "probed": bool(recipe.adapt.probe),
        "micro_batch_size": fit.rows, "activation_checkpointing": fit.checkpointing,
        "fits": fit.bytes <= usable_bytes(), "flops_per_token": training_flops_per_token(model, recipe.train.seq_len),
    }  # fmt: skip
