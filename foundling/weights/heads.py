# SPDX-License-Identifier: Apache-2.0
"""Heads in model directories: of transformers' classes for texts and for tokens where they exist, both ways.

config.json says by `architectures`, `id2label` and `problem_type` what transformers must know. Beside them stands
`foundling_head`, which transformers ignores: the task, the pool, and for values the mean and standard deviation that
scores are standardised by. A head that transformers has no class for is saved as `score.*` beside the model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from foundling.adapt.heads import SCORE, Head, HeadOptions, head_for, register
from foundling.config import from_dict
from foundling.contracts.checkpoint_map import HeadMap
from foundling.errors import AdaptError, FoundlingError, WeightsError
from foundling.limits import LABELS, shown
from foundling.models import Family
from foundling.weights.tensors import Tensors

RECORD = "foundling_head"
KEYS = (RECORD, "id2label", "label2id", "num_labels", "problem_type")
"""of config.json"""
TOKENS, TEXTS = "ForTokenClassification", "ForSequenceClassification"
SUFFIXES = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration", "ForPreTraining", "ForMaskedLM", "Model")
"""what the classes of transformers end with, after the name of the model"""
PARTS = ("weight", "bias", "dense", "dense_bias", "norm_weight", "mix", "mix_scale")
OURS = HeadMap("", {part: f"{SCORE}.{part}" for part in PARTS})
RECORDED = ("kind", "pool", "mean", "std")


class StoredHead(NamedTuple):
    """The head of a directory, before its tensors are read."""

    options: HeadOptions
    names: dict[str, str]
    """parameter -> tensor in the directory"""
    table: HeadMap


def head_of(model: Any) -> Head | None:
    head = getattr(model, SCORE, None)
    return head if isinstance(head, Head) else None


def without_head(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Of tensors by our names, those of the model without its head."""
    return {name: t for name, t in tensors.items() if not name.startswith(f"{SCORE}.")}


def published_map(family: Family, task: str) -> HeadMap | None:
    return family.module.CONFIG.heads.get("tag" if task == "tag" else "classify")


def map_of(model: Any, family: Family) -> HeadMap:
    """How the model's head is written: as transformers' class where that has the same layout."""
    head, table = model.score, published_map(family, model.capabilities.task)
    return table if table is not None and head.layout == model.head_layout(head.options.kind) else OURS


def with_head(model: Any, family: Family, published: dict[str, Tensor], ours: dict[str, Tensor]) -> dict[str, Tensor]:
    """Published name -> tensor: those of the model without its head, and the head's among `ours`."""
    table = map_of(model, family)
    head = {table.names[part]: ours[f"{SCORE}.{part}"].clone() for part in model.score.parts}
    return {f"{table.prefix}{name}": tensor for name, tensor in published.items()} | head


def head_config(model: Any, family: Family, config: dict[str, Any]) -> dict[str, Any]:
    """config.json of a model with a head, from that of the model without it."""
    head, table = model.score, map_of(model, family)
    options = head.options
    labels = {str(index): label for index, label in enumerate(options.labels)}
    config = {key: value for key, value in config.items() if key not in KEYS}
    if options.kind != "tag":
        config["problem_type"] = "regression" if options.kind == "regress" else "single_label_classification"
    if table.ending and config.get("architectures"):
        config["architectures"] = [stem(config["architectures"][0]) + table.ending]
    record = {"kind": options.kind, "pool": head.layout.pool}
    if options.kind == "regress":
        record |= {"mean": options.mean, "std": options.std}
    inverse = {label: index for index, label in enumerate(options.labels)}
    return config | {"id2label": labels, "label2id": inverse, RECORD: record}


def stem(architecture: str) -> str:
    """The name of the model in the name of a class: Llama of LlamaForCausalLM."""
    ending = next((suffix for suffix in SUFFIXES if architecture.endswith(suffix)), "")
    return architecture.removesuffix(ending)


