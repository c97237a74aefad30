# SPDX-License-Identifier: Apache-2.0
"""Train a model on your data: tokenizer, plan, prediction of cost, training, evaluation, report."""

from __future__ import annotations

import argparse
from typing import Any

from foundling.cli.common import DEFAULT_DATA, add_budget, add_data, budget_of, clock, free_directory, progress_for
from foundling.cli.flags import add_recipe_flags, given_keys
from foundling.errors import ConfigError

EXAMPLES = [
    "foundling raise --minutes 3                                   # on the built-in Python library",
    "foundling raise notes/ --minutes 10 --out runs/notes",
    "foundling raise talks.jsonl --field body --tokens 5e6 --seed 1",
    "foundling raise notes/ --family bert                          # an encoder: masked language modelling",
    "foundling raise notes/ --preset gpt2 --model.n-layers 2       # a published size, with a change",
    "foundling raise notes/ --from runs/notes --out runs/more      # continue pretraining a model directory",
    "foundling raise notes/ --teacher runs/notes --d-model 128     # distil it into a smaller one",
    "foundling raise notes/ --family distilbert --teacher runs/encoder  # half of an encoder's layers",
    "foundling raise notes/ --minutes 10 --align                   # then taught to answer questions about the notes",
    "foundling raise notes/ --minutes 10 --align chats.jsonl       # or by demonstrations and comparisons of your own",
    "foundling raise --out runs/notes --resume                     # continue after a crash, bit for bit",
]


def add(parser: argparse.ArgumentParser) -> None:
    add_data(parser)
    add_budget(parser)
    parser.add_argument("--out", help="model directory to write (default: runs/NAME-N)")
    parser.add_argument(
        "--align", nargs="?", const="", metavar="CHATS",
        help="align the model afterwards, by questions that the data answers itself or by a file of chats: "
        "demonstrations (messages, or prompt and completion) and comparisons (prompt, chosen, rejected)",
    )  # fmt: skip
    parser.add_argument("--resume", action="store_true", help="continue the unfinished run in --out")
    parser.add_argument("--config", metavar="FILE", help="YAML file with fixed keys of the recipe")
    parser.add_argument("--licence", help="licence of the data for the model card, such as CC-BY-4.0")
    add_recipe_flags(parser)


def run(args: argparse.Namespace) -> dict[str, Any]:
    from foundling.config import flattened

    given = given_keys(args)
    if args.out == "":
        raise ConfigError("--out is empty; give a directory, or omit it to use runs/NAME-N")
    if args.resume:
        if not args.out:
            raise ConfigError("--resume needs --out DIR, the unfinished run to continue")
        options = ("data", "minutes", "flops", "tokens", "config", "licence", "align")
        asked = [name for name in options if getattr(args, name) is not None]
        asked += [f"--{key.replace('model.fields.', 'model.').replace('_', '-')}" for key in flattened(given)]
        if asked:
            raise ConfigError(f"--resume takes the settings of the unfinished run; leave out {asked[0]}")
    from foundling.config import load_yaml, merged
    from foundling.recipes.kinds import raise_model, resume_model
    from foundling.recipes.recipe import Request
    from foundling.recipes.upgrade import upgrade

    progress, timer = progress_for(args), clock()
    if args.resume:
        return resume_model(args.out, progress=progress, clock=timer)
    if args.config:
        given = merged(upgrade(load_yaml(args.config)), given)
    data, section = args.data, given.get("data")
    if isinstance(section, dict) and "source" in section:  # of a recipe file
        data = section["source"] if data is None else data
        given["data"] = {key: value for key, value in section.items() if key != "source"}
    data = DEFAULT_DATA if data is None else data
    request = Request(data, budget_of(args), args.licence, given, align=args.align)
    return raise_model(request, args.out or free_directory(data), progress=progress, clock=timer)
