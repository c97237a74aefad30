# SPDX-License-Identifier: Apache-2.0
"""Foundling: raise your own foundation model. Names below are handed on lazily, so importing this imports no torch."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from foundling.decode.plain import generate
    from foundling.models import build
    from foundling.recipes.raising import raise_model, reproduce
    from foundling.text import Tokenizer
    from foundling.train.loop import train
    from foundling.weights.directory import check, load, save

_WHERE = {
    "Tokenizer": "foundling.text",
    "build": "foundling.models",
    "check": "foundling.weights.directory",
    "generate": "foundling.decode.plain",
    "load": "foundling.weights.directory",
    "raise_model": "foundling.recipes.raising",
    "reproduce": "foundling.recipes.raising",
    "save": "foundling.weights.directory",
    "train": "foundling.train.loop",
}
__all__ = ["Tokenizer", "build", "check", "generate", "load", "raise_model", "reproduce", "save", "train"]


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        value = globals()[name] = getattr(importlib.import_module(_WHERE[name]), name)
        return value
    raise AttributeError(f"foundling has no '{name}'; it has {', '.join(__all__)}")


def __dir__() -> list[str]:
    return sorted(__all__)
