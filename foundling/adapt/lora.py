# SPDX-License-Identifier: Apache-2.0
"""LoRA (Hu et al. 2021): the base is frozen, and a product of two thin matrices is learned beside it. On an int8 base
this is QLoRA (Dettmers et al. 2023)."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foundling.adapt.quantize import INT8, Int8GroupedLinear, Int8Linear
from foundling.adapt.rewrite import matching, rewrite
from foundling.blocks.init import Role
from foundling.blocks.moe import GroupedLinear, grouped_mm
from foundling.errors import AdaptError

LINEAR = (nn.Linear, Int8Linear)
GROUPED = (GroupedLinear, Int8GroupedLinear)


@dataclass(frozen=True)
class LoRAOptions:
    pattern: str
    rank: int = 8
    alpha: float = 16.0

    def __post_init__(self) -> None:
        if self.rank < 1 or not 0 < self.alpha < math.inf:
            raise AdaptError(f"rank {self.rank} and alpha {self.alpha}: expected at least 1 and a number above 0")


def shapes(base: Any, rank: int) -> dict[str, tuple[int, ...]]:
    """Of the adapter on a projection: a (rank, in) and b (out, rank), with the experts first where there are any."""
    experts = (base.n_experts,) if isinstance(base, GROUPED) else ()
    return {"a": (*experts, rank, base.in_features), "b": (*experts, base.out_features, rank)}


class LoRA(nn.Module):
    """base(x) + alpha / rank · x aᵀ bᵀ; a and b in the type of the base's numbers."""

    def __init__(self, base: Any, options: LoRAOptions) -> None:
        super().__init__()
        self.base, self.scale = base, options.alpha / options.rank
        self.in_features, self.out_features = base.in_features, base.out_features
        like = base.scale if isinstance(base, INT8) else base.weight
        of = shapes(base, options.rank)
        self.a = nn.Parameter(torch.zeros(of["a"], dtype=like.dtype, device=like.device))
        self.b = nn.Parameter(torch.zeros(of["b"], dtype=like.dtype, device=like.device))

    def forward(self, x: Tensor, *ends: Tensor) -> Tensor:
        if ends:
            return self.base(x, *ends) + self.scale * grouped_mm(grouped_mm(x, self.a, *ends), self.b, *ends)
        return self.base(x) + self.scale * F.linear(F.linear(x, self.a), self.b)

    def roles(self) -> dict[str, Role]:
        return {"a": Role("adapter", self.in_features), "b": Role("adapter", self.a.shape[-2])}

    def merged(self) -> nn.Module:
        """A plain projection that computes the same; an int8 base is dequantised, since its steps are coarser than what
        was learned."""
        base = self.base.dequantized() if isinstance(self.base, INT8) else self.base
        with torch.no_grad():
            base.weight = nn.Parameter(base.weight + self.scale * (self.b @ self.a))
        return base


def adaptable(model: nn.Module, options: LoRAOptions) -> dict[str, nn.Module]:
    """Name -> the projections that match. AdaptError for a model that already has adapters."""
    if hasattr(model, "adapter_bank") or any(isinstance(m, LoRA) for m in model.modules()):
        raise AdaptError("the model already has adapters; merge them first")
    return matching(model, options.pattern, LINEAR + GROUPED)


def lora(model: Any, options: LoRAOptions, generator: torch.Generator) -> list[str]:
    """Puts an adapter on every projection that matches, in place, freezes everything else, and returns the names. `b`
    starts at zero, so that the outputs are unchanged at first. AdaptError for a pattern that matches nothing, and for a
    model that already has adapters."""
    found = adaptable(model, options)
    model.requires_grad_(False)
    names = rewrite(model, found, lambda m: LoRA(m, options))
    for name in sorted(names):
        a = model.get_submodule(name).a  # pyright: ignore[reportAttributeAccessIssue]
        drawn = torch.randn(a.shape, generator=generator) * a.shape[-1] ** -0.5  # pyright: ignore
        a.data.copy_(drawn)  # pyright: ignore
    model.lora_options = options
    return names


def merge(model: Any) -> list[str]:
    """Adds every adapter to its base, in place, makes all parameters trainable, and returns the names. AdaptError if
    there is none. A head that was tied to the embedding and has an adapter is untied."""
    found = {name: m for name, m in model.named_modules() if isinstance(m, LoRA)}
    if not found:
        raise AdaptError("the model has no adapters to merge")
    names = rewrite(model, found, lambda m: m.merged())
    model.requires_grad_(True)
    del model.lora_options
    tied = getattr(getattr(model, "config", None), "tie_embeddings", False)
    if tied and model.head.weight is not model.embedding.weight:
        model.config = dataclasses.replace(model.config, tie_embeddings=False)
    return names


def adapter_tensors(model: nn.Module) -> dict[str, nn.Parameter]:
    """'<projection>.a' and '.b' -> tensor"""
    found = {name: m for name, m in model.named_modules() if isinstance(m, LoRA)}
    return {f"{name}.{part}": getattr(m, part) for name, m in found.items() for part in "ab"}


def base_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers of the model without adapters, by their names without them; a tied one once."""
    adapters = {name for name, m in model.named_modules() if isinstance(m, LoRA)}

    def before(name: str) -> str:
        path, _, leaf = name.rpartition(".")
        outer, _, inner = path.rpartition(".")
        return f"{outer}.{leaf}" if inner == "base" and outer in adapters else name

    own = adapter_tensors(model).keys()
    named = [*model.named_parameters(), *model.named_buffers()]
    return {before(name): t for name, t in named if name not in own}
