# SPDX-License-Identifier: Apache-2.0
"""ULMFiT and ELMo: an LSTM that has read texts of a kind tells their classes with few labels.

python -m examples.lstm_transfer [--small] [--minutes 30]

Both models are pretrained on the descriptions of Debian packages, without labels, and finetuned on 100 of 20 sections.
ULMFiT (Howard & Ruder 2018) pretrains on general text and goes on with the texts of the task; here both are one stage,
as the texts are the task's own. It has slanted triangular rates (a rise over the first steps, then a linear fall),
rates that fall by 2.6 a layer, layers that are unfrozen one by one from the top, and a text as its last state, the
largest numbers and the mean side by side; each is left out once. ELMo (Peters et al. 2018) learns a mix of its layers;
the probe reads their mean, frozen.

From scratch means random weights. They are finetuned as the pretrained ones are, and, since unfreezing and rates by
depth only hold random layers back, also all at once at four learning rates. What is measured is the accuracy on 488
held-out descriptions, each cell with one seed; its interval is ± 0.044.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import foundling
from benchmarks.corpora import WORK
from benchmarks.datasets import part
from benchmarks.finetune_labels import held_out
from benchmarks.runs import foundling_json
from examples.programs import Parser, cost_of, finetuned, require_all, run, table
from foundling.blocks.init import initialise
from foundling.recipes.finetune_plan import LEARNING_RATES
from foundling.runtime.rng import generator
from foundling.text import Tokenizer

FLOPS, FLOPS_SMALL = 1.5e12, 7.5e10
"""of pretraining"""
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
FINETUNE = ["--as", "classify", "--method", "full", "--epochs", str(EPOCHS), "--batch-size", str(ROWS)]
FINETUNE += ["--seq-len", "128"]


def pretrained(family: str, flops: float, work: Path = WORK) -> Path:
    out = work / "transfer" / (family if flops == FLOPS else f"{family}-{flops:g}")
    if not (out / "foundling.json").exists():
        shutil.rmtree(out, ignore_errors=True)
        what = ["--field", "text", "--family", family, *SIZE[family], "--flops", str(flops), "--vocab-size", "4096"]
        foundling_json("raise", part("sections", "train"), *what, "--out", out)
    return out


def random_weights(base: Path) -> Path:
    out = base.with_name(base.name + "-random")
    if not out.exists():
        model = foundling.load(base)
        initialise(model, generator("scratch", 0))
        foundling.save(model, out, tokenizer=Tokenizer.load(base))
    return out


def ulmfit(leave_out: str = "") -> list[str]:
    options: list[str] = []
    for name, flags in ULMFIT.items():
        options += WITHOUT.get(name, []) if name == leave_out else flags
    return options


def cells() -> dict[str, tuple[str, bool, list[str]]]:
    """name -> family, whether from scratch, and options of finetuning"""
    concat = ULMFIT["pooling"]
    return {
        "ULMFiT": ("lstm", False, ulmfit()),
        "ULMFiT, from scratch": ("lstm", True, ulmfit()),
        **{f"ULMFiT without {name}": ("lstm", False, ulmfit(name)) for name in ULMFIT},
        "all weights at once": ("lstm", False, ["--pool", "last"]),
        "all weights at once, concat pooling": ("lstm", False, concat),
        **{
            f"from scratch, all weights at once, concat pooling{f', {n} times the rate' if n > 1 else ''}":
            ("lstm", True, [*concat, "--learning-rate", f"{n * LEARNING_RATES['full']:g}"])
            for n in (1, 3, 10, 30)
        },
        "ELMo": ("elmo", False, []),
        "ELMo, from scratch": ("elmo", True, []),
        "ELMo, the probe alone": ("elmo", False, ["--method", "head"]),
    }  # fmt: skip


def measure(name: str, flops: float = FLOPS, work: Path = WORK, more: Sequence[str] = ()) -> dict[str, Any]:
    """`more`: options of finetuning, which win."""
    family, from_scratch, options = cells()[name]
    base = pretrained(family, flops, work)
    start = random_weights(base) if from_scratch else base
    return finetuned(start, part("sections", "train-100"), held_out("sections"), [*FINETUNE, *options, *more])


def accuracy_table(values: dict[str, Any]) -> str:
    rows = [(name, f"{values[name]['accuracy']:.3f}") for name in cells() if name in values]
    return table([("finetuning", "accuracy"), *rows])


def main() -> None:
    parser = Parser("lstm_transfer", __doc__, small="a twentieth of the pretraining", seeds=False)
    args = parser.parse_args()
    flops = FLOPS_SMALL if args.small else FLOPS
    results, _ = parser.results(args, {"pretraining FLOPs": flops, "sizes": SIZE, "finetuning": FINETUNE})
    for name in cells():
        results.get(name, lambda name=name: measure(name, flops))
    print("\n" + accuracy_table(results.values) + "\n\n" + cost_of(results))
    require_all(results)


if __name__ == "__main__":
    run(main)
