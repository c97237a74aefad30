# SPDX-License-Identifier: Apache-2.0
"""Is the learning rate that is stated once the right one at every width? Loss over a sweep, with the transfer of widths
(blocks/init.adam_scale) and without.

python -m benchmarks.sweep [--corpus stdlib] [--tokens 3e5] [--sizes 64x2,128x4,256x4] [--threads 2] [--out FILE]

Both rates are multiplied by the same factor; 1 is the default that the dial takes.
"""

import argparse
import json
import tempfile
from contextlib import ExitStack
from pathlib import Path

from benchmarks.learning import Prepared, run, without_transfer
from foundling.recipes.recipe import Recipe

FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--corpus", default="stdlib")
    parser.add_argument("--tokens", type=float, default=3e5)
    parser.add_argument("--sizes", default="64x2,128x4,256x4")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out")
    args = parser.parse_args()
    data = Prepared(args.corpus, Path(tempfile.gettempdir()) / "foundling-benchmarks")
    for transfer in (True, False):
        for size in args.sizes.split(","):
            d_model, n_layers = map(int, size.split("x"))
            losses = {}
            for factor in FACTORS:
                rates = {
                    "learning_rate": factor * Recipe.learning_rate,
                    "matrix_learning_rate": factor * Recipe.matrix_learning_rate,
                }
                with ExitStack() if transfer else without_transfer():
                    found = run(data, d_model, n_layers, args.tokens, args.seed, args.threads, **rates)
                losses[factor] = found["bits_per_byte"]
            best = min(losses.values())
            line = {"size": size, "transfer": transfer, "losses": losses, "default_over_best": losses[1.0] / best - 1}
            print(json.dumps(line), flush=True)
            if args.out:
                with open(args.out, "a", encoding="utf-8") as file:
                    file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
