# SPDX-License-Identifier: Apache-2.0
"""Raise a model and align it: `foundling raise DATA --align [CHATS]`.

Three stages: the base is raised, learns from demonstrations (SFT), then from comparisons (DPO). The first two are runs
of their own in OUT/stages/base and OUT/stages/sft, complete model directories that stay: each resumes, is checked and
compared as any other, and is the parent, by hash, of the next. The last stage is the run in OUT itself, which owns the
claim, the plan of the whole and what is published. Questions and answers lie in OUT/stages/questions.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from foundling.config import from_dict, merged
from foundling.data.question_sets import Chat, read_chats
from foundling.errors import BudgetError, MismatchError
from foundling.plan.energy import Meter
from foundling.recipes import start
from foundling.recipes.aligned_data import find_chats, make_questions, with_answers
from foundling.recipes.aligned_plan import (
    BASE,
    DPO,
    SFT,
    SHARES,
    base_request,
    check_alignable,
    plan_stages,
    tuned_request,
)
from foundling.recipes.finetune import finetune
from foundling.recipes.journal import PLAN, RECIPE, Journal
from foundling.recipes.kinds import script_for
from foundling.recipes.publish import is_complete
from foundling.recipes.recipe import Recipe, Request
from foundling.recipes.run import Run, Script
from foundling.runtime.clock import Clock
from foundling.runtime.files import write_json
from foundling.runtime.memory import PeakMemory
from foundling.text import Tokenizer
from foundling.weights.manifest import read_manifest

STAGES, QUESTIONS = "stages", "questions"
LEAST_STEPS = 10
"""of a stage for whose share of the budget no step is left"""


def aligned(run: Run) -> dict[str, Any]:
    whole, folder = run.user_request, run.out / STAGES
    questions = folder / QUESTIONS
    check_alignable(whole)
    if whole.align and not questions.exists():
        read_chats(whole.align)  # refused before the text is read
    try:
        run_stage(run, BASE, base_request(whole), _raising(run, questions), run.clock)
    except Exception:
        with suppress(OSError):  # where it is empty, the run was refused
            folder.rmdir()
        raise
    run_stage(run, SFT, tuned_request(whole, SFT, folder / BASE, questions), finetune, Clock())
    run.progress.line("stage 3 of 3: comparisons")
    if run.recipe is not None:
        run.recipe = starting_from(run.recipe, folder / SFT)
    run.memory.done.set()
    run.clock, run.memory, run.meter = Clock(), PeakMemory(), Meter()  # from here on of this stage
    run.amend = lambda outcome: with_answers(run, outcome, folder, questions)

    def last(request: Request) -> dict[str, Any]:
        run.request = request
        return finetune(run)

    return within_share(run, tuned_request(whole, DPO, folder / SFT, questions), last)


def run_stage(run: Run, name: str, request: Request, script: Script, clock: Clock) -> None:
    """Runs a stage to its end, from wherever it was; of a run that is reproduced by the recipe that it had."""
    out = run.out / STAGES / name
    record = next((stage for stage in run.stages if stage["name"] == name), None)
    reproduced = None
    if record is not None:
        recipe = from_dict(Recipe, record["recipe"], where=f"the recipe of the stage '{name}'")
        recipe = recipe if name == BASE else starting_from(recipe, run.out / STAGES / BASE)
        reproduced = record | {"recipe": recipe}

    def attempt(request: Request) -> Any:
        begun = Journal.load(out / "run") is not None
        return start.start(
            script, request, out, resume=begun, progress=run.progress, clock=clock, reproduced=reproduced
        )

    if not is_complete(out):
        run.progress.line({BASE: "stage 1 of 3: the base", SFT: "stage 2 of 3: demonstrations"}[name])
        within_share(run, request, attempt)
    digest = read_manifest(out)["weights_hash"]
    if record is not None and digest != record["weights_hash"]:
        raise MismatchError(
            f"the stage '{name}' has weights {digest[:12]} here and had {record['weights_hash'][:12]}; is this another "
            "machine?"
        )


def starting_from(recipe: Recipe, directory: Path) -> Recipe:
    """Its weights are compared with those that the recipe names, wherever the whole was when it was made."""
    return replace(recipe, model=replace(recipe.model, directory=str(directory)))


def within_share(run: Run, request: Request, attempt: Callable[[Request], Any]) -> Any:
    """A stage whose share is too short for a step takes a few steps: what came before it is not to be lost."""
    try:
        return attempt(request)
    except BudgetError as error:
        if request.command == "raise":
            raise BudgetError(f"with --align the base has {SHARES[BASE]:.0%} of a budget in minutes: {error}") from None
        if request.budget.unit != "seconds":
            raise
        run.progress.line(f"note: {error}; this stage takes {LEAST_STEPS} steps all the same")
        return attempt(replace(request, given=merged(request.given, {"train": {"total_steps": LEAST_STEPS}})))


def _raising(run: Run, questions: Path) -> Script:
    """The script of the base, which first sees to the questions and, before the first step, to the plan of all."""

    def script(inner: Run) -> dict[str, Any]:
        corpus = inner.corpus()
        chats = [] if questions.exists() else find_chats(run.user_request, corpus, run.out, run.progress)
        inner.on_plan = lambda: plan_whole(inner, chats)
        return script_for(inner.request)(inner)

    def plan_whole(inner: Run, chats: list[Chat]) -> None:
        assert inner.recipe
        tokenizer = Tokenizer.load(inner.directory / "tokenizer")
        make_questions(chats, questions, tokenizer, inner.recipe, run.progress)
        if PLAN not in run.journal.files or RECIPE not in inner.journal.files:
            plan = plan_stages(run.user_request, inner.recipe, inner.prediction, questions)
            write_json(run.directory / PLAN, plan)
            run.journal.record(PLAN)
            for name, stage in plan["stages"].items():
                run.progress.line(f"planned: {name} {stage['seconds']:.0f} s, {stage['text']}")

    return script
