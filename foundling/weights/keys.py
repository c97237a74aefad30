# SPDX-License-Identifier: Apache-2.0
"""Converts tensor names and layouts between published checkpoints and ours, both ways from one table."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from foundling.config import nearest
from foundling.contracts.checkpoint_map import Key
from foundling.errors import WeightsError
from foundling.limits import shown

Parts = list[Tensor]
# name -> (on loading, on saving). Each takes a list of tensors, the number of tensors to return, and the number of
# heads, or one for each part.
Transform = Callable[[Parts, int, Any], Parts]
TRANSFORMS: dict[str, tuple[Transform, Transform]] = {
    "transpose": (lambda p, n, h: [t.mT for t in p], lambda p, n, h: [t.mT for t in p]),
    "split": (lambda p, n, h: list(p[0].chunk(n)), lambda p, n, h: [torch.cat(p)]),
    "split_heads": (
        lambda p, n, h: [t.flatten(0, 1) for t in p[0].unflatten(0, (sum(h), -1)).split(list(h))],
        lambda p, n, h: [torch.cat(p)],
    ),
    "scalar": (lambda p, n, h: [t.reshape(1) for t in p], lambda p, n, h: [t.reshape(()) for t in p]),
    # (1, 1, C) -> (C,)
    "vector": (lambda p, n, h: [t.reshape(-1) for t in p], lambda p, n, h: [t.reshape(1, 1, -1) for t in p]),
    "stack_experts": (lambda p, n, h: [torch.stack(p)], lambda p, n, h: list(p[0].unbind())),
    "split_experts": (lambda p, n, h: list(p[0].chunk(n, dim=1)), lambda p, n, h: [torch.cat(p, dim=1)]),
    # of each expert, rows of the parts by turns
    "interleaved_experts": (
        lambda p, n, h: [p[0][:, part::n] for part in range(n)],
        lambda p, n, h: [torch.stack(p, dim=2).flatten(1, 2)],
    ),
    # RoPE rotates neighbouring rows in their layout, rows half a head apart in ours
    "rope_pairs": (
        lambda p, n, h: [t.unflatten(0, (h, -1, 2)).transpose(1, 2).flatten(0, 2) for t in p],
        lambda p, n, h: [t.unflatten(0, (h, 2, -1)).transpose(1, 2).flatten(0, 2) for t in p],
    ),
    "plus_one": (lambda p, n, h: [t - 1 for t in p], lambda p, n, h: [t + 1 for t in p]),
    # (heads, n parts, P) in one matrix -> each part's (heads, P)
    "qkv_interleave": (
        lambda p, n, h: [t.flatten(0, 1) for t in p[0].unflatten(0, (h, n, -1)).unbind(1)],
        lambda p, n, h: [torch.stack([t.unflatten(0, (h, -1)) for t in p], 1).flatten(0, 2)],
    ),
}


class Link(NamedTuple):
    """Tensors of the published layout and the matching ones of ours."""

    key: Key
    theirs: tuple[str, ...]
    ours: tuple[str, ...]
    heads: Any
    """what the key's field `heads` holds"""

    def to_ours(self, parts: Parts) -> Parts:
        for transform in self.key.transforms:
            parts = TRANSFORMS[transform][0](parts, len(self.ours), self.heads)
        return parts

    def to_theirs(self, parts: Parts) -> Parts:
        for transform in reversed(self.key.transforms):
            parts = TRANSFORMS[transform][1](parts, len(self.theirs), self.heads)
        return [tensor.contiguous() for tensor in parts]

    def theirs_shapes(self, ours: dict[str, Tensor]) -> list[tuple[int, ...]]:
        """The published shapes that match our shapes, computed on the meta device."""
        parts = self.to_theirs([torch.empty(ours[name].shape, device="meta") for name in self.ours])
        return [tuple(part.shape) for part in parts]


def links(keys: list[Key], ours: dict[str, Tensor], config: Any) -> list[Link]:
    """The links for a model with the tensors `ours`; only their names and shapes are read. WeightsError for a tensor
    that the family's layout has no name for."""
    matched = []
    for key in keys:
        pattern = re.compile(re.sub(r"\\{([a-z])\\}", r"(?P<\1>\\d+)", re.escape(key.targets[0])))
        for name, tensor in ours.items():
            if match := pattern.fullmatch(name):
                numbers = match.groupdict()
                if (key.given and _fill(key.given, numbers) not in ours) or _fill(key.unless, numbers) in ours:
                    continue
                indices = [{"e": str(e)} for e in range(tensor.shape[0])] if "{e}" in key.theirs else [{}]
                theirs = tuple(_fill(key.theirs, numbers | index) for index in indices)
                heads = getattr(config, key.heads, 1)
                matched.append(Link(key, theirs, tuple(_fill(t, numbers) for t in key.targets), heads))
    covered = [name for link in matched for name in link.ours]
    if extra := sorted({*ours} - {*covered}):
        raise WeightsError(
            f"'{extra[0]}' has no name in the published layout of this family; remove the module, or save it apart"
        )
    assert len(covered) == len(ours), "KEYS repeat a tensor"
    return matched


def _fill(name: str, numbers: dict[str, str]) -> str:
    for letter, number in numbers.items():
        name = name.replace(f"{{{letter}}}", number)
    return name


def unknown(name: str, known: Iterable[str], file: str) -> WeightsError:
    return WeightsError(f"{file}: unknown tensor {shown(name)}; {nearest(name, list(known))}")