def stored_head(values: dict[str, Any], family: Family, tensors: Tensors, file: str) -> StoredHead | None:
    """The head of a directory by its config.json; None for one without. WeightsError for one that cannot be read."""
    record, architecture = values.get(RECORD), _architecture(values)
    if record is None and architecture not in (TOKENS, TEXTS):
        return None
    if record is not None and not (isinstance(record, dict) and record.keys() <= {*RECORDED}):
        raise WeightsError(f"{file}: {RECORD} is {shown(record)}, expected a mapping of {', '.join(RECORDED)}")
    record = record or {"kind": "tag" if architecture == TOKENS else ""}
    published = published_map(family, record.get("kind", ""))
    if not architecture:
        published = OURS
    if published is None:
        raise WeightsError(f"{file}: {architecture} of {family.name} is not read here; take the base model")
    prefix = family.module.CONFIG.base_prefix
    names = {part: name for part, name in published.names.items() if name in tensors}
    if record.get("pool") == "model":
        names = {part: name for part, name in names.items() if part in ("weight", "bias")}
    elif "pool" not in record and prefix:  # a dense layer under the model's prefix is the model's own pooler
        names = {part: name for part, name in names.items() if not name.startswith(prefix)}
    if "weight" not in names:
        raise WeightsError(
            f"{file}: {architecture or RECORD} needs tensor '{published.names['weight']}', which is missing"
        )
    rows = tensors.shape(names["weight"])
    if len(rows) != 2 or not 0 < rows[0] <= LABELS.high:
        raise WeightsError(f"{tensors.path}: '{names['weight']}' is {list(rows)}, expected a row for each label")
    options = _options(values, record, rows[0], file)
    if "dense" in names:  # the published layout; a pool given by name means one projection
        options = replace(options, pool="")
    return StoredHead(options, names, published)


def _architecture(values: dict[str, Any]) -> str:
    names = values.get("architectures")
    first = str(names[0]) if isinstance(names, list) and names else ""
    return next((ending for ending in (TOKENS, TEXTS) if first.endswith(ending)), "")


def _options(values: dict[str, Any], record: dict[str, Any], rows: int, file: str) -> HeadOptions:
    problem = values.get("problem_type")
    if problem == "multi_label_classification":
        raise WeightsError(f"{file}: problem_type {problem!r} is not supported; one label a text is")
    regresses = problem == "regression" or (problem is None and rows == 1)
    fields = {"pool": "", "kind": "", **record}
    fields["kind"] = fields["kind"] or ("regress" if regresses else "classify")
    try:
        return from_dict(HeadOptions, {**fields, "labels": _labels(values, rows)}, where=f"{file}: {RECORD}")
    except AdaptError as error:
        raise WeightsError(f"{file}: {error}") from None
    except WeightsError:
        raise
    except FoundlingError as error:
        raise WeightsError(str(error)) from None


def _labels(values: dict[str, Any], rows: int) -> tuple[str, ...]:
    """The names of `rows` labels; those that config.json does not name, or names twice, are LABEL_0 and so on."""
    table = values.get("id2label")
    stated = {str(key): str(name) for key, name in table.items()} if isinstance(table, dict) else {}
    labels = tuple(stated.get(str(row), f"LABEL_{row}") for row in range(rows))
    return labels if len({*labels}) == rows and all(labels) else tuple(f"LABEL_{row}" for row in range(rows))


def restore_head(model: Any, stored: StoredHead, tensors: Tensors, convert: Callable[[Tensor, str], Tensor]) -> None:
    """Puts the stored head on the model, as a part of it. `convert(tensor, name)` gives a tensor its type. WeightsError
    for tensors that are missing or misshapen."""
    head = empty_head(model, stored, tensors)
    for part, name in stored.names.items():
        setattr(head, part, nn.Parameter(convert(tensors.read(name), name)))
    register(model, head)


def empty_head(model: Any, stored: StoredHead, tensors: Tensors) -> Head:
    """The stored head on the meta device, its parameters compared with the headers of `tensors`."""
    try:
        with torch.device("meta"):
            head = head_for(model, stored.options)
    except AdaptError as error:
        raise WeightsError(f"{tensors.path}: {error}") from None
    for part in PARTS:
        expected, name = getattr(head, part), stored.names.get(part)
        if (expected is None) != (name is None):
            what = "is no part of this head" if expected is None else "is missing"
            raise WeightsError(f"{tensors.path}: '{stored.table.names.get(part, part)}' {what}")
        if name is not None and (shape := tensors.shape(name)) != tuple(expected.shape):
            raise WeightsError(f"{tensors.path}: '{name}' is {list(shape)}, expected {list(expected.shape)}")
    return head


class _Renamed:
    """One tensor of an open file, whatever it is asked for as."""

    def __init__(self, file: Any, name: str) -> None:
        self.file, self.name = file, name

    def get_slice(self, name: str) -> Any:
        return self.file.get_slice(self.name)

    def get_tensor(self, name: str) -> Any:
        return self.file.get_tensor(self.name)


def trunk(tensors: Tensors, stored: StoredHead) -> Tensors:
    """The tensors of the model without those of its head, by the names that they have without a head."""
    taken, prefix = {*stored.names.values()}, stored.table.prefix
    files = {name: file for name, file in tensors.files.items() if name not in taken}
    if prefix:
        files = {name.removeprefix(prefix): _Renamed(file, name) for name, file in files.items()}
    return Tensors(files, tensors.path)
