# SPDX-License-Identifier: Apache-2.0
"""Is the default learning rate the right one at every width? Loss over a sweep of rates, with the transfer between
widths (blocks/init.adam_scale) and without.

python -m benchmarks.sweep [--corpus stdlib] [--tokens 2e5] [--sizes 64x2,128x4,256x4] [--picture FILE]

Both learning rates are multiplied by the same factor; 1 is the default. The loss depends on no clock, so several runs
go on at once, with one thread each.
"""

import argparse
import itertools
import json
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from typing import Any

from benchmarks.learning import Setting, TokenizedCorpus, rates, run, without_transfer
from foundling.runtime.device import available_threads

FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)


def measure(corpus: str, tokens: float, seed: int, size: str, transfer: bool, factor: float) -> float:
    d_model, n_layers = map(int, size.split("x"))
    with nullcontext() if transfer else without_transfer():
        result = run(TokenizedCorpus(corpus), d_model, n_layers, tokens, seed, 1, Setting(optim=rates(factor)))
    return result["bits_per_byte"]


def draw(losses_of: dict[tuple[str, bool], dict[float, float]], file: str) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6))
    axes = figure.subplots(1, 2, sharey=True)
    for (size, transfer), losses in losses_of.items():
        axis = axes[0 if transfer else 1]
        axis.plot(list(losses), list(losses.values()), marker="o", label=size)
        axis.set(xscale="log", xlabel="times the default learning rates")
        axis.set_xticks(list(losses), [f"{factor:g}" for factor in losses])
        axis.minorticks_off()
        axis.set_title("with transfer between widths" if transfer else "one rate for all widths", fontsize=10)
    axes[0].set_ylabel("held-out bits per byte")
    axes[0].legend(frameon=False)
    figure.savefig(file, dpi=110, bbox_inches="tight")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--corpus", default="stdlib")
    parser.add_argument("--tokens", type=float, default=2e5)
    parser.add_argument("--sizes", default="64x2,128x4,256x4")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--picture")
    args = parser.parse_args()
    TokenizedCorpus(args.corpus)  # written before several processes would write it
    cases: list[Any] = list(itertools.product(args.sizes.split(",")[::-1], (True, False), FACTORS))
    with ProcessPoolExecutor(available_threads()) as pool:
        futures = [pool.submit(measure, args.corpus, args.tokens, args.seed, *case) for case in cases]
        losses_of: dict[tuple[str, bool], dict[float, float]] = {}
        for (size, transfer, factor), future in zip(cases, futures, strict=True):
            losses = losses_of.setdefault((size, transfer), {})
            losses[factor] = future.result()
            if len(losses) == len(FACTORS):
                excess = round(losses[1.0] / min(losses.values()) - 1, 4)
                line = {"size": size, "transfer": transfer, "losses": losses, "default_over_best": excess}
                print(json.dumps(line), flush=True)
    if args.picture:
        draw(losses_of, args.picture)


if __name__ == "__main__":
    main()
