# SPDX-License-Identifier: Apache-2.0
"""Frozen weights stored in the type that they compute in: half the memory, and no conversion at each use."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foundling.adapt.digest import base_digest
from foundling.adapt.rewrite import rewrite
from foundling.blocks.moe import GroupedLinear, grouped_mm


class FrozenLinear(nn.Linear):
    """A Linear whose weight is stored in the type that autocast computes in; `dtype` is what it was in, the type of
    what is learned beside it. Without autocast it computes in the type of its input, by the rounded weight."""

    dtype: torch.dtype

    def __init__(self, linear: nn.Linear, dtype: torch.dtype) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=False, device="meta")
        self.dtype = linear.weight.dtype
        self.weight = nn.Parameter(linear.weight.detach().to(dtype), requires_grad=False)
        self.bias = linear.bias  # pyright: ignore[reportAttributeAccessIssue]

    def forward(self, x: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return F.linear(x, _weight(self.weight, x), self.bias)


class FrozenGroupedLinear(GroupedLinear):
    """FrozenLinear for experts."""

    dtype: torch.dtype

    def __init__(self, linear: GroupedLinear, dtype: torch.dtype) -> None:
        with torch.device("meta"):
            super().__init__(linear.n_experts, linear.in_features, linear.out_features)
        self.dtype = linear.weight.dtype
        self.weight = nn.Parameter(linear.weight.detach().to(dtype), requires_grad=False)

    def forward(self, x: Tensor, ends: Tensor) -> Tensor:
        return grouped_mm(x, _weight(self.weight, x), ends)


class Rounded(NamedTuple):
    """The base of a rounded model."""

    base_hash: str
    """before it was rounded"""
    digest: str
    """`base_digest` afterwards, by which a later change is seen"""


FROZEN = (FrozenLinear, FrozenGroupedLinear)


def _weight(weight: Tensor, x: Tensor) -> Tensor:
    return weight if torch.is_autocast_enabled(x.device.type) else weight.to(x.dtype)


def store_frozen(model: Any, base_hash: str, dtype: torch.dtype = torch.bfloat16) -> list[str]:
    """Stores the weight of every projection in the layers that gets no gradient as `dtype`, in place, and returns the
    names. Under autocast to `dtype` the outputs stay the same to the bit: it would round the same weights at each use.

    `base_hash` is `weights_hash(model)` before this, by which its adapters are bound to the base. It stays the model's
    hash as long as nothing of the base changes; '' for a model whose hash nobody asks for.
    The rounded model cannot be saved or merged; load the base again, and its adapter, for that."""
    kinds = {nn.Linear: FrozenLinear, GroupedLinear: FrozenGroupedLinear}
    shared = {id(p) for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
    matched = {
        name: m
        for name, m in model.named_modules()
        if type(m) in kinds and "layers." in name and not _router(name) and id(m.weight) not in shared
        and not m.weight.requires_grad and m.weight.dtype != dtype
    }  # fmt: skip
    names = rewrite(model, matched, lambda m: kinds[type(m)](m, dtype))
    if names and base_hash:
        model.rounded = Rounded(base_hash, base_digest(model))
    for p in model.parameters():  # what is mapped from a file keeps all of the file in memory
        if not p.requires_grad:
            p.data = p.data.clone()
    return names


def _router(name: str) -> bool:
    """Routers compute in float32, also under autocast."""
    return name.removesuffix(".base").endswith(".router")
