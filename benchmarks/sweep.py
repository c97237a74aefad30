# SPDX-License-Identifier: Apache-2.0
"""Is the learning rate that is stated once the right one at every width? Loss over a sweep, with the transfer of widths
(blocks/init.adam_scale) and without.

python -m benchmarks.sweep [--corpus stdlib] [--tokens 2e5] [--sizes 64x2,128x4,256x4] [--picture FILE]

Both rates are multiplied by the same factor; 1 is the default that the dial takes. Losses depend on no clock, so runs
go on beside each other, one thread each.
"""

import argparse
import itertools
import json
import tempfile
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.learning import Prepared, run, without_transfer
from foundling.recipes.recipe import Recipe
from foundling.runtime.device import available_threads

WORK = Path(tempfile.gettempdir()) / "foundling-benchmarks"
FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)


def measure(corpus: str, tokens: float, seed: int, size: str, transfer: bool, factor: float) -> float:
    d_model, n_layers = map(int, size.split("x"))
    rates = {
        "learning_rate": factor * Recipe.learning_rate,
        "matrix_learning_rate": factor * Recipe.matrix_learning_rate,
    }
    with ExitStack() if transfer else without_transfer():
        return run(Prepared(corpus, WORK), d_model, n_layers, tokens, seed, 1, **rates)["bits_per_byte"]


def picture(found: dict[tuple[str, bool], dict[float, float]], file: str) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6))
    axes = figure.subplots(1, 2, sharey=True)
    for (size, transfer), losses in found.items():
        axis = axes[0 if transfer else 1]
        axis.plot(list(losses), list(losses.values()), marker="o", label=size)
        axis.set(xscale="log", xlabel="times the default learning rates")
        axis.set_xticks(list(losses), [f"{factor:g}" for factor in losses])
        axis.minorticks_off()
        axis.set_title("with transfer of widths" if transfer else "one rate for all widths", fontsize=10)
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
    Prepared(args.corpus, WORK)  # written before two processes would write it
    cases: list[Any] = list(itertools.product(args.sizes.split(",")[::-1], (True, False), FACTORS))
    with ProcessPoolExecutor(available_threads()) as pool:
        ended = [pool.submit(measure, args.corpus, args.tokens, args.seed, *case) for case in cases]
        found: dict[tuple[str, bool], dict[float, float]] = {}
        for (size, transfer, factor), future in zip(cases, ended, strict=True):
            losses = found.setdefault((size, transfer), {})
            losses[factor] = future.result()
            if len(losses) == len(FACTORS):
                over = round(losses[1.0] / min(losses.values()) - 1, 4)
                line = {"size": size, "transfer": transfer, "losses": losses, "default_over_best": over}
                print(json.dumps(line), flush=True)
    if args.picture:
        picture(found, args.picture)


if __name__ == "__main__":
    main()
