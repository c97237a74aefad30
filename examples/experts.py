# SPDX-License-Identifier: Apache-2.0
"""Mixture of experts against dense models at equal training FLOPs: where it crosses, or that it does not.

python -m examples.experts [--small] [--minutes 30] [--threads 1]

Both read the same bytes of the Python library. A mixture has as many multiplications a token as the dense model beside
it (two of eight experts, each half as wide as the dense feed-forward layer), and some four times the parameters of its
feed-forward layers; its router's loss is part of its training. Three budgets, one size of model each, three seeds.
"""

from __future__ import annotations

import argparse
import statistics
from typing import Any

from benchmarks.learning import Setting, TokenizedCorpus, run
from benchmarks.runs import DOCS, Results
from foundling.models import build, count_parameters, family
from foundling.runtime.device import available_threads

BUDGETS = {"2e11": (64, 2), "8e11": (96, 3), "3.2e12": (128, 4)}
"""FLOPs -> width and depth"""
VOCAB, SEEDS = 2048, (0, 1, 2)
DENSE, MIXTURE = "llama", "mixtral"


def settings(d_model: int, n_layers: int) -> dict[str, Setting]:
    """Of both, with as many products a token: the router's are the mixture's only extra."""
    dense = family(DENSE).module.sized(VOCAB, 256, d_model, n_layers)
    shared = {name: dense[name] for name in ("n_heads", "n_kv_heads", "head_dim")}
    mixture = shared | {"n_experts": 8, "n_active": 2, "d_expert": dense["d_ff"] // 2}
    return {DENSE: Setting(family=DENSE, vocab_size=VOCAB), MIXTURE: Setting(MIXTURE, mixture, VOCAB)}


def measure(data: TokenizedCorpus, name: str, budget: str, seed: int, threads: int) -> dict[str, Any]:
    size = BUDGETS[budget]
    setting = settings(*size)[name]
    result = run(data, *size, float(budget) / setting.flops_per_token(*size), seed, threads, setting)
    counted = count_parameters(build(name, device="meta", **setting.config(*size)))
    return {
        "parameters": counted["total"], "active": counted["active"], "tokens": result["tokens"],
        "bits per byte": result["bits_per_byte"], "seconds": result["seconds"],
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="the smallest budget with one seed")
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--threads", type=int, default=available_threads())
    args = parser.parse_args()
    results, data = Results("experts", minutes=args.minutes), TokenizedCorpus("stdlib", VOCAB, 200_000)
    for budget in list(BUDGETS)[: 1 if args.small else None]:
        for seed in SEEDS[: 1 if args.small else None]:
            for name in (DENSE, MIXTURE):
                results.get(
                    f"{name} {budget} {seed}",
                    lambda name=name, budget=budget, seed=seed: measure(data, name, budget, seed, args.threads),
                )
    print(f"{'FLOPs':>8}  {'dense':>8}  {'mixture':>8}  mixture − dense, seed by seed")
    for budget in BUDGETS:
        cells = [[results.values.get(f"{name} {budget} {seed}") for name in (DENSE, MIXTURE)] for seed in SEEDS]
        pairs = [[cell["bits per byte"] for cell in row] for row in cells if all(row)]
        if pairs:
            means = [statistics.fmean(column) for column in zip(*pairs, strict=True)]
            apart = ", ".join(f"{b - a:+.4f}" for a, b in pairs)
            print(f"{budget:>8}  {means[0]:8.4f}  {means[1]:8.4f}  {apart}")
    if not args.small:
        figure(results.values)


def figure(values: dict[str, Any]) -> None:
    import matplotlib.pyplot as plt

    fig, axis = plt.subplots(figsize=(4.5, 3.2))
    for name, label in ((DENSE, "dense"), (MIXTURE, "mixture of experts")):
        points = [
            (float(b), cell["bits per byte"])
            for b in BUDGETS
            for seed in SEEDS
            if (cell := values.get(f"{name} {b} {seed}"))
        ]
        if points:
            axis.plot(*zip(*points, strict=True), "o", label=label)
    axis.set(xscale="log", xlabel="training FLOPs", ylabel="bits per byte")
    axis.legend()
    fig.tight_layout()
    fig.savefig(DOCS / "experts.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
