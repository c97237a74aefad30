# SPDX-License-Identifier: Apache-2.0
"""Flags of the recipe, generated from its dataclasses: --section.field, and --field for short where it is unambiguous.

The docstring under a field is its help. `--model.FIELD` takes any field of any family's configuration; it is checked
when the family is known. Values are parsed as YAML and checked against the type of the field.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import fnmatch
import inspect
import itertools
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, get_args

from foundling.config import hints, merged, nested, parse_scalar
from foundling.recipes.recipe import Recipe

ALIASES = {
    "model.directory": ["--from"], "model.fields.d_model": ["--d-model"], "model.fields.n_layers": ["--n-layers"],
    "data.share": ["--data-share"], "objective.kind": ["--objective"], "schedule.kind": ["--schedule"],
    "train.activation_checkpointing": ["--activation-checkpointing", "--checkpoint-activations"],
}  # fmt: skip
"""short flags that differ from the name of the field"""
HIDDEN = ("data.source", "model.weights_hash", "model.fields", "objective.teacher_hash", "train.n_completions",
          "rollout.reward", "rollout.reward_hashes", "objective.pretraining_hash")  # fmt: skip
"""set by the argument DATA, or when the recipe is resolved"""
CHOSEN = ("data.share", "schedule.warmup_steps", "train.activation_checkpointing", "train.checkpoint_every")
"""fields with a default that the plan chooses nevertheless, like the fields without a default"""
EXTRA = {"model.fields.d_model": "width of the model", "model.fields.n_layers": "number of layers"}
"""fields of the model that have their own flag"""
OF_FINETUNE = (
    "adapt.*", "data.label", "data.pair", "data.target", "data.held_out", "data.chat_template",
    "train.epochs", "train.evaluate_every", "train.patience", "train.unfreeze_every", "optim.layer_decay",
    "objective.beta",
)  # fmt: skip
"""what `foundling finetune` alone reads"""
OF_ALIGN = (
    "rollout.*", "objective.kl_coef", "objective.clip_*", "objective.normalise", "objective.value_coef",
    "objective.pretraining*",
)  # fmt: skip
"""what `foundling align` alone reads"""
OF_RAISE = (
    "model.*", "objective.kind", "objective.*_rate", "objective.mean_span", "objective.teacher",
    "objective.temperature", "objective.alpha", "data.vocab_size", "data.fim_rate", "data.share", "train.ema_decay",
)  # fmt: skip
"""what it does not read, or is told in another way"""


def field_docs(cls: type) -> dict[str, str]:
    """The docstring under each field of a dataclass."""
    body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0].body  # pyright: ignore[reportAttributeAccessIssue]
    docs = {}
    for field, text in itertools.pairwise(body):
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
            docs[ast.unparse(field.target)] = " ".join(str(text.value.value).split())
    return docs


def recipe_fields() -> dict[str, tuple[Any, str, Any]]:
    """dotted key -> (type, help, default) of everything that a flag can set."""
    found: dict[str, tuple[Any, str, Any]] = {}
    for section, hint in hints(Recipe).items():
        cls = nested(hint)
        if cls is None:
            found[section] = (hint, field_docs(Recipe).get(section, ""), Recipe.__dataclass_fields__[section].default)
            continue
        docs = field_docs(cls)
        for field in dataclasses.fields(cls):
            if f"{section}.{field.name}" not in HIDDEN:
                found[f"{section}.{field.name}"] = (hints(cls)[field.name], docs.get(field.name, ""), field.default)
        if section == "model":
            found |= {key: (int, text, dataclasses.MISSING) for key, text in EXTRA.items()}
    return found


def options(key: str, taken: set[str]) -> list[str]:
    """The flags of a dotted key, the full name first."""
    full = "--" + key.replace("model.fields.", "model.").replace("_", "-")
    short = ALIASES.get(key, ["--" + key.rpartition(".")[2].replace("_", "-")])
    return list(dict.fromkeys([full, *(name for name in short if name not in taken)]))


def add_recipe_flags(
    parser: argparse.ArgumentParser,
    leave_out: Sequence[str] = (*OF_FINETUNE, *OF_ALIGN),
    defaults: Mapping[str, str] | None = None,
) -> None:
    """A group for each section of the recipe, without the keys that match a pattern of `leave_out`. `defaults`: what
    the help says in place of a field's own default."""
    taken, groups = set(parser._option_string_actions), dict[str, Any]()
    for key, (hint, text, default) in recipe_fields().items():
        if any(fnmatch.fnmatchcase(key, pattern) for pattern in leave_out):
            continue
        section = key.partition(".")[0] if "." in key else "recipe"
        if section not in groups:
            note = (
                "Any field of the family's configuration can be set: --model.FIELD VALUE."
                if section == "model"
                else None
            )
            groups[section] = parser.add_argument_group(section, note)
        text = text.removeprefix("finetune: ").removeprefix("finetune, ")
        names = options(key, taken)
        taken |= set(names)
        chosen = key in CHOSEN or default is dataclasses.MISSING
        if key in (defaults or {}):
            text = f"{text.partition(' (default')[0]} (default: {(defaults or {})[key]})"
        elif chosen:
            text += " (default: chosen by the plan)"
        elif default is not None:
            text += f" (default {default})"
        metavar = "{" + ",".join(choices) + "}" if (choices := _choices(hint)) else _metavar(hint)
        groups[section].add_argument(*names, dest="key:" + key, metavar=metavar, help=text.replace("%", "%%"))


