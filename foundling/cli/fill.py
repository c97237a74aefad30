# SPDX-License-Identifier: Apache-2.0
"""Fill the gaps in a text with an encoder (fill-mask)."""

from __future__ import annotations

import argparse
from typing import Any

from foundling.cli.stdio import say, say_text

EXAMPLES = [
    'foundling fill bert-base-uncased "The capital of France is ___."',
    'foundling fill bert-base-uncased "___ is the capital of ___." -n 3 --json',
]


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dir", help="model directory of an encoder (BERT, RoBERTa …), or hf://ORG/NAME[@REVISION]")
    parser.add_argument("text", help="text with a gap for each missing token (a word, or a piece of one)")
    parser.add_argument("-n", type=int, default=5, metavar="N", help="predictions to print for each gap (default 5)")
    parser.add_argument(
        "--gap", default="___", help="text that marks a gap (default ___; the mask token of the model works too)"
    )
    parser.add_argument("--base-model", metavar="DIR", help="of an adapter's directory: where its base is now")


def run(args: argparse.Namespace) -> dict[str, Any]:
    from foundling.decode.fill import MaskFiller

    filled = MaskFiller.load(args.dir, base=args.base_model).fill(args.text, gap=args.gap, n=args.n)
    if not args.json:
        say_text(filled["text"])
        for number, best in enumerate(filled["gaps"], 1):
            say(f"  gap {number}: " + ", ".join(f"{word['token']!r} {word['probability']:.1%}" for word in best))
    return {"model_dir": args.dir, **filled}
