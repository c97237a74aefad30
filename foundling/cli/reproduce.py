# SPDX-License-Identifier: Apache-2.0
"""Train a model again from the recipe in its directory and compare the weights bit for bit."""

from __future__ import annotations

import argparse
from typing import Any

EXAMPLES = ["foundling reproduce runs/notes", "foundling reproduce runs/notes --data moved/notes --out runs/again"]


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dir", help="model directory, or hf://ORG/NAME[@REVISION]")
    parser.add_argument("--data", help="where the data is now, if it has moved; its content must be unchanged")
    parser.add_argument(
        "--parent", action="append", default=[], metavar="DIR",
        help="where a model is now that it was trained from (--from, --teacher), if it has moved; may be repeated",
    )  # fmt: skip
    parser.add_argument("--out", help="directory for the second model (default: DIR-again)")


def run(args: argparse.Namespace) -> dict[str, Any]:
    from foundling.cli.common import clock, progress_for

    progress, timer = progress_for(args), clock()
    from foundling.recipes.kinds import reproduce

    result = reproduce(args.dir, data=args.data, parents=args.parent, out=args.out, progress=progress, clock=timer)
    same = "identical weights, bit for bit" if result["identical"] else "DIFFERENT weights"
    progress.line(f"{same}: {result['weights_hash'][:16]} (recorded {result['expected'][:16]})")
    return {**result, "exit_code": 0 if result["identical"] else 1}
