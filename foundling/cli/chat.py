# SPDX-License-Identifier: Apache-2.0
"""Continue text interactively, line by line. A base model continues your text; it does not answer questions."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from foundling.cli.generate import sampling, writer_for

EXAMPLES = ["foundling chat runs/notes", 'echo "import os" | foundling chat runs/notes --json']


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dir", help="model directory")
    parser.add_argument(
        "--max-tokens", type=int, default=None, help="maximum number of new tokens a line (default 100)"
    )
    sampling(parser)


def run(args: argparse.Namespace) -> dict[str, Any]:
    writer = writer_for(args)
    console = sys.stderr
    print(
        "This is a base model: it continues your text and does not answer questions. Press Ctrl-D to exit.",
        file=console,
    )
    turns: list[dict[str, Any]] = []
    while True:
        if sys.stdin.isatty():
            print("> ", end="", file=console, flush=True)
        line = sys.stdin.readline()
        if not line:
            break
        prompt = line.rstrip("\n")
        stream = None if args.json else lambda text: print(text, end="", flush=True)
        if stream:
            stream(prompt)
        (answer,) = writer.generate(
            prompt, max_tokens=args.max_tokens, seed=args.seed + len(turns), stop_strings=args.stop, on_text=stream
        )
        if stream:
            print(flush=True)
        turns.append({"prompt": prompt, **answer})
    return {"model_dir": args.dir, "kind": "base model", "turns": turns}
