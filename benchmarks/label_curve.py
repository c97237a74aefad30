# SPDX-License-Identifier: Apache-2.0
"""Held-out accuracy of a reward model against the number of compared pairs and the share that is labelled wrongly.

python -m benchmarks.label_curve [--sizes 64,256,1024,4096] [--wrong 0,0.1,0.2,0.35] [--seeds 3] [--minutes 40]

The answers are words, each of which has a planted value; the better answer is the one whose values sum to more, and a
stated share of the labels is turned round. A small Llama of random weights learns them (`foundling align reward`, all
weights, the best by validation) and is asked about the same held-out pairs, whose labels are right. Each run is written
when it is there, and a second call goes on. `foundling label --target` and `--budget` read the points; the law that is
fitted to them is in foundling/plan/labels.py. A law of another model on other data: measure it there and give --curve.
"""

from __future__ import annotations

import argparse
import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

import foundling
from benchmarks.corpora import WORK
from benchmarks.runs import Results
from foundling.errors import BudgetError
from foundling.models import build, family
from foundling.plan.budget import Budget
from foundling.plan.labels import Point, fit_law
from foundling.recipes.kinds import finetune_model
from foundling.recipes.recipe import Request
from foundling.text import Tokenizer

SIZES, WRONG, SEEDS = (64, 256, 1024, 4096), (0.0, 0.1, 0.2, 0.35), 3
WORDS = [a + b + "n" for a in "bdfgklmprst" for b in "aeo"]
N_WORDS, N_HELD_OUT, PRESENTED = 4, 500, 6144
"""words of an answer, held-out pairs, and pairs that a run reads, however few are different"""
RUNTIME = {"threads": 1, "precision": "float32", "compile": False}


def pairs(n: int, wrong: float, seed: int, values: np.ndarray) -> list[dict[str, str]]:
    """Comparisons with a share of `wrong` labels: exactly so many, and never two of one prompt."""
    draw, rows = np.random.default_rng(seed), list[dict[str, str]]()
    turned = set(draw.permutation(n)[: round(wrong * n)].tolist())
    for number in range(n):
        answers = draw.integers(len(WORDS), size=(2, N_WORDS))
        better = int(values[answers[1]].sum() > values[answers[0]].sum())
        if number in turned:
            better = 1 - better
        chosen, rejected = (" ".join(WORDS[i] for i in answers[which]) for which in (better, 1 - better))
        rows.append({"prompt": f"{seed % 1000} {number}", "chosen": chosen, "rejected": rejected})
    return rows


def write(path: Path, rows: list[dict[str, str]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def base_model(folder: Path) -> Path:
    directory = folder / "base"
    if not directory.exists():
        texts = [
            f"User: {n}\n\nAssistant: {row['chosen']}\n\n{row['rejected']}"
            for n, row in enumerate(pairs(400, 0, 7, np.zeros(len(WORDS))))
        ]
        torch.manual_seed(0)
        # of torch's own initialisation: with a smaller one the answers differ so little at first that nothing is learnt
        model = build("llama", **family("llama").module.sized(384, 64, 64, 2))
        foundling.save(model, directory, tokenizer=Tokenizer.train(texts, 384))
    return directory


def measure(folder: Path, size: int, wrong: float, seed: int) -> dict[str, Any]:
    """One reward model; seeds differ in the pairs, the turned labels and the order."""
    torch.set_num_threads(1)
    values = np.random.default_rng(0).normal(size=len(WORDS))
    held_out = write(folder / "held_out.jsonl", pairs(N_HELD_OUT, 0, 999, values))
    data = write(folder / f"pairs-{size}-{wrong}-{seed}.jsonl", pairs(size, wrong, 1000 + seed, values))
    out = folder / f"run-{size}-{wrong}-{seed}"
    shutil.rmtree(out, ignore_errors=True)
    given = {
        "model": {"directory": str(base_model(folder))}, "objective": {"kind": "reward"}, "adapt": {"method": "full"},
        "data": {"held_out": str(held_out), "chat_template": "plain"}, "runtime": RUNTIME, "seed": seed,
        "train": {"batch_size": 32}, "optim": {"learning_rate": 1e-3},
    }  # fmt: skip
    budget = Budget("epochs", max(2, PRESENTED // size))
    result = finetune_model(Request(str(data), budget, None, given, "finetune"), out)
    shutil.rmtree(out, ignore_errors=True)
    data.unlink()
    point = Point(size, wrong, result["actual"]["accuracy"])
    return point._asdict() | {"seed": seed, "seconds": round(result["actual"]["seconds"], 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default=",".join(map(str, SIZES)))
    parser.add_argument("--wrong", default=",".join(map(str, WRONG)))
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--minutes", type=float, default=40)
    parser.add_argument("--file", type=Path, help="where the results go (default: docs/results/label_curve.json)")
    args = parser.parse_args()
    results, folder = Results("label_curve", args.file, minutes=args.minutes), WORK / "label_curve"
    runs = [
        (int(size), float(wrong), seed)
        for size in args.sizes.split(",") for seed in range(args.seeds) for wrong in args.wrong.split(",")
    ]  # fmt: skip
    for size, wrong, seed in runs:
        results.get(f"{size} pairs, {wrong:g} wrong, seed {seed}", lambda: measure(folder, size, wrong, seed))  # noqa: B023
    points = [value for name, value in results.values.items() if " pairs, " in name]
    results.values["points"] = points
    try:
        law = fit_law([Point(one["labels"], one["wrong"], one["accuracy"]) for one in points])
        results.values["law"] = {name: round(value, 5) for name, value in asdict(law).items()}
    except BudgetError as error:
        print(f"no law yet: {error}")
    results.save()
    if not results.complete:
        raise SystemExit("the time is over; run it again to go on")


if __name__ == "__main__":
    main()
