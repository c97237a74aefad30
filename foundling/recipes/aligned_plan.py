# SPDX-License-Identifier: Apache-2.0
"""What the stages of a run that is aligned are asked for, and the plan of the whole (aligned.py)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from foundling.data.question_sets import COMPARISONS, DEMONSTRATIONS, HELD_OUT, HELD_OUT_COMPARISONS
from foundling.errors import ConfigError
from foundling.models import FAMILIES
from foundling.plan.budget import Budget
from foundling.plan.energy import estimate
from foundling.recipes.aligned_data import find_chats, make_questions, read_lines
from foundling.recipes.estimate import optimal
from foundling.recipes.models import family_for, objective_for
from foundling.recipes.progress import Progress
from foundling.recipes.recipe import Recipe, Request
from foundling.recipes.run import Prepared, Run
from foundling.runtime.clock import Clock

BASE, SFT, DPO = "base", "sft", "dpo"
SHARES = {BASE: 0.65, SFT: 0.2, DPO: 0.15}
"""of a budget in minutes"""
EPOCHS = {SFT: 3.0, DPO: 1.0}
"""where the budget is another: that is the base's alone"""
SFT_RATE = 3e-3
"""learning rate of SFT after a base that was raised from nothing, in minutes. Of 2e-4, 1e-3, 3e-3 and 1e-2 it left the
least held-out loss: 4.68, 3.75, 3.49 and 3.60 nats an answer token after 120 steps on a quickstart's base"""
LEARNS = {SFT: ("chat", DEMONSTRATIONS, HELD_OUT), DPO: ("dpo", COMPARISONS, HELD_OUT_COMPARISONS)}
"""stage -> (objective, what it learns from, what is held out)"""
PASSES = {"sft": 1.0, "dpo": 2.7}
"""what an example takes of a training pass: two answers, which a reference that is not trained reads as well (a third
of a pass each)"""


def check_alignable(whole: Request) -> None:
    """ConfigError for what writes no chats."""
    family = family_for(whole.get("model", {}))
    if FAMILIES[family].kind != "decoder" or objective_for(whole) not in ("causal", "distill"):
        raise ConfigError(f"--align needs a model that writes chats, '{family}' does not; use a decoder such as llama")


def share_of(budget: Budget, stage: str) -> Budget:
    if budget.unit == "seconds":
        return Budget("seconds", SHARES[stage] * budget.value)
    return budget if stage == BASE else Budget("epochs", EPOCHS[stage])


def base_request(whole: Request) -> Request:
    return replace(whole, align=None, budget=share_of(whole.budget, BASE))


def tuned_request(whole: Request, stage: str, model: Path, questions: Path) -> Request:
    """Finetuning of all weights of `model`; what was given of the machine and the seed holds for every stage."""
    kind, learnt, apart = LEARNS[stage]
    runtime = {key: value for key, value in whole.get("runtime", {}).items() if key != "compile"}
    every = whole.get("train.checkpoint_every")
    new = stage == SFT and not whole.get("model.directory")
    given = {
        "model": {"directory": str(model)}, "objective": {"kind": kind}, "adapt": {"method": "full"},
        "data": {"held_out": str(questions / apart)},
        **({"train": {"checkpoint_every": every}} if every else {}),
        **({"optim": {"learning_rate": SFT_RATE}} if new else {}),
        **({"runtime": runtime} if runtime else {}),
        **({"seed": whole.given["seed"]} if "seed" in whole.given else {}),
    }  # fmt: skip
    return Request(str(questions / learnt), share_of(whole.budget, stage), whole.licence, given, "finetune")


def plan_stages(whole: Request, recipe: Recipe, prediction: Mapping[str, Any], questions: Path) -> dict[str, Any]:
    """What each stage takes, by the `recipe` and `prediction` of the base and the files in `questions`: a budget in
    minutes says it, else the speed of the base. Each stage plans again by its own steps, before the first of them."""
    t, stages = recipe.train, dict[str, Any]()
    rate = t.batch_size * t.seq_len / prediction["step_seconds"]
    base = f"{prediction['params']:,} parameters, {prediction['tokens']:,} tokens"
    stages[BASE] = {"seconds": prediction["seconds"], "text": base}
    for name, (_, learnt, _) in LEARNS.items():
        budget, file = share_of(whole.budget, name), questions / learnt
        n = len(read_lines(file))
        epoch = PASSES[name] * file.stat().st_size / prediction["bytes_per_token"] / rate
        seconds = budget.value if budget.unit == "seconds" else budget.value * epoch
        epochs = seconds / epoch if budget.unit == "seconds" else budget.value
        text = f"{n:,} {file.stem}, about {epochs:.2g} epoch{'s' * (f'{epochs:.2g}' != '1')}"
        stages[name] = {"seconds": round(seconds, 1), "examples": n, "epochs": round(epochs, 2), "text": text}
    seconds, peak = sum(stage["seconds"] for stage in stages.values()), prediction["peak_bytes"]
    joules = estimate(seconds, recipe.runtime.threads, peak)
    return {"seconds": round(seconds, 1), "peak_bytes": peak, "joules": joules, "stages": stages}


def plan_aligned(whole: Request, progress: Progress, clock: Clock) -> dict[str, Any]:
    """What `foundling plan optimal` says of the base, and the plan of the whole under "plan"."""
    check_alignable(whole)

    def stages(run: Run, prepared: Prepared) -> dict[str, Any]:
        chats = find_chats(whole, run.corpus(), run.out, progress)
        make_questions(chats, run.out / "questions", prepared.tokenizer, prepared.recipe, progress)
        return {"plan": plan_stages(whole, prepared.recipe, prepared.prediction, run.out / "questions")}

    return optimal(base_request(whole), progress, clock, stages)
