# SPDX-License-Identifier: Apache-2.0
"""ULMFiT and ELMo: an LSTM that has read texts of a kind tells their classes with few labels.

python -m examples.lstm_transfer [--small] [--minutes 30]

Both models are pretrained on the descriptions of Debian packages, without labels, and finetuned on 100 of 20 sections.
ULMFiT (Howard & Ruder 2018) has slanted triangular rates (a rise over the first steps, then a linear fall), rates that
fall by 2.6 a layer, layers that are unfrozen one by one from the top, and a text as its last state, the largest numbers
and the mean side by side; each is left out once. ELMo (Peters et al. 2018) learns a mix of its layers; the probe reads
their mean, frozen. From scratch means the same finetuning of random weights. What is measured is the accuracy on 488
held-out descriptions, each cell with one seed; its interval is ± 0.044.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import Any

import foundling
from benchmarks.corpora import WORK
from benchmarks.datasets import part
from benchmarks.finetune_labels import held_out
from benchmarks.runs import DOCS, Results, foundling_json
from foundling.blocks.init import initialise
from foundling.runtime.rng import generator
from foundling.text import Tokenizer

FLOPS = {"lstm": 1.5e12, "elmo": 1.5e12}
SIZE = {
    "lstm": ["--d-model", "256", "--n-layers", "3", "--model.d-hidden", "256", "--model.dropout", "0.1"],
    "elmo": ["--d-model", "256", "--n-layers", "2"],
}
EPOCHS, ROWS = 20, 8
STEPS = EPOCHS * -(-80 // ROWS)  # a fifth of the examples chooses the best weights
"""of finetuning"""
ULMFIT = {
    "triangular": ["--warmup-steps", str(STEPS // 10), "--decay-share", "1"],
    "discriminative": ["--layer-decay", str(round(1 / 2.6, 3))],
    "unfreezing": ["--unfreeze-every", str(STEPS // 20)],
    "pooling": ["--pool", "concat"],
}
WITHOUT = {"triangular": ["--warmup-steps", "0", "--decay-share", "0.01"], "pooling": ["--pool", "last"]}
"""what stands in its place where a part is left out"""


def pretrained(family: str, small: bool) -> tuple[Path, dict[str, Any]]:
    out = WORK / "transfer" / (family + ("-small" if small else ""))
    if not (out / "foundling.json").exists():
        shutil.rmtree(out, ignore_errors=True)
        budget = ["--flops", str(FLOPS[family] / (20 if small else 1)), "--vocab-size", "4096"]
        foundling_json(
            "raise",
            part("sections", "train"),
            "--field",
            "text",
            "--family",
            family,
            *SIZE[family],
            *budget,
            "--out",
            out,
        )
    record = foundling_json("inspect", out)
    return out, record


def random_weights(base: Path) -> Path:
    out = base.with_name(base.name + "-random")
    if not out.exists():
        model = foundling.load(base)
        initialise(model, generator("scratch", 0))
        foundling.save(model, out, tokenizer=Tokenizer.load(base))
    return out


def finetuned(base: Path, options: list[str], name: str) -> dict[str, Any]:
    out = WORK / "transfer" / f"run-{name}"
    shutil.rmtree(out, ignore_errors=True)
    common = [
        "--as",
        "classify",
        "--method",
        "full",
        "--epochs",
        str(EPOCHS),
        "--batch-size",
        str(ROWS),
        "--seq-len",
        "128",
    ]
    result = foundling_json(
        "finetune",
        base,
        part("sections", "train-100"),
        *common,
        *options,
        "--held-out",
        held_out("sections"),
        "--out",
        out,
    )
    shutil.rmtree(out, ignore_errors=True)
    actual = result["actual"]
    return {
        "accuracy": actual[result["metric"]], "minutes": round(actual["seconds"] / 60, 2),
        "peak GiB": round(actual["peak_bytes"] / 2**30, 3),
    }  # fmt: skip


def ulmfit(leave_out: str = "") -> list[str]:
    options: list[str] = []
    for name, flags in ULMFIT.items():
        options += WITHOUT.get(name, []) if name == leave_out else flags
    return options


def cells(small: bool) -> dict[str, Any]:
    """name -> what measures it"""
    lstm, elmo = (lambda family=family: pretrained(family, small)[0] for family in ("lstm", "elmo"))
    made: dict[str, Any] = {
        "ULMFiT": lambda: finetuned(lstm(), ulmfit(), "ulmfit"),
        "ULMFiT, from scratch": lambda: finetuned(random_weights(lstm()), ulmfit(), "scratch"),
    }
    for name in ULMFIT:
        made[f"ULMFiT without {name}"] = lambda name=name: finetuned(lstm(), ulmfit(name), name)
    made["all weights at once"] = lambda: finetuned(lstm(), ["--pool", "last"], "plain")
    made["ELMo"] = lambda: finetuned(elmo(), [], "elmo")
    made["ELMo, from scratch"] = lambda: finetuned(random_weights(elmo()), [], "elmo-scratch")
    made["ELMo, the probe alone"] = lambda: finetuned(elmo(), ["--method", "head"], "elmo-head")
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="a twentieth of the pretraining")
    parser.add_argument("--minutes", type=float, default=30)
    args = parser.parse_args()
    file = WORK / "transfer-small.json" if args.small else DOCS / "results" / "lstm_transfer.json"
    results = Results("lstm_transfer", file, minutes=args.minutes)
    for name, measure in cells(args.small).items():
        results.get(name, measure)
    for name, cell in results.values.items():
        if isinstance(cell, dict) and "accuracy" in cell:
            print(f"{name:32} {cell['accuracy']:.3f}   {cell['minutes']:.1f} min")


if __name__ == "__main__":
    main()
