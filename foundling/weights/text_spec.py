# SPDX-License-Identifier: Apache-2.0
"""What the files of a model directory say of texts, for text.framing."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from foundling.adapt.soft import virtual_ids
from foundling.runtime.files import read_json
from foundling.text.framing import SEPARATOR, TextSpec
from foundling.weights.generation import read_generation_config, read_ids
from foundling.weights.manifest import MANIFEST, read_manifest


def read_text_spec(directory: str | Path, model: Any) -> TextSpec:
    """What the files of a model directory say of texts. `model`: what was loaded from it."""
    directory = Path(directory)
    file = directory / "config.json"
    values = read_json(file) if file.exists() else {}
    own = values.get("eos_token_id")
    if own is None and isinstance(values.get("text_config"), dict):
        own = values["text_config"].get("eos_token_id")
    ends = (*read_generation_config(directory).ends, *(() if own is None else read_ids(own, "eos_token_id", file)))
    spec, kind, fim_rate = text_spec(model), *_recipe(directory)
    return dataclasses.replace(
        spec,
        ends=tuple(dict.fromkeys(ends)),
        chats=True if kind in ("chat", "dpo", "ipo", "ppo", "grpo") else None,
        fills_middle=None if fim_rate is None else fim_rate > 0,
        separator=SEPARATOR if kind == "seq2seq" and not spec.reads_source else "",
    )


def text_spec(model: Any) -> TextSpec:
    """What a model without files says of texts."""
    return TextSpec(
        n_rows=model.config.vocab_size, reads_source=model.capabilities.reads_source,
        reads_types=getattr(model.config, "n_types", 0) > 1, virtual=virtual_ids(model),
    )  # fmt: skip


def _recipe(directory: Path) -> tuple[str | None, float | None]:
    """What the recipe of a model trained here taught it: the kind of its objective, and the share of texts to fill in
    the middle; None where there is no recipe, or it does not say."""
    if not (directory / MANIFEST).exists():
        return None, None
    recipe = read_manifest(directory).get("recipe")
    if not isinstance(recipe, dict):
        return None, None
    data, objective = recipe.get("data"), recipe.get("objective")
    kind = objective.get("kind") if isinstance(objective, dict) else None
    rate = data.get("fim_rate", 0) if isinstance(data, dict) else None
    return kind if isinstance(kind, str) else None, rate if isinstance(rate, int | float) else None
