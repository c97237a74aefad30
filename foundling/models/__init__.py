# SPDX-License-Identifier: Apache-2.0
"""Floor 2: model families, one file each. FAMILIES is the registry: name -> (module, model class, config class)."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any, NamedTuple

import torch

from foundling.config import from_dict, nearest
from foundling.errors import ConfigError

FAMILIES: dict[str, tuple[str, str, str]] = {
    "gpt2": ("foundling.models.gpt2", "GPT2", "GPT2Config"),
    "llama": ("foundling.models.llama", "Llama", "LlamaConfig"),
}


class Family(NamedTuple):
    name: str
    model: type[Any]
    config: type[Any]
    module: ModuleType
    """holds KEYS, CONFIG, PRESETS and `sized`, as data beside the code"""


def family(name: str) -> Family:
    """Imports one family; raises ConfigError naming the known ones."""
    if name not in FAMILIES:
        raise ConfigError(f"unknown family '{name}'; {nearest(name, list(FAMILIES))} (known: {', '.join(FAMILIES)})")
    path, model, config = FAMILIES[name]
    module = importlib.import_module(path)
    return Family(name, getattr(module, model), getattr(module, config), module)


def family_of(model: Any) -> Family:
    """The family that a model belongs to."""
    for name, (path, cls, _) in FAMILIES.items():
        if type(model).__module__ == path and type(model).__name__ == cls:
            return family(name)
    raise ConfigError(f"{type(model).__name__} is not a family of foundling; known: {', '.join(FAMILIES)}")


def build(name: str, *, device: str = "cpu", **fields: Any) -> Any:
    """A model of the family with the given configuration fields, parameters as torch made them (see blocks/init)."""
    found = family(name)
    config = from_dict(found.config, fields, where=f"{name} configuration")
    with torch.device(device):
        return found.model(config)


def count_parameters(model: Any) -> dict[str, int]:
    """{'total', 'non_embedding'}: a tied weight is counted once; non-embedding leaves out token and position tables,
    and keeps an untied head (it multiplies)."""
    total = sum(p.numel() for p in model.parameters())
    tables = {p for m in model.modules() if isinstance(m, torch.nn.Embedding) for p in m.parameters()}
    return {"total": total, "non_embedding": total - sum(p.numel() for p in tables)}