def add_field_flags(group: Any, cls: Any, names: Sequence[str], defaults: Mapping[str, str] | None = None) -> None:
    """A flag for each of these fields of a dataclass, which sets nothing where it is not given: a default stands in the
    class alone. `defaults`: what the help says in place of a field's own."""
    docs = field_docs(cls)
    for name in names:
        hint, default = hints(cls)[name], (defaults or {}).get(name, getattr(cls, name))
        if hint is bool:
            options: dict[str, Any] = {"action": "store_true"}
        elif choices := _choices(hint):
            options = {"choices": choices}
        else:
            kind = next(h for h in (hint, *get_args(hint)) if h in (int, float, str))
            options = {"type": kind, "metavar": _metavar(kind)} | ({"action": "append"} if default == () else {})
        text = docs[name] + ("" if default in (None, False, ()) else f" (default {default})")
        flag = "--" + name.replace("_", "-")
        group.add_argument(flag, default=argparse.SUPPRESS, help=text.replace("%", "%%"), **options)


def _choices(hint: Any) -> list[str]:
    return [str(c) for part in (hint, *get_args(hint)) for c in get_args(part) if isinstance(c, str)]


def _metavar(hint: Any) -> str:
    kinds = [h for h in (hint, *get_args(hint)) if isinstance(h, type) and h is not type(None)]
    return {"str": "TEXT", "bool": "true|false", "tuple": "LIST"}.get(kinds[0].__name__, kinds[0].__name__.upper())


def split_model_flags(argv: list[str], known: set[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """The arguments without `--model.FIELD VALUE` of fields that have no flag, and those fields."""
    rest, fields, at = list[str](), list[tuple[str, str]](), 0
    while at < len(argv):
        name, sign, value = argv[at].partition("=")
        if name.startswith("--model.") and name not in known and (sign or at + 1 < len(argv)):
            if not sign:
                at, value = at + 1, argv[at + 1]
            fields.append((name.removeprefix("--model.").replace("-", "_"), value))
        else:
            rest.append(argv[at])
        at += 1
    return rest, fields


def given_keys(args: argparse.Namespace) -> dict[str, Any]:
    """The keys of the recipe that were given, nested as the recipe is."""
    texts = {name.removeprefix("key:"): value for name, value in vars(args).items() if name.startswith("key:")}
    texts = {key: text for key, text in texts.items() if text is not None}
    texts |= {f"model.fields.{name}": text for name, text in args.model_fields}
    known, given = recipe_fields(), dict[str, Any]()
    for key, text in texts.items():
        hint = known[key][0] if key in known else None
        value: Any = text if hint is str or str in get_args(hint) else parse_scalar(text)
        for part in reversed(key.split(".")):
            value = {part: value}
        given = merged(given, value)
    return given
