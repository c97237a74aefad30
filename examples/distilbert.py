# SPDX-License-Identifier: Apache-2.0
"""DistilBERT's way: half of the layers, most of what the teacher knows (Sanh et al. 2019).

python -m examples.distilbert [--small] [--minutes 30]

The teacher is a ModernBERT of six layers, raised on the descriptions of Debian packages. The student takes three of its
layers and learns from it, without labels, by DistilBERT's three losses; a control of the student's size begins at
random weights and learns from the text alone, for as many FLOPs, and another is not trained at all. All are finetuned
on the same labelled texts. What is compared: accuracy, parameters, and the time to encode rows of 128 tokens, in turn.
"""

from __future__ import annotations

import shutil
import statistics
import time
from pathlib import Path
from typing import Any

import torch

import foundling
from benchmarks.corpora import WORK
from benchmarks.datasets import part
from benchmarks.runs import foundling_json
from examples.programs import Parser, cost_of, finetuned, require_all, run, table
from foundling.blocks.init import initialise
from foundling.models import count_parameters
from foundling.recipes.finetune_plan import LEARNING_RATES
from foundling.runtime.device import available_threads
from foundling.runtime.rng import generator
from foundling.text import Tokenizer

FAMILY = "modernbert"
MODELS = {"teacher": (6, 1e13), "student": (3, 4e12), "control": (3, 4e12), "untrained": (3, 0.0)}
"""name -> layers, FLOPs of training"""
MASK_RATE = 0.3
D_MODEL, SEQ_LEN, VOCAB = 192, 128, 2048
LABELS = {"sections": 1000, "spam": 1000}
EPOCHS, ROWS = 4, 8
FINETUNE = ["--as", "classify", "--method", "full", "--pool", "concat", "--batch-size", str(ROWS)]
FINETUNE += ["--seq-len", str(SEQ_LEN), "--learning-rate", f"{10 * LEARNING_RATES['full']:g}"]
"""ten times the default rate, which suits models of this size better (docs/self_supervision.md)"""
SPEED = "milliseconds of 8 rows of 128 tokens"
ROUNDS = 15
"""of the timing"""


def directory(name: str, small: bool) -> Path:
    return WORK / "distilbert" / (name + ("-small" if small else ""))


def raised(name: str, small: bool) -> dict[str, Any]:
    n_layers, flops = MODELS[name]
    out = directory(name, small)
    shutil.rmtree(out, ignore_errors=True)
    if not flops:
        model = foundling.load(directory("control", small))
        initialise(model, generator("scratch", 0))
        foundling.save(model, out, tokenizer=Tokenizer.load(directory("control", small)))
        return {"parameters": count_parameters(model)["total"]}
    options = ["--teacher", directory("teacher", small)] if name == "student" else ["--vocab-size", str(VOCAB)]
    result = foundling_json(
        "raise", part("sections", "train"), "--field", "text", "--family", FAMILY, "--d-model", str(D_MODEL),
        "--n-layers", str(n_layers), "--flops", str(flops / (20 if small else 1)), "--seq-len", str(SEQ_LEN),
        "--mask-rate", str(MASK_RATE), *options, "--out", out,
    )  # fmt: skip
    actual = result["actual"]
    return {
        "parameters": count_parameters(foundling.load(out))["total"],
        "nats per masked token": round(actual["loss"], 4), "minutes": round(actual["seconds"] / 60, 2),
        "peak memory (MB)": round(actual["peak_bytes"] / 1e6),
    }  # fmt: skip


def scored(name: str, task: str, small: bool) -> dict[str, Any]:
    data = part(task, f"train-{LABELS[task]}")
    epochs = 1 if small else EPOCHS
    return finetuned(directory(name, small), data, part(task, "test"), [*FINETUNE, "--epochs", str(epochs)])


@torch.inference_mode()
def speeds(small: bool) -> dict[str, float]:
    """Median milliseconds for 8 rows, teacher and student in turn."""
    torch.set_num_threads(available_threads())
    models = {name: foundling.load(directory(name, small)).eval() for name in ("teacher", "student")}
    rows = torch.randint(VOCAB, (ROWS, SEQ_LEN), generator=generator("speed"))
    taken: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(ROUNDS):
        for name, model in models.items():
            start = time.perf_counter()
            model.encode(rows)
            taken[name].append(time.perf_counter() - start)
    return {name: round(1000 * statistics.median(times[2:]), 3) for name, times in taken.items()}


def model_table(values: dict[str, Any]) -> str:
    rows: list[tuple[Any, ...]] = [("", "layers", "parameters", "nats per masked token", *LABELS)]
    for name, (n_layers, _) in MODELS.items():
        if cell := values.get(name):
            scores = [values.get(f"{name}, {task}") for task in LABELS]
            accuracies = [f"{score['accuracy']:.3f}" if score else "" for score in scores]
            size, nats = f"{cell['parameters'] / 1e6:.2f} M", cell.get("nats per masked token")
            rows.append((name, n_layers, size, f"{nats:.3f}" if nats else "", *accuracies))
    return table(rows)


def summary(values: dict[str, Any]) -> str:
    def kept(name: str) -> str:
        shares = (values[f"{name}, {task}"]["accuracy"] / values[f"teacher, {task}"]["accuracy"] for task in LABELS)
        return " and ".join(f"{share:.1%}" for share in shares)

    taken, size = values[SPEED], values["student"]["parameters"] / values["teacher"]["parameters"]
    return (
        f"The student keeps {kept('student')} of its teacher's accuracy ({', '.join(LABELS)}) at {size:.1%} of its "
        f"parameters and {taken['teacher'] / taken['student']:.2f} times its speed; the control "
        f"reaches {kept('control')} of it, untrained weights {kept('untrained')}."
    )


def main() -> None:
    parser = Parser("distilbert", __doc__, small="a twentieth of the training", seeds=False)
    args = parser.parse_args()
    scale = 20 if args.small else 1
    settings = {
        "FLOPs": {name: flops / scale for name, (_, flops) in MODELS.items()}, "family": FAMILY, "d_model": D_MODEL,
        "mask rate": MASK_RATE, "labels": LABELS, "epochs": 1 if args.small else EPOCHS, "finetuning": FINETUNE,
    }  # fmt: skip
    results, _ = parser.results(args, settings)
    for name in MODELS:
        results.get(name, lambda name=name: raised(name, args.small))
        for task in LABELS:
            results.get(f"{name}, {task}", lambda name=name, task=task: scored(name, task, args.small))
    results.get(SPEED, lambda: speeds(args.small))
    print("\n" + model_table(results.values) + "\n")
    require_all(results)
    print(summary(results.values) + "\n\n" + cost_of(results))


if __name__ == "__main__":
    run(main)
