# SPDX-License-Identifier: Apache-2.0
"""LoRA (Hu et al. 2021): freezes the base and learns a product of two low-rank matrices. On a 4-bit base (adapt.nf4),
this is QLoRA (Dettmers et al. 2023)."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foundling.adapt.added import Added, added, freeze_base
from foundling.adapt.frozen import FROZEN
from foundling.adapt.lowrank import PlainWeight, low_rank_product
from foundling.adapt.nf4 import NF4GroupedLinear, NF4Linear
from foundling.adapt.options import ALPHA, RANK
from foundling.adapt.prune import PRUNED
from foundling.adapt.quantised import QuantisedWeight
from foundling.adapt.quantize import Int8GroupedLinear, Int8Linear
from foundling.adapt.rewrite import LAYERS, matching, rewrite
from foundling.blocks.init import Role
from foundling.blocks.moe import GroupedLinear, grouped_mm
from foundling.errors import AdaptError

LINEAR = (nn.Linear, Int8Linear, NF4Linear)
GROUPED = (GroupedLinear, Int8GroupedLinear, NF4GroupedLinear)


@dataclass(frozen=True)
class LoRAOptions:
    pattern: str = LAYERS
    rank: int = RANK
    alpha: float = ALPHA

    def __post_init__(self) -> None:
        if self.rank < 1 or not 0 < self.alpha < math.inf:
            raise AdaptError(f"rank {self.rank} and alpha {self.alpha}: expected at least 1 and a number above 0")


@contextmanager
def without_lora(model: nn.Module) -> Iterator[None]:
    """Inside, the model computes what its base does: a policy's reference needs no second copy of the weights."""
    modules = [module for module in added(model).values() if isinstance(module, LoRA)]
    alphas = [module.alpha for module in modules]
    for module in modules:
        module.alpha = 0.0
    try:
        yield
    finally:
        for module, alpha in zip(modules, alphas, strict=True):
            module.alpha = alpha


def shapes(base: Any, rank: int) -> dict[str, tuple[int, ...]]:
    """Shapes of the adapter of a projection: a (rank, in) and b (out, rank), with a leading dimension for experts."""
    experts = (base.n_experts,) if isinstance(base, GROUPED) else ()
    return {"a": (*experts, rank, base.in_features), "b": (*experts, base.out_features, rank)}


class LoRA(Added):
    """base(x) + alpha / rank · x aᵀ bᵀ; a and b have the floating-point type of the base."""

    own = ("a", "b")
    base: Any

    def __init__(self, base: Any, rank: int, alpha: float) -> None:
        super().__init__()
        self.base, self.rank, self.alpha = base, rank, alpha
        self.in_features, self.out_features = base.in_features, base.out_features
        dtype, device = getattr(base, "dtype", base.weight.dtype), base.weight.device
        sizes = shapes(base, rank)
        self.a = nn.Parameter(torch.zeros(sizes["a"], dtype=dtype, device=device))
        self.b = nn.Parameter(torch.zeros(sizes["b"], dtype=dtype, device=device))

    @property
    def scale(self) -> float:
        return self.alpha / self.rank

    @property
    def weight(self) -> Tensor:
        """(out, in), or (E, out, in): that of the base and its update, for who reads a projection's weight"""
        base = self.base
        weight = base.dequantized_weight().to(base.dtype) if isinstance(base, QuantisedWeight) else base.weight
        return weight + self.scale * self.b @ self.a

    @property
    def bias(self) -> Tensor | None:
        return getattr(self.base, "bias", None)

    def forward(self, x: Tensor, *ends: Tensor) -> Tensor:
        if ends:
            return self.base(x, *ends) + self.scale * grouped_mm(grouped_mm(x, self.a, *ends), self.b, *ends)
        if not any(p.requires_grad for p in self.base.parameters()):  # the product in one gives the base no gradient
            if isinstance(self.base, NF4Linear):
                return low_rank_product(x, self.a, self.b, self.scale, self.base)
            if isinstance(self.base, nn.Linear):
                return low_rank_product(x, self.a, self.b, self.scale, PlainWeight(self.base))
        return self.base(x) + self.scale * F.linear(F.linear(x, self.a), self.b)

    def roles(self) -> dict[str, Role]:
        return {"a": Role("adapter", self.in_features), "b": Role("adapter", self.a.shape[-2])}

    def merged(self) -> nn.Module:
        """A plain projection with the same output, added in float32 and rounded once; the base is left as it is. A
        quantised base is dequantised: its steps are coarser than the learned change. A pruned base becomes dense: the
        change is. AdaptError for a base that `store_frozen` has rounded."""
        if isinstance(self.base, FROZEN):
            raise AdaptError(
                "the frozen weights are rounded; load the base again, load the adapter on it and merge that"
            )
        base = self.base.plain() if isinstance(self.base, PRUNED) else self.base
        quantised = isinstance(base, QuantisedWeight)
        weight = base.dequantized_weight() if quantised else base.weight
        plain = base.dequantized() if quantised else copy.copy(base)
        if not quantised:  # copied but for the weight, which is made anew
            plain._parameters = {n: _copied(p) for n, p in base._parameters.items() if n != "weight"}
        with torch.no_grad():
            total = weight.float() + self.scale * (self.b.float() @ self.a.float())
            plain.weight = nn.Parameter(total.to(self.a.dtype))
        return plain


def _copied(parameter: nn.Parameter | None) -> nn.Parameter | None:
    return None if parameter is None else nn.Parameter(parameter.detach().clone())


def adaptable(model: nn.Module, options: LoRAOptions) -> dict[str, nn.Module]:
    """Name -> projection, for those that match. Raises AdaptError for a model that already has adapters."""
    check_unadapted(model)
    return matching(model, options.pattern, LINEAR + GROUPED)


def check_unadapted(model: nn.Module) -> None:
    """AdaptError for a model that has LoRA modules or a bank of them. A new head, or rows of new tokens, are no
    obstacle."""
    if hasattr(model, "adapter_bank") or any(isinstance(m, LoRA) for m in added(model).values()):
        raise AdaptError("the model already has adapters; merge them first")


def attach(model: Any, ranks: Mapping[str, tuple[int, float]]) -> list[str]:
    """Puts an adapter of (rank, alpha), all zeros, at each named projection, in place, and freezes the model but for
    what adaptations added."""
    names = rewrite(model, {name: name for name in ranks}, lambda name: LoRA(model.get_submodule(name), *ranks[name]))
    freeze_base(model)
    return names


def lora(model: Any, options: LoRAOptions, generator: torch.Generator) -> list[str]:
    """Adds an adapter to every matching projection, in place, freezes all other parameters, and returns the names.

    `b` starts at zero, so the outputs are unchanged at first. Raises AdaptError for a pattern that matches nothing, and
    for a model that already has adapters."""
    names = attach(model, dict.fromkeys(adaptable(model, options), (options.rank, options.alpha)))
    for name in sorted(names):
        a = model.get_submodule(name).a  # pyright: ignore[reportAttributeAccessIssue]
        values = torch.randn(a.shape, generator=generator) * a.shape[-1] ** -0.5  # pyright: ignore
        a.data.copy_(values)  # pyright: ignore
    return names
