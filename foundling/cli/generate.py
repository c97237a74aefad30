# SPDX-License-Identifier: Apache-2.0
"""Continue a prompt."""

from __future__ import annotations

import argparse
import sys
from typing import Any

EXAMPLES = [
    'foundling generate runs/notes --prompt "def main("',
    'foundling generate runs/notes --prompt "Dear" --temperature 0 --max-tokens 50 --json',
    'foundling generate runs/notes --prompt "Dear" --stop "." --n 4 --logprobs 3 --json',
    'foundling generate runs/notes --prompt "Dear" --weights int8',
    'foundling generate runs/code --prompt "def area(r):" --suffix "return a"',
]


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dir", help="model directory")
    parser.add_argument("--prompt", default="", help="text to continue (default: none, so a new document)")
    parser.add_argument(
        "--suffix", help="fill in what stands between the prompt and this (of a model raised with --fim-rate)"
    )
    parser.add_argument(
        "--max-tokens",
        type=int,
        default=None,
        help="at most this many tokens (default: 100, less where the model reads less)",
    )
    parser.add_argument("--n", type=int, default=1, help="how many answers (default 1)")
    parser.add_argument(
        "--logprobs", type=int, help="with --json: each token's log-probability and this many most likely tokens"
    )
    sampling(parser)


def sampling(parser: argparse.ArgumentParser) -> None:
    """Options shared with chat; left out, the model's own generation_config.json decides."""
    parser.add_argument("--temperature", type=float, help="0 is greedy")
    parser.add_argument("--top-k", type=int, help="only the k likeliest tokens; 0 is off")
    parser.add_argument("--top-p", type=float, help="only the likeliest that together reach p; 1 is off")
    parser.add_argument("--min-p", type=float, help="only those at least p times as likely as the likeliest; 0 is off")
    parser.add_argument("--repetition-penalty", type=float, help="above 1 says less often what was said; 1 is off")
    parser.add_argument("--stop", action="append", default=[], metavar="TEXT", help="end before this text; repeatable")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--weights",
        choices=["float32", "bfloat16", "int8", "int4"],
        help="pack the weights so for native code, which is faster for models of some size; "
        "compiled once (default: as stored, by torch)",
    )


def writer_for(args: argparse.Namespace) -> Any:
    from foundling.decode.text import TextGenerator

    names = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
    return TextGenerator.load(args.dir, weights=args.weights, **{name: getattr(args, name) for name in names})


def run(args: argparse.Namespace) -> dict[str, Any]:
    from foundling.errors import GenerationError

    if args.n < 1:
        raise GenerationError(f"--n is {args.n}; expected at least 1")
    answers = writer_for(args).generate(
        args.prompt,
        suffix=args.suffix,
        n=args.n,
        max_tokens=args.max_tokens,
        seed=args.seed,
        stop_strings=args.stop,
        logprobs=args.logprobs,
    )
    if not args.json:
        for number, answer in enumerate(answers):
            if args.n > 1:
                print(f"--- {number + 1}")
            print(args.prompt + answer["text"] + (args.suffix or ""))
        sys.stdout.flush()
    return {"model_dir": args.dir, "prompt": args.prompt, "answers": answers}
