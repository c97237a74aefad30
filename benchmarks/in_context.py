# SPDX-License-Identifier: Apache-2.0
"""In-context learning: accuracy over 0, 1, 2, 4 and 8 examples in the context × size of the model.

python -m benchmarks.in_context [--sizes 8,16,32] [--steps 1000] [--items 200] [--minutes 5]

Planted: RULES functions of SYMBOLS, drawn once. A sequence draws one of them and shows nine pairs x, f(x); nothing
but the pairs says which rule it is, so that the n-th answer can be right only by reading those before it. Beside the
models stands what the best reader of the context reaches, by Bayes' rule. Models of each width train on as many steps.
That accuracy rises with examples, and with size, is asserted.

Real: SmolLM2-135M-Instruct names the section of a package by its short description, one of four; examples are others'
descriptions with their sections, and the likeliest of the four names is the answer.
"""

from __future__ import annotations

import argparse
import itertools
import math
from typing import Any

import torch

import foundling
from benchmarks.chat_task import smollm2
from benchmarks.datasets import part, read
from benchmarks.runs import DOCS, Results, causal_batch, train_model
from foundling.contracts.data import Batch
from foundling.models import family
from foundling.runtime.rng import generator
from foundling.text import Tokenizer

SYMBOLS, RULES, PAIRS, ROWS = 12, 16, 9, 64
SHOTS = (0, 1, 2, 4, 8)
SECTIONS = ("games", "python", "science", "sound")


def rules() -> torch.Tensor:
    """(RULES, SYMBOLS)"""
    draw = generator("rules", 0)
    return torch.randint(SYMBOLS, (RULES, SYMBOLS), generator=draw)


def sequences(n: int, draw: torch.Generator) -> torch.Tensor:
    """(n, 1 + 2·PAIRS): a start, then x, f(x) of different x; answers have ids of their own."""
    chosen = rules()[torch.randint(RULES, (n,), generator=draw)]
    x = torch.rand(n, SYMBOLS, generator=draw).argsort(1)[:, :PAIRS]
    pairs = torch.stack([x, SYMBOLS + chosen.gather(1, x)], -1).flatten(1)
    return torch.cat([torch.full((n, 1), 2 * SYMBOLS), pairs], 1)


class Planted:
    def __getitem__(self, n: int) -> Batch:
        rows = sequences(ROWS, generator("planted", 0, n))
        counted = torch.zeros(ROWS, rows.shape[1] - 1, dtype=torch.bool)
        counted[:, 1::2] = True
        return causal_batch(rows, counted)


