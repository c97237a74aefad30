# SPDX-License-Identifier: Apache-2.0
"""Compare every file of a model directory with the SHA-256 hash in its foundling.json."""

from __future__ import annotations

import argparse
from typing import Any

from foundling.cli.stdio import say
from foundling.errors import WeightsError

EXAMPLES = ["foundling check runs/notes", "foundling check runs/notes --json"]


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dir", help="model directory, or hf://ORG/NAME[@REVISION]")


def run(args: argparse.Namespace) -> dict[str, Any]:
    from foundling.weights.manifest import check

    found = check(args.dir)
    if args.json:
        return {**found, "exit_code": 0 if found["ok"] else 2}
    if not found["ok"]:
        raise WeightsError(f"{args.dir}: {'; '.join(found['problems'])}")
    say(f"{args.dir}: {found['checked'] - len(found['edited'])} files unchanged")
    if found["edited"]:
        say(f"edited or removed, and no part of the model: {', '.join(found['edited'])}")
    return {}
