# SPDX-License-Identifier: Apache-2.0
"""GRPO with LoRA on a real model within an hour: worded sums, rewarded for the right answer and for its form.

python -m benchmarks.grpo_smollm2 [--minutes 55] [--weights int8] [--method grpo|sft] [--out FILE]

SmolLM2-135M-Instruct is asked to end with a line "Answer: N". Reported are, for held-out problems and greedy answers,
the share that has the line, the share that is right, and the share of those with the line that is right: before, after
GRPO, and after SFT on worked solutions for as long.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

from benchmarks.align_tasks import answers
from benchmarks.chat_task import smollm2
from benchmarks.corpora import WORK
from benchmarks.runs import Results, commit
from foundling.data.datasets import open_rows
from foundling.evaluate.intervals import interval_of
from foundling.evaluate.rewards import build_rewards
from foundling.plan.budget import Budget
from foundling.recipes.kinds import finetune_model
from foundling.recipes.progress import Progress
from foundling.recipes.recipe import Request
from foundling.runtime.clock import Clock

ASK = "\nWork it out step by step, briefly. End with a line of the form: Answer: N"
FORM = r"^Answer: -?\d+\s*\Z"
N_HELD_OUT, MAX_TOKENS = 500, 96
FOLDER = WORK / "grpo_smollm2"


def rows(split: str, n: int) -> list[dict[str, Any]]:
    every = open_rows(f"builtin:arithmetic:prompts:easy:{split}:n={n}")
    return [{**row, "prompt": row["prompt"] + ASK} for row in every]


def write(name: str, values: list[dict[str, Any]]) -> str:
    FOLDER.mkdir(parents=True, exist_ok=True)
    (FOLDER / name).write_text("".join(json.dumps(row) + "\n" for row in values), encoding="utf-8")
    return str(FOLDER / name)


def demonstrations(n: int) -> list[dict[str, Any]]:
    every = open_rows(f"builtin:arithmetic:demonstrations:easy:train:n={n}")
    for row in every:
        row["messages"][0]["content"] += ASK
    return every


def measure(directory: Path) -> dict[str, Any]:
    """Greedy answers to the held-out problems."""
    asked = rows("held-out", N_HELD_OUT)
    texts = answers(directory, asked, MAX_TOKENS, temperature=0.0, seed=0).texts
    right = build_rewards(["maths"])(asked, texts)
    formed = [float(re.search(FORM, text.strip(), re.MULTILINE) is not None) for text in texts]
    both = [r for r, f in zip(right, formed, strict=True) if f]

    def share(values: list[float]) -> dict[str, Any]:
        low, high, _ = interval_of(values)
        return {"share": round(sum(values) / max(1, len(values)), 4), "low": low, "high": high, "of": len(values)}

    return {"formed": share(formed), "right": share(right), "right of formed": share(both), "example": texts[0]}


def learn(kind: str, minutes: float, weights: str | None) -> dict[str, Any]:
    """What the run prints, and what came of it."""
    out = FOLDER / kind
    given: dict[str, Any] = {"model": {"directory": str(smollm2())}, "objective": {"kind": kind}}
    if kind == "grpo":
        data = write("prompts.jsonl", rows("train", 2000))
        given["rollout"] = {
            "reward": ["maths", f"0.5*matches:{FORM}"], "n_prompts": 4, "group_size": 8, "max_tokens": MAX_TOKENS,
            "weights": weights,
        }  # fmt: skip
        given["optim"] = {"learning_rate": 5e-4}
    else:
        data = write("demonstrations.jsonl", demonstrations(2000))
    request = Request(data, Budget("seconds", 60 * minutes), None, given, "finetune")
    result = finetune_model(request, out, progress=Progress(True), clock=Clock())
    return {"commit": commit(), "run": {name: result[name] for name in ("steps", "actual", "predicted")}} | measure(out)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, default=55)
    parser.add_argument("--weights")
    parser.add_argument("--stages", default="before,grpo,chat")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    results = Results("grpo_smollm2", args.out)
    stages = {
        "before": lambda: {"commit": commit()} | measure(smollm2()),
        "grpo": lambda: learn("grpo", args.minutes, args.weights),
        "chat": lambda: learn("chat", min(args.minutes, 10), None),
    }
    for name in args.stages.split(","):
        results.get(name, stages[name])


if __name__ == "__main__":
    main()
