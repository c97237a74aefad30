# SPDX-License-Identifier: Apache-2.0
"""LoRA (Hu et al. 2021): freezes the base and learns a product of two low-rank matrices. On an int8 base, this is QLoRA
(Dettmers et al. 2023)."""

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
    """Shapes of the adapter of a projection: a (rank, in) and b (out, rank), with a leading dimension for experts."""
    experts = (base.n_experts,) if isinstance(base, GROUPED) else ()
    return {"a": (*experts, rank, base.in_features), "b": (*experts, base.out_features, rank)}


class LoRA(nn.Module):
    """base(x) + alpha / rank · x aᵀ bᵀ; a and b have the floating-point type of the base."""

    def __init__(self, base: Any, options: LoRAOptions) -> None:
        super().__init__()
        self.base, self.scale = base, options.alpha / options.rank
        self.in_features, self.out_features = base.in_features, base.out_features
        dtype, device = base.dtype if isinstance(base, INT8) else base.weight.dtype, base.weight.device
        sizes = shapes(base, options.rank)
        self.a = nn.Parameter(torch.zeros(sizes["a"], dtype=dtype, device=device))
        self.b = nn.Parameter(torch.zeros(sizes["b"], dtype=dtype, device=device))

    def forward(self, x: Tensor, *ends: Tensor) -> Tensor:
        if ends:
            return self.base(x, *ends) + self.scale * grouped_mm(grouped_mm(x, self.a, *ends), self.b, *ends)
        return self.base(x) + self.scale * F.linear(F.linear(x, self.a), self.b)

    def roles(self) -> dict[str, Role]:
        return {"a": Role("adapter", self.in_features), "b": Role("adapter", self.a.shape[-2])}

    def merged(self) -> nn.Module:
        """A plain projection with the same output, added in float32 and rounded once. An int8 base is dequantised:
        its steps are coarser than the learned change."""
        base = self.base.dequantized() if isinstance(self.base, INT8) else self.base
        weight = self.base.weight * self.base.scale if isinstance(self.base, INT8) else self.base.weight
        with torch.no_grad():
            total = weight.float() + self.scale * (self.b.float() @ self.a.float())
            base.weight = nn.Parameter(total.to(base.weight.dtype))
        return base


def adaptable(model: nn.Module, options: LoRAOptions) -> dict[str, nn.Module]:
    """Name -> projection, for those that match. Raises AdaptError for a model that already has adapters."""
    if hasattr(model, "adapter_bank") or any(isinstance(m, LoRA) for m in model.modules()):
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


def merge(model: Any) -> list[str]:
    """Merges every adapter into its base, in place, makes all parameters trainable, and returns the names. Unties a
    tied head that has an adapter. Raises AdaptError if there is no adapter."""
    matched = {name: m for name, m in model.named_modules() if isinstance(m, LoRA)}
    if not matched:
        raise AdaptError("the model has no adapters to merge")
    names = rewrite(model, matched, lambda m: m.merged())
    model.requires_grad_(True)
    del model.lora_options
    tied = getattr(getattr(model, "config", None), "tie_embeddings", False)
    if tied and model.head.weight is not model.embedding.weight:
        model.config = dataclasses.replace(model.config, tie_embeddings=False)
    return names


def adapter_tensors(model: nn.Module) -> dict[str, nn.Parameter]:
    """'<projection>.a' and '.b' -> tensor"""
    matched = {name: m for name, m in model.named_modules() if isinstance(m, LoRA)}
    return {f"{name}.{part}": getattr(m, part) for name, m in matched.items() for part in "ab"}


def base_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers of the base, by their names without adapters; tied ones once."""
    adapters = {name for name, m in model.named_modules() if isinstance(m, LoRA)}

    def base_name(name: str) -> str:
        path, _, leaf = name.rpartition(".")
        outer, _, inner = path.rpartition(".")
        return f"{outer}.{leaf}" if inner == "base" and outer in adapters else name

    adapter_names = adapter_tensors(model).keys()
    named = [*model.named_parameters(), *model.named_buffers()]
    return {base_name(name): t for name, t in named if name not in adapter_names}
