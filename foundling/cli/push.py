# SPDX-License-Identifier: Apache-2.0
"""Upload a model directory to the Hugging Face hub: the files that its foundling.json lists, as one commit."""

from __future__ import annotations

import argparse
from typing import Any

from foundling.cli.stdio import say

EXAMPLES = [
    "foundling push runs/notes my-org/notes",
    "foundling push runs/notes my-org/notes --private",
    'foundling push runs/notes my-org/notes --revision v2 --message "Ten more minutes of training"',
    "foundling chat hf://my-org/notes            # anywhere, then",
]


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dir", help="model directory; `foundling check` must pass it")
    parser.add_argument("repository", help="ORG/NAME on the hub; made where it is missing")
    parser.add_argument("--private", action="store_true", help="make the repository private, where it is made")
    parser.add_argument("--revision", metavar="BRANCH", help="branch to commit to; made where missing (default main)")
    parser.add_argument("--message", metavar="TEXT", help="message of the commit")


def run(args: argparse.Namespace) -> dict[str, Any]:
    from foundling.weights.push import push

    done = push(args.dir, args.repository, private=args.private, revision=args.revision, message=args.message)
    if not args.json:
        removed = f"; removed {', '.join(done['removed'])}" if done["removed"] else ""
        say(f"{done['repository']}: {len(done['files'])} files, {done['bytes'] / 1e6:,.1f} MB{removed}")
        say(f"commit: {done['commit']}")
        say(f"use it: {done['place']}")
    return done
