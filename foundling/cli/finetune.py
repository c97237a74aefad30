# SPDX-License-Identifier: Apache-2.0
"""Adapt a model to examples: chats, labelled texts, tagged words, numbers, pairs of texts, or more text."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any, get_args

from foundling.adapt.options import Method
from foundling.cli.common import clock, free_directory, progress_for
from foundling.cli.flags import OF_ALIGN, OF_RAISE, add_recipe_flags, given_keys
from foundling.cli.stdio import say
from foundling.errors import ConfigError
from foundling.recipes.recipe import ExampleKind

EXAMPLES = [
    "foundling finetune runs/smollm2 chats.jsonl --out runs/helper         # what the columns hold is detected",
    "foundling finetune runs/smollm2 chats.jsonl --method qlora --epochs 2 # on a 4-bit base, in less memory",
    "foundling finetune hf://ORG/NAME mails.csv --as classify --label spam # then: foundling classify OUT",
    "foundling finetune runs/bert words.conll --as tag --method full",
    "foundling finetune runs/smollm2 medicine/ --as text --method lora     # continue on the text of a domain",
    "foundling finetune runs/helper pairs.jsonl --as dpo                   # prefer the better answers; also ipo",
    "foundling finetune runs/helper pairs.jsonl --as reward                # score answers (foundling align)",
    "foundling finetune runs/smollm2 chats.jsonl --plan                    # time and memory, and what would fit",
    "foundling finetune --out runs/helper --resume                         # after a crash, bit for bit",
]
DEFAULTS = {
    "optim.optimizer": "adamw", "optim.learning_rate": "by the method", "data.field": "detected",
    "train.evaluate_every": "four times an epoch from 200 training examples on, else none",
}  # fmt: skip
"""what finetuning chooses where the recipe's own default is another"""
LEFT_OUT = (*OF_RAISE, "train.seq_len", "train.epochs", "adapt.method")
KIND = "key:objective.kind"
EPOCHS = 3


def add(parser: argparse.ArgumentParser) -> None:
    add_options(parser, (*LEFT_OUT, *OF_ALIGN))
    kinds = ", ".join(get_args(ExampleKind))
    parser.add_argument("--as", dest=KIND, choices=get_args(ExampleKind), metavar="KIND",
                        help=f"what is learnt from the examples: {kinds} (default: detected)")  # fmt: skip


def add_options(parser: argparse.ArgumentParser, leave_out: Sequence[str] = LEFT_OUT) -> None:
    """Those of every kind, without the keys of the recipe that match a pattern of `leave_out`."""
    parser.add_argument("dir", nargs="?", help="model directory, or hf://ORG/NAME[@REVISION]")
    parser.add_argument("data", nargs="?", help="file or folder of .jsonl, .json, .csv, .tsv, .parquet, CoNLL or text, "
                        "or builtin:NAME")  # fmt: skip
    methods = ", ".join(get_args(Method))
    parser.add_argument("--method", dest="key:adapt.method", choices=get_args(Method), metavar="METHOD",
                        help=f"what is trained: {methods} (default: lora; head needs labels)")  # fmt: skip
    budget = parser.add_mutually_exclusive_group()
    of_rewards = "; of ppo and grpo 1" if leave_out is LEFT_OUT else ""
    text = f"times that the examples are read (default {EPOCHS}{of_rewards})"
    budget.add_argument("--epochs", type=float, help=text)
    budget.add_argument("--minutes", type=float, help="budget in minutes: as many steps as fit, by a probe")
    parser.add_argument("--seq-len", dest="key:train.seq_len", metavar="INT",
                        help="tokens in a row (default: what nearly all examples fit into)")  # fmt: skip
    parser.add_argument("--out", help="directory to write (default: runs/NAME-N)")
    parser.add_argument("--merged", action="store_true", help="write a whole model, the adapter merged into its base")
    parser.add_argument("--plan", action="store_true", help="plan only: time and memory of each method")
    parser.add_argument("--resume", action="store_true", help="continue the unfinished run in --out")
    parser.add_argument("--config", metavar="FILE", help="YAML file with fixed keys of the recipe")
    parser.add_argument("--licence", help="licence of the data for the model card, such as CC-BY-4.0")
    add_recipe_flags(parser, leave_out, DEFAULTS)


