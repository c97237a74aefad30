# SPDX-License-Identifier: Apache-2.0
"""Finding modules by name pattern and putting others in their place."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from foundling.config import nearest
from foundling.errors import AdaptError


def matching(model: nn.Module, pattern: str, kinds: tuple[type[nn.Module], ...]) -> dict[str, nn.Module]:
    """Name -> module, for modules of the kinds whose name matches any of the shell patterns in `pattern`, parted by
    commas ("layers.*.mixer.[qv],head"; `*` crosses dots). AdaptError if there is none, with names that are close."""
    patterns = [part.strip() for part in pattern.split(",")]
    known = {name: module for name, module in model.named_modules() if isinstance(module, kinds)}
    found = {n: m for n, m in known.items() if any(fnmatch.fnmatchcase(n, p) for p in patterns)}
    if not found:
        raise AdaptError(f"pattern '{pattern}' matches no projection; {nearest(pattern, list(known))}")
    return found


def replace(model: nn.Module, name: str, module: nn.Module) -> None:
    path, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(path), leaf, module.train(model.training))


def rewrite(model: nn.Module, found: Mapping[str, Any], make: Callable[[Any], nn.Module]) -> list[str]:
    """Each module by what `make` makes of it; returns the names."""
    for name, module in found.items():
        replace(model, name, make(module))
    return list(found)
