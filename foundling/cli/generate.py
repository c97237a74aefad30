# SPDX-License-Identifier: Apache-2.0
"""Continue a prompt."""

from __future__ import annotations

import argparse
import sys
from typing import Any

EXAMPLES = [
    'foundling generate runs/notes --prompt "def main("',
    'foundling generate runs/notes --prompt "Dear" --temperature 0 --max-tokens 50 --json',
]


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dir", help="model directory")
    parser.add_argument("--prompt", default="", help="text to continue (default: none, so a new document)")
    parser.add_argument(
        "--max-tokens",
        type=int,
        default=None,
        help="at most this many tokens (default: 100, less where the model reads less)",
    )
    parser.add_argument("--n", type=int, default=1, help="how many answers (default 1)")
    sampling(parser)


def sampling(parser: argparse.ArgumentParser) -> None:
    """Options shared with chat; left out, the model's own generation_config.json decides."""
    parser.add_argument("--temperature", type=float, help="0 is greedy")
    parser.add_argument("--top-k", type=int, help="0 is off")
    parser.add_argument("--top-p", type=float, help="1 is off")
    parser.add_argument("--seed", type=int, default=0)


def run(args: argparse.Namespace) -> dict[str, Any]:
    from foundling.decode.text import Writer
    from foundling.errors import GenerationError

    if args.n < 1:
        raise GenerationError(f"--n is {args.n}; expected at least 1")
    writer = Writer.load(args.dir, temperature=args.temperature, top_k=args.top_k, top_p=args.top_p)
    answers = writer.write(args.prompt, n=args.n, max_tokens=args.max_tokens, seed=args.seed)
    if not args.json:
        for number, answer in enumerate(answers):
            if args.n > 1:
                print(f"--- {number + 1}")
            print(args.prompt + answer["text"])
        sys.stdout.flush()
    return {"model_dir": args.dir, "prompt": args.prompt, "answers": answers}
