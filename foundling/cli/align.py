# SPDX-License-Identifier: Apache-2.0
"""Align a model with what people want: demonstrations, then comparisons. Each stage takes a model directory and writes
another."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from foundling.cli import finetune
from foundling.errors import ConfigError

STAGES = {"sft": "chat", "reward": "reward", "dpo": "dpo", "ipo": "ipo"}
"""stage -> what is learnt"""
EXAMPLES = [
    "foundling align sft runs/notes chats.jsonl --out runs/sft              # learn from demonstrations",
    "foundling align dpo runs/sft comparisons.jsonl --out runs/dpo          # prompt, chosen, rejected",
    "foundling align reward runs/sft comparisons.jsonl --out runs/reward    # then: foundling serve … --reward",
    "foundling align dpo runs/sft comparisons.jsonl --objective.beta 0.3    # stay closer to runs/sft",
    "foundling align dpo runs/sft comparisons.jsonl --plan                  # time and memory of each method",
    "foundling align dpo --out runs/dpo --resume                            # after a crash, bit for bit",
]


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "stage", choices=STAGES, metavar="stage",
        help="sft: demonstrations, as finetune --as chat; reward: a model that scores answers, from comparisons; "
        "dpo, ipo: a policy that prefers the better answers, from comparisons without a reward model",
    )  # fmt: skip
    finetune.add_options(parser)


def run(args: argparse.Namespace) -> dict[str, Any]:
    if not args.resume:
        setattr(args, finetune.KIND, STAGES[args.stage])
    elif args.out and (kind := begun_as(Path(args.out))) not in (None, STAGES[args.stage]):
        raise ConfigError(f"{args.out} is an unfinished run of '{kind}', not of '{args.stage}'")
    return finetune.run(args)


def begun_as(out: Path) -> str | None:
    """What the run in `out` learns, where it has a recipe."""
    from foundling.config import load_yaml

    file = out / "run" / "recipe.yaml"
    return load_yaml(file).get("objective", {}).get("kind") if file.is_file() else None
