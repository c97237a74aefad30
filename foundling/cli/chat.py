# SPDX-License-Identifier: Apache-2.0
"""Talk to a model. A base model continues your text, and says so."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from foundling.cli.generate import sampling, writer_for

EXAMPLES = ["foundling chat runs/notes", 'echo "import os" | foundling chat runs/notes --json']


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dir", help="model directory")
    parser.add_argument("--max-tokens", type=int, default=None)
    sampling(parser)


def run(args: argparse.Namespace) -> dict[str, Any]:
    writer = writer_for(args)
    say = sys.stderr
    print("This is a base model: it has read text and continues yours, it does not answer. Ctrl-D ends.", file=say)
    turns: list[dict[str, Any]] = []
    while True:
        if sys.stdin.isatty():
            print("> ", end="", file=say, flush=True)
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
