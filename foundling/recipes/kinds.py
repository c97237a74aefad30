# SPDX-License-Identifier: Apache-2.0
"""Which kind of run a request is, and the ways to start one."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from foundling.recipes import start
from foundling.recipes.models import family_for, measured_as, objective_for, pinned_request
from foundling.recipes.progress import Progress
from foundling.recipes.publish import is_complete
from foundling.recipes.recipe import REWARDED, ExampleKind, Recipe, Request
from foundling.recipes.run import Script
from foundling.runtime.clock import Clock
from foundling.weights.manifest import read_manifest

SCRIPTS = {
    "causal": "foundling.recipes.pretrain:pretrain",
    **dict.fromkeys(("masked", "bilm"), "foundling.recipes.masked:masked"),
    "span": "foundling.recipes.seq2seq:seq2seq",
    "infill": "foundling.recipes.seq2seq:seq2seq",
    "distill": "foundling.recipes.distill:distill",
    **dict.fromkeys(get_args(ExampleKind), "foundling.recipes.finetune:finetune"),
    **dict.fromkeys(REWARDED, "foundling.recipes.policy:policy"),
}
"""objective -> the kind of run that learns it"""
ALIGNED = "foundling.recipes.aligned:aligned"


def script_of(objective: str, family: str) -> Script:
    """A student that reads masked text is raised by the script of that."""
    as_masked = measured_as(objective, family) == "masked"
    return _load(SCRIPTS["masked" if as_masked else objective])


def _load(script: str) -> Script:
    module, _, name = script.partition(":")
    return getattr(importlib.import_module(module), name)


def script_for(request: Request) -> Script:
    if request.align is not None:
        return _load(ALIGNED)
    if request.command == "finetune":
        rewarded = request.get("objective.kind") in REWARDED
        return script_of(request.get("objective.kind") if rewarded else "chat", "")
    objective = objective_for(request)
    return script_of(objective, family_for(request.get("model", {})))


def raise_model(
    request: Request, out: str | Path, *, progress: Progress | None = None, clock: Clock | None = None
) -> dict[str, Any]:
    """Raises a model of any kind into the directory `out`, which must be new or empty, and returns what
    `foundling raise --json` prints."""
    request = pinned_request(request)
    return start.start(script_for(request), request, out, progress=progress, clock=clock)


def finetune_model(
    request: Request, out: str | Path, *, progress: Progress | None = None, clock: Clock | None = None
) -> dict[str, Any]:
    """Finetunes the model of the request on its examples into the directory `out`, which must be new or empty, and
    returns what `foundling finetune --json` prints."""
    request = pinned_request(request)
    return start.start(script_for(request), request, out, progress=progress, clock=clock)


def plan_finetuning(request: Request, *, progress: Progress, clock: Clock) -> dict[str, Any]:
    """The recipe that `finetune_model` would begin with, and what it takes: `foundling finetune --plan --json`."""
    from foundling.recipes.finetune_methods import plan_methods
    from foundling.recipes.policy_plan import plan_policy

    plan = plan_policy if request.get("objective.kind") in REWARDED else plan_methods
    return plan(request, progress=progress, clock=clock)


def resume_model(out: str | Path, *, progress: Progress | None = None, clock: Clock | None = None) -> dict[str, Any]:
    """Continues the unfinished run in `out`; its request is read from there."""
    out = Path(out)
    if is_complete(out):
        (progress or Progress(False)).line(f"{out} is complete")
        result = read_manifest(out).get("result")  # an imported directory has none
        return result if isinstance(result, dict) else {}
    request = start.stored_request(out)
    return start.start(script_for(request), request, out, resume=True, progress=progress, clock=clock)


def reproduce(
    directory: str | Path,
    *,
    data: str | None = None,
    parents: Sequence[str] = (),
    out: str | Path | None = None,
    progress: Progress | None = None,
    clock: Clock | None = None,
) -> dict[str, Any]:
    """Runs the recipe of `directory` again and compares the weights; see start.reproduce."""

    def script(recipe: Recipe, request: Request) -> Script:
        if request.align is not None:
            return _load(ALIGNED)
        return script_of(recipe.objective.kind, recipe.model.family)

    return start.reproduce(script, directory, data=data, parents=parents, out=out, progress=progress, clock=clock)
