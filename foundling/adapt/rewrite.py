# SPDX-License-Identifier: Apache-2.0
"""Finding modules by name pattern and replacing them."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import nn

from foundling.config import nearest
from foundling.errors import AdaptError


def matches(name: str, pattern: str) -> bool:
    return any(fnmatch.fnmatchcase(name, part.strip()) for part in pattern.split(","))


def pattern_of(names: Iterable[str], known: Iterable[str]) -> str:
    """A pattern that matches `names` and no other of `known`: with `*` for every number, or all names written out."""
    chosen = set(names)
    short = ",".join(sorted({re.sub(r"\b\d+\b", "*", name) for name in chosen}))
    return short if {name for name in known if matches(name, short)} == chosen else ",".join(sorted(chosen))


def matching(model: nn.Module, pattern: str, kinds: tuple[type[nn.Module], ...]) -> dict[str, nn.Module]:
    """Name -> module, for modules of the kinds whose name matches any of the shell patterns in `pattern`, separated
    by commas ("layers.*.mixer.[qv],head"; `*` crosses dots). AdaptError if there is none, with names that are close."""
    known = {name: module for name, module in model.named_modules() if name and isinstance(module, kinds)}
    found = {name: module for name, module in known.items() if matches(name, pattern)}
    if not found:
        raise AdaptError(f"pattern '{pattern}' matches no projection; {nearest(pattern, list(known))}")
    return found


def replace(model: nn.Module, name: str, module: nn.Module) -> None:
    """Replaces the module of that name wherever it is used."""
    old = model.get_submodule(name)
    places = [(parent, leaf) for parent in model.modules() for leaf, child in parent._modules.items() if child is old]
    for parent, leaf in places:
        setattr(parent, leaf, module.train(model.training))


def rewrite(model: nn.Module, found: Mapping[str, Any], make: Callable[[Any], nn.Module]) -> list[str]:
    """Replaces each module by `make(module)`; returns the names."""
    for name, module in found.items():
        replace(model, name, make(module))
    return list(found)
