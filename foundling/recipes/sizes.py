# SPDX-License-Identifier: Apache-2.0
"""Sizes that a model of text may have: rows of its embedding, tokens in a row, configurations to choose from."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from foundling.config import to_dict
from foundling.errors import BudgetError, ConfigError
from foundling.models import family
from foundling.plan.choose import ladder
from foundling.recipes.learning import target_len
from foundling.recipes.models import Origin, check_fields, measured_as, parent_config
from foundling.recipes.recipe import ObjectiveSpec
from foundling.text import Tokenizer

LEAST_SEQ_LEN = 8


def rows_for(tokenizer: Tokenizer, objective: ObjectiveSpec) -> int:
    """Rows of the embedding: a student has as many as its teacher, which may have more than there are tokens."""
    return parent_config(objective.teacher).vocab_size if objective.teacher else tokenizer.vocab_size


def student_origin(origin: Origin, objective: ObjectiveSpec) -> Origin:
    """A student that reads masked text has the sizes of its teacher and half of the layers, where they are not given;
    any other origin is as it was. ConfigError where the two do not fit each other."""
    if not objective.teacher or measured_as(objective.kind, origin.family) != "masked":
        return origin
    teacher, found = to_dict(parent_config(objective.teacher)), family(origin.family)
    if origin.fields is None:
        names = ("vocab_size", "max_seq_len", "d_model", "n_layers")
        fields = found.module.sized(**{name: teacher[name] for name in names})
        fields |= {name: teacher[name] for name in found.module.CONFIG.fields.values() if name in teacher}
        fields["n_layers"] = max(1, teacher["n_layers"] // 2)
        origin = replace(origin, fields=check_fields(origin.family, fields | origin.overrides))
    ours = origin.fields or {}
    if not ours["masked"]:
        raise ConfigError("the student has no head over its vocabulary; give --model.masked true")
    for name, fits in (
        ("vocab_size", ours["vocab_size"] == teacher["vocab_size"]), ("d_model", ours["d_model"] == teacher["d_model"]),
        ("max_seq_len", ours["max_seq_len"] <= teacher["max_seq_len"]),
    ):  # fmt: skip
        if not fits:
            flag = f"--model.{name.replace('_', '-')} {teacher[name]}"
            way = "continue another model" if origin.directory else f"give {flag}"
            raise ConfigError(f"the student has {name} {ours[name]}, its teacher {teacher[name]}; {way}")
    return origin


def max_seq_len(origin: Origin) -> int | None:
    """The most tokens that the model reads, where that is stated."""
    return (origin.fields or origin.overrides).get("max_seq_len")


def check_seq_len(seq_len: int, origin: Origin, objective: ObjectiveSpec) -> None:
    """ConfigError where the model cannot read so many tokens, or cannot write the target that they make."""
    longest, target = max_seq_len(origin), target_len(objective, seq_len)
    if longest and seq_len > longest:
        raise ConfigError(f"--seq-len {seq_len} is more than the {longest} tokens that the model reads (max_seq_len)")
    if longest and (target or 0) > longest:
        raise ConfigError(
            f"seq_len {seq_len} makes targets of {target} tokens, the model writes {longest} (max_seq_len); give a "
            "smaller --seq-len or a larger --model.max-seq-len"
        )


def fit_seq_len(train_tokens: float, origin: Origin, objective: ObjectiveSpec, chosen: int, given: int | None) -> int:
    """Tokens in a row: as given, else `chosen`, or less where text or model are short."""
    longest = max_seq_len(origin)
    seq_len = given or max(LEAST_SEQ_LEN, min(chosen, int(train_tokens / 4), longest or chosen))
    if not given and longest:
        over = max(seq_len, target_len(objective, seq_len) or 0) - longest
        seq_len = max(LEAST_SEQ_LEN, seq_len - max(0, over))
    check_seq_len(seq_len, origin, objective)
    if train_tokens < 2 * seq_len:
        raise BudgetError(
            f"the training text is {train_tokens:.0f} tokens, one window takes {2 * seq_len}; give more text"
        )
    return seq_len


def size_fields(
    origin: Origin, vocab_size: int, seq_len: int, objective: ObjectiveSpec, start_id: int = 0
) -> list[dict[str, Any]]:
    """Configurations to choose from: one where they are fixed, else a ladder with what was given laid over it, less the
    sizes that do not go with it. `vocab_size`: rows of the embedding; `start_id`: what a decoder reads first, where a
    family asks. ConfigError where no size goes with what was given."""
    if origin.fields is not None:
        return [_checked(origin.family, origin.fields, vocab_size)]
    d_model, n_layers = origin.overrides.get("d_model"), origin.overrides.get("n_layers")
    if d_model is not None and (d_model < 32 or d_model % 32):
        raise ConfigError(f"'d_model' is {d_model!r}, expected a multiple of 32 (the width of a head)")
    if n_layers is not None and n_layers < 1:
        raise ConfigError(f"'n_layers' is {n_layers!r}, expected at least 1")
    names = family(origin.family).config.__dataclass_fields__
    start = {"start_id": start_id} if "start_id" in names else {}
    longest = max(seq_len, target_len(objective, seq_len) or 0)
    sizes, refused = [], None
    for size in ladder(origin.family, vocab_size, longest, d_model=d_model, n_layers=n_layers):
        try:
            sizes.append(_checked(origin.family, start | _adjusted(size, origin.overrides), vocab_size))
        except ConfigError as error:
            refused = error
    if refused and not sizes:
        raise refused
    return sizes


def _checked(name: str, fields: dict[str, Any], vocab_size: int) -> dict[str, Any]:
    """The whole configuration; ConfigError where it has fewer rows than there are tokens."""
    fields = check_fields(name, fields)
    if fields["vocab_size"] < vocab_size:
        raise ConfigError(
            f"the tokenizer has {vocab_size} tokens, the model {fields['vocab_size']} rows; give --vocab-size "
            f"{fields['vocab_size'] // 64 * 64} at most"
        )
    return fields


def _adjusted(size: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
    """A size with some of its fields replaced, and what follows from the number of heads adjusted to them."""
    fields = size | {k: v for k, v in overrides.items() if k not in ("d_model", "n_layers")}
    if "n_heads" in overrides:
        if "n_kv_heads" in size and "n_kv_heads" not in overrides:
            fields["n_kv_heads"] = fields["n_heads"]
        whole = size.get("head_dim", 0) * size["n_heads"] == size["d_model"]
        if whole and "head_dim" not in overrides and fields["n_heads"]:
            fields["head_dim"] = size["d_model"] // fields["n_heads"]
    return fields
