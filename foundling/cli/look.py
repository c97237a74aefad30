# SPDX-License-Identifier: Apache-2.0
"""Look inside a model while it reads a text: attention maps, logit lens, and what adds to the next token."""

from __future__ import annotations

import argparse
from typing import Any

from foundling.cli.stdio import note, say

EXAMPLES = [
    'foundling look runs/notes "the cat sat on the"',
    'foundling look runs/notes "the cat sat on the" --layer 3 --out cat.html',
    'foundling look runs/encoder "the ___ of the text" --json',
]
DEFAULT_OUT = "look.html"
SHOWN_ROWS, SHOWN_PARTS = 8, 6
"""of the lens, the last one besides, and of the contributions; the page has more"""


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dir", help="model or adapter directory, or hf://ORG/NAME[@REVISION]")
    parser.add_argument("text", help="the text to read, at most 256 tokens; ___ is a gap, for an encoder")
    parser.add_argument("--out", default=DEFAULT_OUT, metavar="FILE", help=f"the page (default {DEFAULT_OUT})")
    parser.add_argument("--layer", type=int, metavar="N", help="keep the heads of one layer (default: all, from 0)")
    parser.add_argument("--base-model", metavar="DIR", help="of an adapter's directory: where its base is now")


def run(args: argparse.Namespace) -> dict[str, Any]:
    from foundling.interpret.look import look
    from foundling.report.look import striking_heads, write_look

    record = look(args.dir, args.text, layer=args.layer, base=args.base_model)
    write_look(record, args.out)
    for text in record.notes:
        note(f"note: {text}")
    if not args.json:
        say(f"{record.model} ({record.family}), {len(record.tokens)} tokens")
        say(f"predicted {record.place}: {record.predicted!r}")
        n, step = len(record.lens), max(1, len(record.lens) // SHOWN_ROWS)
        for row in (record.lens[at] for at in sorted({*range(0, n, step), *range(n - 1, n)} - {-1})):
            best = "  ".join(f"{token!r} {p:.0%}" for token, p in row.best[:3])
            say(f"  {row.name:12} rank {row.rank:>6,}  {best}")
        for name, value in record.contributions[:SHOWN_PARTS]:
            say(f"  {value:+8.2f}  {name}")
        for head in striking_heads(record.heads):
            kinds = ", ".join(f"{kind} {weight:.2f}" for kind, weight in head.kinds.items())
            say(f"  layer {head.layer}, head {head.head}: {kinds}")
        say(f"page: {args.out}")
        return {}  # the weights as JSON take more memory than all else: only for who asks
    return record.as_json() | {"page": args.out}