@torch.inference_mode()
def planted(width: int, steps: int, layers: int = 3) -> dict[str, float]:
    config = family("llama").module.sized(2 * SYMBOLS + 1, 2 * PAIRS, width, layers) | {"n_heads": 4, "n_kv_heads": 4}
    if width // 4 % 2:
        raise SystemExit(f"width {width} is no multiple of 8, which four heads with rotary positions need")
    with torch.inference_mode(False):
        model = train_model("llama", config | {"head_dim": width // 4}, Planted(), steps)
    rows = sequences(4096, generator("held out", 0))
    answers = model.logits(model(rows[:, :-1]).hidden)[..., SYMBOLS : 2 * SYMBOLS].argmax(-1) + SYMBOLS
    right = (answers == rows[:, 1:])[:, 1::2].float().mean(0)
    return {str(n): round(float(right[n]), 4) for n in SHOTS}


def best_reader() -> dict[str, float]:
    """The likeliest answer under the rules that agree with the pairs before it."""
    rows = sequences(4096, generator("held out", 0))
    x, y = rows[:, 1::2], rows[:, 2::2] - SYMBOLS
    agree = rules()[:, x] == y  # (RULES, n, PAIRS)
    result = {}
    for n in SHOTS:
        alive = agree[:, :, :n].all(-1).float()  # (RULES, n)
        votes = torch.zeros(len(rows), SYMBOLS)
        votes.scatter_add_(1, rules()[:, x[:, n]].T, alive.T)
        result[str(n)] = round(float((votes.argmax(1) == y[:, n]).float().mean()), 4)
    return result


@torch.inference_mode()
def real(items: int) -> dict[str, dict[str, float]]:
    """Accuracy, and twice its standard error. The examples of an item are the same for every number of shots, of as
    many sections as can be."""
    model, tokenizer = foundling.load(smollm2()).eval(), Tokenizer.load(smollm2())
    names = {section: tokenizer.encode(" " + section)[0] for section in SECTIONS}
    assert len(set(names.values())) == len(names)
    pools = {s: [line(row) for row in read(part("sections", "train")) if row["label"] == s] for s in SECTIONS}
    test = [row for row in read(part("sections", "test")) if row["label"] in SECTIONS][:items]
    result = {}
    for shots in SHOTS:
        right = []
        for i, item in enumerate(test):
            examples = [f"{pools[s][2 * i + n // 4]} {s}" for n, s in enumerate([*SECTIONS, *SECTIONS][:shots])]
            order = torch.randperm(shots, generator=generator("order", 0, i)).tolist()
            prompt = "\n\n".join([f"Sections: {', '.join(SECTIONS)}", *(examples[n] for n in order), line(item)])
            logits = model.logits(model(torch.tensor([tokenizer.encode(prompt)])).hidden[:, -1:])[0, -1]
            right.append(max(SECTIONS, key=lambda s: float(logits[names[s]])) == item["label"])
        share = sum(right) / len(right)
        error = 2 * math.sqrt(share * (1 - share) / len(right))
        result[str(shots)] = {"accuracy": round(share, 4), "error": round(error, 4), "of": len(right)}
    return result


def line(row: dict[str, Any]) -> str:
    return f"Package: {row['text'].splitlines()[0][:100]}\nSection:"


def check(results: Results, sizes: list[int]) -> None:
    """Both slopes: more examples help the largest model, and size helps, over all numbers of examples."""
    largest = results.values[f"planted {sizes[-1]}"]
    assert all(largest[str(a)] < largest[str(b)] + 0.01 for a, b in itertools.pairwise(SHOTS)), largest
    assert largest["8"] > largest["0"] + 0.3, largest
    means = [sum(results.values[f"planted {size}"].values()) / len(SHOTS) for size in sizes]
    assert all(a < b + 0.01 for a, b in itertools.pairwise(means)) and means[-1] > means[0] + 0.1, means


def figure(results: Results, sizes: list[int]) -> None:
    import matplotlib.pyplot as plt

    fig, axis = plt.subplots(figsize=(6, 3.2))
    for size in sizes:
        values = results.values[f"planted {size}"]
        axis.plot(SHOTS, [values[str(n)] for n in SHOTS], marker="o", label=f"width {size}")
    axis.plot(SHOTS, [results.values["best reader"][str(n)] for n in SHOTS], "k--", label="best reader")
    axis.set(xlabel="examples in the context", ylabel="accuracy", ylim=(0, 1.02))
    axis.legend()
    fig.tight_layout()
    fig.savefig(DOCS / "in_context.svg", metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--sizes", default="8,16,32")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--items", type=int, default=200)
    parser.add_argument("--minutes", type=float, default=5)
    args = parser.parse_args()
    sizes = [int(size) for size in args.sizes.split(",")]
    results = Results("in_context", minutes=args.minutes)
    results.values["settings"] = {"steps": args.steps, "symbols": SYMBOLS, "rules": RULES}
    results.get("best reader", best_reader)
    for size in sizes:
        results.get(f"planted {size}", lambda size=size: planted(size, args.steps))
    results.get("SmolLM2, sections", lambda: real(args.items))
    if results.complete:
        figure(results, sizes)
        check(results, sizes)


if __name__ == "__main__":
    main()