def run(args: argparse.Namespace, more: dict[str, Any] | None = None, *, epochs: float = EPOCHS) -> dict[str, Any]:
    """`more`: keys of the recipe that have no flag here; `epochs`: where no budget is given."""
    from foundling.config import flattened, load_yaml, merged

    args.model_fields = []
    given = merged(given_keys(args), more or {})
    if args.out == "":
        raise ConfigError("--out is empty; give a directory, or omit it to use runs/NAME-N")
    if args.resume:
        asked = ["reward" if key == "rollout.reward" else key for key in flattened(given)]
        return _resume(args, [f"--{key.replace('_', '-')}" for key in asked])
    if not args.dir or not args.data:
        raise ConfigError("give a model directory and the examples: foundling finetune DIR DATA")
    from foundling.plan.budget import Budget
    from foundling.recipes.kinds import finetune_model, plan_finetuning
    from foundling.recipes.recipe import Request

    if args.config:
        given = merged(load_yaml(args.config), given)
    given = merged(given, {"model": {"directory": args.dir}})
    train = given.get("train", {})
    for flag, value in (("--epochs", args.epochs), ("--minutes", args.minutes)):
        if value is not None and "total_steps" in train:
            raise ConfigError(f"{flag} and total_steps both say how long to train; leave one out")
    if args.epochs is None and args.minutes is None and "total_steps" not in train:
        args.epochs = train.get("epochs")  # of a recipe file
    if args.merged:
        given = merged(given, {"adapt": {"merged": True}})
    budget = Budget("epochs", epochs if args.epochs is None else args.epochs)
    if args.minutes is not None:
        budget = Budget("seconds", args.minutes * 60)
    request = Request(args.data, budget, args.licence, given, "finetune")
    if args.plan:
        plan = plan_finetuning(request, progress=progress_for(args), clock=clock())
        if not args.json:
            _say_plan(plan)
        return plan
    return finetune_model(request, args.out or free_directory(args.data), progress=progress_for(args), clock=clock())


def _say_plan(plan: dict[str, Any]) -> None:
    train, chosen = plan["recipe"]["train"], plan["method"]
    say(
        f"{train['total_steps']} steps of {train['batch_size']} × {train['seq_len']} tokens, {train['epochs']:g} epochs"
    )
    say(f"{'method':8}{'trained':>14}{'share':>9}{'time':>10}{'peak memory':>14}")
    for name, row in plan["methods"].items():
        if "unsupported" in row:
            say(f"{name:8}{row['unsupported']:>14}")
            continue
        mark = "  chosen" if name == chosen else "" if row["fits"] else "  does not fit here"
        seconds = f"{row['seconds']:.0f} s" if "seconds" in row else "not timed"
        memory = f"{row['peak_bytes'] / 2**30:.2f} GiB"
        say(f"{name:8}{row['trained']:>14,}{row['share']:>9.2%}{seconds:>10}{memory:>14}{mark}")


def _resume(args: argparse.Namespace, asked: list[str]) -> dict[str, Any]:
    if not args.out:
        raise ConfigError("--resume needs --out DIR, the unfinished run to continue")
    names = ("dir", "data", "epochs", "minutes", "config", "licence", "merged", "plan")
    asked += [name for name in names if getattr(args, name)]
    if asked:
        raise ConfigError(f"--resume takes the settings of the unfinished run; leave out {asked[0]}")
    from foundling.recipes.kinds import resume_model

    return resume_model(args.out, progress=progress_for(args), clock=clock())
