# SPDX-License-Identifier: Apache-2.0
"""Finds modules by name pattern and replaces them."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import nn

from foundling.config import nearest
from foundling.errors import AdaptError

LAYERS = "*layers.*,!*.router"
"""every projection in the layers of any family; neither embedding nor head, nor what chooses experts, whose balance a
small data set, or rounding, would upset"""


def matches(name: str, pattern: str) -> bool:
    """Whether a name matches one of the shell patterns, separated by commas, and none of those that begin with !"""
    parts = [part.strip() for part in pattern.split(",")]
    if any(part.startswith("!") and fnmatch.fnmatchcase(name, part[1:]) for part in parts):
        return False
    return any(fnmatch.fnmatchcase(name, part) for part in parts if not part.startswith("!"))


def pattern_of(names: Iterable[str], candidates: Iterable[str]) -> str:
    """A pattern that matches exactly `names` among `candidates`: with `*` for every number if possible, otherwise a
    list of all names."""
    chosen = set(names)
    short = ",".join(sorted({re.sub(r"\b\d+\b", "*", name) for name in chosen}))
    return short if {name for name in candidates if matches(name, short)} == chosen else ",".join(sorted(chosen))


def matching(model: nn.Module, pattern: str, kinds: tuple[type[nn.Module], ...]) -> dict[str, nn.Module]:
    """Name -> module, for modules of the kinds whose name matches any of the shell patterns in `pattern`, separated by
    commas ("layers.*.mixer.[qv],head"; `*` crosses dots), and none that begins with ! ("layers.*,!*.router"). Raises
    AdaptError, with similar names, if there is none."""
    candidates = {name: module for name, module in model.named_modules() if name and isinstance(module, kinds)}
    matched = {name: module for name, module in candidates.items() if matches(name, pattern)}
    if not matched:
        raise AdaptError(f"pattern '{pattern}' matches no projection; {nearest(pattern, list(candidates))}")
    return matched


def replace(model: nn.Module, name: str, module: nn.Module) -> None:
    """Replaces the module of that name wherever it is used."""
    old = model.get_submodule(name)
    uses = [(parent, leaf) for parent in model.modules() for leaf, child in parent._modules.items() if child is old]
    for parent, leaf in uses:
        setattr(parent, leaf, module.train(model.training))


def rewrite(model: nn.Module, matched: Mapping[str, Any], make: Callable[[Any], nn.Module]) -> list[str]:
    """Replaces each module by `make(module)`; returns the names."""
    for name, module in matched.items():
        replace(model, name, make(module))
    return list(matched)
