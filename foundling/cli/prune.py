# SPDX-License-Identifier: Apache-2.0
"""Set the smallest weights of a model to zero; `foundling raise --from` of the result trains the others on."""

from __future__ import annotations

import argparse
from typing import Any

from foundling.cli.stdio import say
from foundling.errors import ConfigError

EXAMPLES = [
    "foundling prune runs/notes --share 0.5 --out runs/half",
    "foundling prune runs/notes --share 2:4 --out runs/two-of-four",
    "foundling prune runs/notes --share 0.8 --scope global --out runs/fifth --json",
]


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dir", help="model directory, or hf://ORG/NAME[@REVISION]")
    parser.add_argument("--out", required=True, help="directory to write")
    parser.add_argument("--share", default="0.5", help="what becomes zero: a share, or 2:4 (default: 0.5)")
    parser.add_argument(
        "--scope", choices=("matrix", "global"), default="matrix",
        help="matrix: the share is of each matrix; global: of all together (default: matrix)",
    )  # fmt: skip
    parser.add_argument("--pattern", default="*layers.*", help="names of the projections (default: '*layers.*')")


def run(args: argparse.Namespace) -> dict[str, Any]:
    from foundling.adapt.prune import PruneOptions, finish, prune, stored_bytes, unsupported_reason
    from foundling.config import to_dict
    from foundling.runtime.hub import place_name
    from foundling.weights.convert.hugging_face import read_model, save_changed
    from foundling.weights.directory import weights_hash

    structure = {"structure": "2:4"} if args.share == "2:4" else {"share": _share(args.share)}
    options = PruneOptions(**structure, scope=args.scope, pattern=args.pattern)  # pyright: ignore[reportArgumentType]
    model = read_model(args.dir)
    parent = {"name": place_name(args.dir), "weights_hash": weights_hash(model)}
    names = prune(model, options)
    finish(model)
    sizes = stored_bytes(model.parameters(), deflate=False)
    weights = [model.get_submodule(name).weight for name in names]
    zeros = sum(int((w == 0).sum()) for w in weights) / sum(w.numel() for w in weights)
    about = {"pruned": to_dict(options), "parents": [parent]}
    done = save_changed(model, args.dir, args.out, about) | {"projections": len(names), "zeros": zeros, "bytes": sizes}
    if not args.json:
        say(f"{args.out}: {zeros:.1%} of the weights of {len(names)} projections are zero")
        say(f"{sizes['dense'] / 1e6:,.1f} MB; {sizes['bitmask'] / 1e6:,.1f} MB as a bit a weight and the values left")
        say(f"note: {unsupported_reason('cpu')}")
    return done


def _share(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ConfigError(f"--share is '{text}', expected a number from 0 to 0.99, or 2:4") from None
