# SPDX-License-Identifier: Apache-2.0
"""Raise a model from nothing: data, tokenizer, plan, prediction, training, report."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from foundling.errors import ConfigError

EXAMPLES = [
    "foundling raise --minutes 3                        # on the built-in Python library",
    "foundling raise notes/ --minutes 10 --out runs/notes",
    "foundling raise talks.jsonl --field body --tokens 5e6 --seed 1",
    "foundling raise notes/ --flops 1e14 --n-layers 6 --learning-rate 0.01",
    "foundling raise --out runs/notes --resume",
]
# The fields of recipes/recipe.Recipe, here by name so that --help need not import torch; a test holds them equal.
KEYS = (
    "family", "seed", "field", "vocab_size", "d_model", "n_layers", "seq_len", "batch_size", "micro_batch_size",
    "total_steps", "optimizer", "learning_rate", "matrix_learning_rate", "weight_decay", "schedule", "warmup_steps",
    "decay_share", "clip", "precision", "threads", "compile", "device", "checkpoint_every", "data_share",
    "checkpoint_activations", "fim_rate",
)  # fmt: skip


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "data", nargs="?", help="file or folder: text, code, .jsonl, .parquet (default: the built-in 'stdlib')"
    )
    dial = parser.add_mutually_exclusive_group()
    dial.add_argument("--minutes", type=float, help="from process start until the held-out loss is known (default 3)")
    dial.add_argument("--flops", type=float, help="the same dial in floating-point operations of training")
    dial.add_argument("--tokens", type=float, help="the same dial in tokens trained on")
    parser.add_argument("--out", help="model directory to write (default: runs/NAME-N)")
    parser.add_argument("--resume", action="store_true", help="go on with the unfinished run in --out")
    parser.add_argument("--config", help="YAML file of recipe keys to hold fixed")
    parser.add_argument("--licence", help="licence of the data, for the model card (such as CC-BY-4.0)")
    add_keys(parser)


def add_keys(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("keys of the recipe", "what is not given is chosen, and printed")
    for key in KEYS:
        group.add_argument("--" + key.replace("_", "-"), dest="key_" + key, metavar="VALUE")


def run(args: argparse.Namespace) -> dict[str, Any]:
    given = keys(args)
    from foundling.cli import show_for

    show = show_for(args)
    from foundling.config import load_yaml
    from foundling.plan.budget import Budget
    from foundling.recipes.raising import raise_model, resume_model
    from foundling.recipes.recipe import Request

    if args.resume:
        if not args.out:
            raise ConfigError("--resume needs --out DIR, the unfinished run to go on with")
        asked = [name for name in ("data", "minutes", "flops", "tokens", "config") if getattr(args, name) is not None]
        if asked or given:
            raise ConfigError(f"--resume goes on with what was asked before; leave out {([*asked, *given])[0]}")
        return resume_model(args.out, show=show)
    if args.config:
        given = load_yaml(args.config) | given
    unit, value = "seconds", (3.0 if args.minutes is None else args.minutes) * 60
    for name in ("flops", "tokens"):
        if getattr(args, name) is not None:
            unit, value = name, getattr(args, name)
    Budget(unit, value)
    data = args.data or "builtin:stdlib"
    request = Request(data, unit, value, args.licence, given)
    out = args.out or free_directory("stdlib" if args.data is None else Path(args.data).resolve().stem)
    return raise_model(request, out, show=show)


def keys(args: argparse.Namespace) -> dict[str, Any]:
    """The recipe keys given on the command line, as YAML would read them; `field` stays text."""
    from foundling.config import parse_overrides

    texts = {key: getattr(args, "key_" + key) for key in KEYS}
    given = parse_overrides([f"{key}={text}" for key, text in texts.items() if text is not None])
    return given | ({"field": texts["field"]} if texts["field"] is not None else {})


def free_directory(name: str) -> Path:
    n = 1
    while Path(f"runs/{name}-{n}").exists():
        n += 1
    return Path(f"runs/{name}-{n}")
