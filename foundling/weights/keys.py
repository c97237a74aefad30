# SPDX-License-Identifier: Apache-2.0
"""Tensor names and layouts, both ways, from one table: the published checkpoint's and ours."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from foundling.config import nearest
from foundling.contracts import Key
from foundling.errors import WeightsError

Parts = list[Tensor]
# name -> (on loading, on saving). Each takes and gives a list: `split` makes one tensor as many as there are targets.
TRANSFORMS: dict[str, tuple[Callable[[Parts, int], Parts], Callable[[Parts, int], Parts]]] = {
    "transpose": (lambda p, n: [t.T for t in p], lambda p, n: [t.T for t in p]),
    "split": (lambda p, n: list(p[0].chunk(n)), lambda p, n: [torch.cat(p)]),
}


def _pattern(name: str) -> re.Pattern[str]:
    return re.compile(re.escape(name).replace(r"\{i\}", r"(\d+)") + r"\Z")


def names(keys: list[Key], ours: Iterable[str]) -> dict[str, tuple[Key, tuple[str, ...]]]:
    """published name -> (entry, our names) for a model that has the tensors `ours`."""
    table = {}
    present = set(ours)
    for key in keys:
        first = _pattern(key.targets[0])
        for name in present:
            if match := first.match(name):
                layer = match.group(1) if match.groups() else ""
                table[key.theirs.replace("{i}", layer)] = (key, tuple(t.replace("{i}", layer) for t in key.targets))
    covered = {name for _, targets in table.values() for name in targets}
    assert covered == present, f"KEYS leave out {sorted(present - covered)[:3]}"
    return table


def to_ours(key: Key, tensor: Tensor) -> Parts:
    parts = [tensor]
    for transform in key.transforms:
        parts = TRANSFORMS[transform][0](parts, len(key.targets))
    return parts


def to_theirs(key: Key, parts: Parts) -> Tensor:
    for transform in reversed(key.transforms):
        parts = TRANSFORMS[transform][1](parts, len(key.targets))
    (tensor,) = parts
    return tensor.contiguous()


def theirs_shape(key: Key, shapes: list[torch.Size]) -> tuple[int, ...]:
    """The published shape that our shapes ask for, before anything is allocated."""
    return tuple(to_theirs(key, [torch.empty(s, device="meta") for s in shapes]).shape)


def unknown(name: str, known: Iterable[str], file: str) -> WeightsError:
    return WeightsError(f"{file}: unknown tensor '{name}'; {nearest(name, list(known))}")
