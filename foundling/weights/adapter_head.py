# SPDX-License-Identifier: Apache-2.0
"""A head in an adapter's directory: what peft calls modules_to_save, trained whole beside the adapter."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from foundling.adapt.added import Added
from foundling.adapt.heads import SCORE, Head, HeadOptions, head_for, register
from foundling.config import from_dict, to_dict
from foundling.errors import AdaptError, ConfigError, WeightsError
from foundling.models import family_of
from foundling.weights.adapter_layout import PREFIX, Kind, Source, Written
from foundling.weights.heads import OURS, map_of, published_map
from foundling.weights.peft_lora import OWN


def write(model: Any, modules: Mapping[str, Added], tensors: Mapping[str, Tensor]) -> Written:
    head, names = model.score, _names(model)
    written = {names[part]: tensors[f"{SCORE}.{part}"] for part in head.own}
    config: dict[str, Any] = {}
    if map_of(model, family_of(model)) is not OURS:
        modules_saved = {name.removeprefix(PREFIX).rpartition(".")[0].rpartition(".")[2] for name in written}
        task = "TOKEN_CLS" if head.options.kind == "tag" else "SEQ_CLS"
        config = {"modules_to_save": sorted(modules_saved), "task_type": task}
    pool = "" if head.layout == model.head_layout(head.options.kind) else head.layout.pool
    return Written(config, written, to_dict(head.options) | {"pool": pool})


def _names(model: Any) -> dict[str, str]:
    """Parameter of the head -> its name in the file."""
    table = map_of(model, family_of(model))
    before = OWN if table is OURS else PREFIX
    return {part: f"{before}{table.names[part]}" for part in model.score.parts}


def read(model: Any, source: Source) -> Callable[[], list[str]]:
    about = source.about(KIND.name) or {}
    where = f"{source.directory}: adapters.{KIND.name}"
    try:
        options = from_dict(HeadOptions, about | {"labels": tuple(about.get("labels", ()))}, where=where)
        table = published_map(family_of(model), options.kind)
        if table is not None and f"{PREFIX}{table.names.get('dense')}" in source:
            options = replace(options, pool="")  # a dense layer is stored: the published layout
        with torch.device("meta"):
            head = head_for(model, options)
    except (AdaptError, ConfigError, TypeError) as error:
        raise WeightsError(f"{where}: {error}") from None
    previous, capabilities = getattr(model, SCORE, None), model.capabilities
    register(model, head)
    try:
        names = _names(model)
    finally:  # nothing is changed until the returned function is called
        model.capabilities = capabilities
        if previous is None:
            delattr(model, SCORE)
        else:
            model.score = previous
    values = {part: source.take(names[part], tuple(getattr(head, part).shape), torch.float32) for part in head.parts}

    def attach() -> list[str]:
        for part, value in values.items():
            setattr(head, part, nn.Parameter(value))
        place = model.embedding.weight
        register(model, head.to(device=place.device))
        head.own = head.parts
        return [SCORE]

    return attach


KIND = Kind("head", (Head,), lambda source: source.about("head") is not None, write, read)
