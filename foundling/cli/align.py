# SPDX-License-Identifier: Apache-2.0
"""Align a model with what people want: demonstrations, then comparisons. Each stage takes a model directory and writes
another."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from foundling.cli import finetune
from foundling.errors import ConfigError
from foundling.recipes.recipe import REWARDED

STAGES = {"sft": "chat", "reward": "reward", "dpo": "dpo", "ipo": "ipo", "ppo": "ppo", "grpo": "grpo"}
"""stage -> what is learnt"""
EPOCHS = {"ppo": 1, "grpo": 1}
"""stage -> times that the prompts are answered, where it is not finetuning's default"""
EXAMPLES = [
    "foundling align sft runs/notes chats.jsonl --out runs/sft              # learn from demonstrations",
    "foundling align dpo runs/sft comparisons.jsonl --out runs/dpo          # prompt, chosen, rejected",
    "foundling align reward runs/sft comparisons.jsonl --out runs/reward    # then: foundling serve … --reward",
    "foundling align dpo runs/sft comparisons.jsonl --objective.beta 0.3    # stay closer to runs/sft",
    "foundling align dpo runs/sft comparisons.jsonl --plan                  # time and memory of each method",
    "foundling align grpo runs/sft problems.jsonl --reward maths            # prompt, answer; checkers reward",
    "foundling align ppo runs/sft prompts.jsonl --reward runs/reward        # a reward model rewards",
    "foundling align dpo --out runs/dpo --resume                            # after a crash, bit for bit",
]


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "stage", choices=STAGES, metavar="stage",
        help="sft: demonstrations, as finetune --as chat; reward: a model that scores answers, from comparisons; "
        "dpo, ipo: a policy that prefers the better answers, from comparisons without a reward model; "
        "ppo, grpo: a policy that learns from rewards of its own answers",
    )  # fmt: skip
    parser.add_argument(
        "--reward", action="append", metavar="REWARD",
        help="ppo, grpo: what rewards an answer: maths, exact, contains, instructions, json, …, matches:REGEX or the "
        "directory of a reward model, each with a weight as in 0.5*maths; give it several times for a sum",
    )  # fmt: skip
    finetune.add_options(parser)


def run(args: argparse.Namespace) -> dict[str, Any]:
    stage = args.stage
    if stage not in REWARDED and args.reward:
        raise ConfigError(f"--reward is for {' and '.join(REWARDED)}; '{stage}' learns from examples")
    if not args.resume:
        setattr(args, finetune.KIND, STAGES[stage])
    elif args.out and (kind := begun_as(Path(args.out))) not in (None, STAGES[stage]):
        raise ConfigError(f"{args.out} is an unfinished run of '{kind}', not of '{stage}'")
    rewards = {"rollout": {"reward": args.reward}} if args.reward else {}
    return finetune.run(args, rewards, epochs=EPOCHS.get(stage, finetune.EPOCHS))


def begun_as(out: Path) -> str | None:
    """What the run in `out` learns, where it has a recipe."""
    from foundling.config import load_yaml

    file = out / "run" / "recipe.yaml"
    return load_yaml(file).get("objective", {}).get("kind") if file.is_file() else None
