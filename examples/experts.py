# SPDX-License-Identifier: Apache-2.0
"""Mixture of experts against dense models at equal training FLOPs: where it crosses, or that it does not.

python -m examples.experts [--small] [--seeds 3] [--minutes 30] [--device cuda]

Both read the same bytes of the Python library. A mixture has as many multiplications a token as the dense model beside
it (two of eight experts, each half as wide as the dense feed-forward layer), and some four times the parameters of its
feed-forward layers; its router's loss is part of its training. With the budget either the model grows, so that it reads
about as many tokens for each of its weights, or one small size reads more and more. On a GPU the growing models go on
to larger budgets, in a file of their own.
"""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from benchmarks.learning import Setting, TokenizedCorpus
from benchmarks.learning import run as train_and_score
from benchmarks.runs import Results
from examples.programs import Parser, cost_of, measured, require_all, run, save_figure, seeds_of, table
from foundling.models import build, count_parameters, family
from foundling.runtime.device import available_threads

GROWING = {"2e11": (64, 2), "8e11": (96, 3), "3.2e12": (128, 4)}
"""FLOPs -> width and depth"""
LARGER = {"1.3e13": (192, 5), "5.1e13": (256, 6), "2e14": (384, 8)}
"""for a GPU"""
FIXED = {"8e11": (64, 2), "3.2e12": (64, 2)}
"""one size, beside the smallest that grows"""
VOCAB, HELD_OUT = 2048, 200_000
DENSE, MIXTURE = "llama", "mixtral"

Grid = list[tuple[str, tuple[int, int]]]


def settings(d_model: int, n_layers: int) -> dict[str, Setting]:
    """Of both, with as many products a token: the router's are the mixture's only extra."""
    dense = family(DENSE).module.sized(VOCAB, 256, d_model, n_layers)
    shared = {name: dense[name] for name in ("n_heads", "n_kv_heads", "head_dim")}
    mixture = shared | {"n_experts": 8, "n_active": 2, "d_expert": dense["d_ff"] // 2}
    return {DENSE: Setting(family=DENSE, vocab_size=VOCAB), MIXTURE: Setting(MIXTURE, mixture, VOCAB)}


def measure(name: str, budget: str, size: tuple[int, int], seed: int, device: str) -> dict[str, Any]:
    setting, data = settings(*size)[name], TokenizedCorpus("stdlib", VOCAB, HELD_OUT)
    tokens = float(budget) / setting.flops_per_token(*size)
    result = train_and_score(data, *size, tokens, seed, available_threads(), setting, device)
    counted = count_parameters(build(name, device="meta", **setting.config(*size)))
    return {
        "parameters": counted["total"], "active": counted["active"], "tokens": result["tokens"],
        "bits per byte": result["bits_per_byte"],
    }  # fmt: skip


def key(name: str, budget: str, size: tuple[int, int], seed: int) -> str:
    return f"{name} {size[0]}x{size[1]}, {budget}, seed {seed}"


def compared(results: Results, grid: Grid, seeds: range, device: str) -> list[dict[str, Any]]:
    """A row for each budget and size of which both models have all seeds."""
    rows = []
    for budget, size in grid:
        cells = {
            name: [
                results.get(
                    key(name, budget, size, seed),
                    lambda name=name, budget=budget, size=size, seed=seed: measured(
                        measure, name, budget, size, seed, device
                    ),
                )
                for seed in seeds
            ]
            for name in (DENSE, MIXTURE)
        }
        if all(all(column) for column in cells.values()):
            bits = {name: [cell["bits per byte"] for cell in column] for name, column in cells.items()}
            apart = [b - a for a, b in zip(bits[DENSE], bits[MIXTURE], strict=True)]
            rows.append({"FLOPs": budget, "size": size, "cells": cells, "bits": bits, "apart": apart})
    return rows


def printed(rows: list[dict[str, Any]]) -> str:
    head = ("FLOPs", "size", "tokens", "parameters, dense and mixture", "dense", "mixture", "mixture − dense by seed")
    lines: list[tuple[Any, ...]] = [head]
    for row in rows:
        dense, mixture = (row["cells"][name][0] for name in (DENSE, MIXTURE))
        lines.append((
            row["FLOPs"], "×".join(map(str, row["size"])), f"{dense['tokens'] / 1e6:.2f} M",
            f"{dense['parameters'] / 1e6:.2f} M, {mixture['parameters'] / 1e6:.2f} M",
            *(f"{statistics.fmean(row['bits'][name]):.4f}" for name in (DENSE, MIXTURE)),
            ", ".join(f"{value:+.4f}" for value in row["apart"]),
        ))  # fmt: skip
    return table(lines)


def draw(parts: dict[str, list[dict[str, Any]]], file: Path) -> None:
    import matplotlib.pyplot as plt

    fig, axis = plt.subplots(figsize=(5, 3.2))
    for colour, (name, rows) in enumerate(parts.items()):
        points = [(float(row["FLOPs"]), value) for row in rows for value in row["apart"]]
        axis.plot(*zip(*points, strict=True), "o", color=f"C{colour}", label=name, alpha=0.7)
        axis.plot(*zip(*((float(r["FLOPs"]), statistics.fmean(r["apart"])) for r in rows), strict=True), f"C{colour}")
    axis.axhline(0, color="0.5", lw=0.8)
    axis.set(xscale="log", xlabel="training FLOPs", ylabel="bits per byte, mixture − dense")
    axis.legend(fontsize=8)
    save_figure(fig, file)


def grids(device: str, small: bool = False) -> dict[str, Grid]:
    growing = list(GROWING.items())
    if small:
        return {"models that grow": growing[:1]}
    if device == "cuda":
        return {"models that grow": [*growing, *LARGER.items()]}
    return {"models that grow": growing, "one size, 64 × 2": [growing[0], *FIXED.items()]}


def main() -> None:
    parser = Parser("experts", __doc__, small="the smallest models and budget with one seed")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    args = parser.parse_args()
    results, figure = parser.results(args, {"vocabulary": VOCAB, "corpus": "stdlib"})
    seeds = seeds_of(args, 1 if args.small else 3)
    rows = {name: compared(results, grid, seeds, args.device) for name, grid in grids(args.device, args.small).items()}
    for name, of in rows.items():
        print(f"\n{name}\n\n{printed(of)}")
    draw({name: of for name, of in rows.items() if of}, figure)
    print("\n" + cost_of(results))
    require_all(results)


if __name__ == "__main__":
    run(main)
