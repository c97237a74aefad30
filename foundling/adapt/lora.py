# SPDX-License-Identifier: Apache-2.0
"""LoRA (Hu et al. 2021): freezes the base and learns a product of two low-rank matrices. On a 4-bit base (adapt.nf4),
this is QLoRA (Dettmers et al. 2023)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foundling.adapt.added import Added, added
from foundling.adapt.frozen import FROZEN
from foundling.adapt.lowrank import PlainWeight, low_rank_product
from foundling.adapt.nf4 import NF4GroupedLinear, NF4Linear
from foundling.adapt.quantize import QUANTISED, Int8GroupedLinear, Int8Linear
from foundling.adapt.rewrite import matching, rewrite
from foundling.blocks.init import Role
from foundling.blocks.moe import GroupedLinear, grouped_mm
from foundling.errors import AdaptError

LINEAR = (nn.Linear, Int8Linear, NF4Linear)
GROUPED = (GroupedLinear, Int8GroupedLinear, NF4GroupedLinear)


@dataclass(frozen=True)
class LoRAOptions:
    pattern: str
    rank: int = 8
    alpha: float = 16.0

    def __post_init__(self) -> None:
        if self.rank < 1 or not 0 < self.alpha < math.inf:
            raise AdaptError(f"rank {self.rank} and alpha {self.alpha}: expected at least 1 and a number above 0")


def shapes(base: Any, rank: int) -> dict[str, tuple[int, ...]]:
    """Shapes of the adapter of a projection: a (rank, in) and b (out, rank), with a leading dimension for experts."""
    experts = (base.n_experts,) if isinstance(base, GROUPED) else ()
    return {"a": (*experts, rank, base.in_features), "b": (*experts, base.out_features, rank)}


class LoRA(Added):
    """base(x) + alpha / rank · x aᵀ bᵀ; a and b have the floating-point type of the base."""

    own = ("a", "b")
    base: Any

    def __init__(self, base: Any, options: LoRAOptions) -> None:
        super().__init__()
        self.base, self.scale = base, options.alpha / options.rank
        self.in_features, self.out_features = base.in_features, base.out_features
        dtype, device = getattr(base, "dtype", base.weight.dtype), base.weight.device
        sizes = shapes(base, options.rank)
        self.a = nn.Parameter(torch.zeros(sizes["a"], dtype=dtype, device=device))
        self.b = nn.Parameter(torch.zeros(sizes["b"], dtype=dtype, device=device))

    def forward(self, x: Tensor, *ends: Tensor) -> Tensor:
        if ends:
            return self.base(x, *ends) + self.scale * grouped_mm(grouped_mm(x, self.a, *ends), self.b, *ends)
        if isinstance(self.base, NF4Linear):
            return low_rank_product(x, self.a, self.b, self.scale, self.base)
        if isinstance(self.base, nn.Linear) and not any(p.requires_grad for p in self.base.parameters()):
            return low_rank_product(x, self.a, self.b, self.scale, PlainWeight(self.base))
        return self.base(x) + self.scale * F.linear(F.linear(x, self.a), self.b)

    def roles(self) -> dict[str, Role]:
        return {"a": Role("adapter", self.in_features), "b": Role("adapter", self.a.shape[-2])}

    def merged(self) -> nn.Module:
        """A plain projection with the same output, added in float32 and rounded once. A quantised base is dequantised:
        its steps are coarser than the learned change. AdaptError for a base that `store_frozen` has rounded."""
        if isinstance(self.base, FROZEN):
            raise AdaptError(
                "the frozen weights are stored in a shorter type; load the base again and its adapter, and merge that"
            )
        base = self.base.dequantized() if isinstance(self.base, QUANTISED) else self.base
        weight = self.base.dequantized_weight() if isinstance(self.base, QUANTISED) else self.base.weight
        with torch.no_grad():
            total = weight.float() + self.scale * (self.b.float() @ self.a.float())
            base.weight = nn.Parameter(total.to(base.weight.dtype))
        return base


def adaptable(model: nn.Module, options: LoRAOptions) -> dict[str, nn.Module]:
    """Name -> projection, for those that match. Raises AdaptError for a model that already has adapters."""
    if hasattr(model, "adapter_bank") or added(model):
        raise AdaptError("the model already has adapters; merge them first")
    return matching(model, options.pattern, LINEAR + GROUPED)


def lora(model: Any, options: LoRAOptions, generator: torch.Generator) -> list[str]:
    """Adds an adapter to every matching projection, in place, freezes all other parameters, and returns the names.

    `b` starts at zero, so the outputs are unchanged at first. Raises AdaptError for a pattern that matches nothing, and
    for a model that already has adapters."""
    matched = adaptable(model, options)
    model.requires_grad_(False)
    names = rewrite(model, matched, lambda m: LoRA(m, options))
    for name in sorted(names):
        a = model.get_submodule(name).a  # pyright: ignore[reportAttributeAccessIssue]
        values = torch.randn(a.shape, generator=generator) * a.shape[-1] ** -0.5  # pyright: ignore
        a.data.copy_(values)  # pyright: ignore
    model.lora_options = options
    return names
