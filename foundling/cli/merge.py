# SPDX-License-Identifier: Apache-2.0
"""Merge models of one architecture into one, or an adapter into its base."""

from __future__ import annotations

import argparse
from typing import Any

from foundling.cli.stdio import say
from foundling.errors import ConfigError, render

EXAMPLES = [
    "foundling merge runs/a runs/b runs/c --out runs/soup                                 # average",
    "foundling merge runs/a runs/b --method slerp --weights 0.7,0.3 --out runs/between",
    "foundling merge runs/a runs/b --method ties --base models/base --density 0.2 --out runs/both",
    "foundling merge runs/a --method task --base models/base --weights 0.5 --out runs/half",
    "foundling merge runs/adapter --out runs/merged                                       # an adapter into its base",
]


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dirs", nargs="+", help="model directories or hf://ORG/NAME[@REVISION]; or one adapter")
    parser.add_argument("--out", required=True, help="directory to write")
    parser.add_argument(
        "--method", choices=("average", "slerp", "ties", "task"), default="average",
        help="average: mean of the weights; slerp: along the arc between two models; ties: differences from the base, "
        "trimmed, where signs agree; task: differences added to the base (default: average)",
    )  # fmt: skip
    parser.add_argument("--weights", metavar="W,W", help="one number for each model (default: equal; task has none)")
    parser.add_argument(
        "--base", metavar="DIR",
        help="ties, task: the model that the others were trained from; an adapter: its base, where that was moved",
    )  # fmt: skip
    parser.add_argument("--density", type=float, default=0.2, help="ties: share of each difference kept (default: 0.2)")


def run(args: argparse.Namespace) -> dict[str, Any]:
    from foundling.cli.common import progress_for

    if len(args.dirs) == 1 and args.method == "average":
        from foundling.weights.merged import merge_adapter

        progress_for(args).line(f"reading {args.dirs[0]}")
        done = merge_adapter(args.dirs[0], args.out, base=args.base)
    else:
        from foundling.weights.combine import CombineOptions, combine

        options = CombineOptions(args.method, _numbers(args.weights), args.density)
        progress_for(args).line(f"merging {len(args.dirs)} models by {args.method}")
        done = combine(args.dirs, args.out, options, base=args.base)
    if not args.json:
        say(f"{done['out']}: {done['family']}, merged")
        say(f"next: foundling check {render.shell(args.out)}")
    return done


def _numbers(text: str | None) -> tuple[float, ...] | None:
    try:
        return None if text is None else tuple(float(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(f"--weights is '{text}', expected numbers with commas between, such as 0.5,0.5") from None
