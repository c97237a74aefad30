# SPDX-License-Identifier: Apache-2.0
"""Weights as 8-bit integers, symmetric with one scale per output channel (Dettmers et al. 2022, section 2.1, of the
weights alone): a quarter of the bytes, activations as they are."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foundling.adapt.rewrite import matching, rewrite
from foundling.blocks.moe import GroupedLinear, grouped_mm
from foundling.errors import AdaptError


def to_int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """(…, out, in) -> int8 alike and scale (…, out, 1) float32, with |weight − int8 · scale| ≤ scale / 2."""
    weight = weight.detach().float()
    scale = weight.abs().amax(-1, keepdim=True) / 127
    scale = torch.where(scale > 0, scale, 1.0)
    return (weight / scale).round().to(torch.int8), scale


class Int8Linear(nn.Module):
    """x @ (int8 · scale)ᵀ + bias, the scale applied to the result; gradients pass to x alone."""

    weight: Tensor
    scale: Tensor

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        weight, scale = to_int8(linear.weight)
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale)
        self.bias = None if linear.bias is None else nn.Parameter(linear.bias.detach(), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        y = F.linear(x, self.weight.to(x.dtype)) * self.scale[:, 0].to(x.dtype)
        return y if self.bias is None else y + self.bias.to(y.dtype)

    def dequantized(self) -> nn.Linear:
        linear = nn.Linear(self.in_features, self.out_features, bias=self.bias is not None, device="meta")
        linear.weight = nn.Parameter(self.weight * self.scale)
        if self.bias is not None:
            linear.bias = nn.Parameter(self.bias.detach().clone())
        return linear


class Int8GroupedLinear(nn.Module):
    """The same of experts, each with its own scales."""

    weight: Tensor
    scale: Tensor

    def __init__(self, linear: GroupedLinear) -> None:
        super().__init__()
        self.n_experts, self.in_features, self.out_features = linear.n_experts, linear.in_features, linear.out_features
        weight, scale = to_int8(linear.weight)
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale)

    def forward(self, x: Tensor, ends: Tensor) -> Tensor:
        expert = torch.searchsorted(ends, torch.arange(len(x), device=x.device, dtype=ends.dtype), right=True)
        return grouped_mm(x, self.weight.to(x.dtype), ends) * self.scale[expert, :, 0].to(x.dtype)

    def dequantized(self) -> GroupedLinear:
        linear = GroupedLinear(self.n_experts, self.in_features, self.out_features)
        linear.weight = nn.Parameter(self.weight * self.scale)
        return linear


def quantize(model: nn.Module, pattern: str = "*layers.*") -> list[str]:
    """Every Linear and GroupedLinear that matches becomes int8, in place; the names. AdaptError for a weight that is
    also an embedding's: as integers it could not be looked up."""
    found = matching(model, pattern, (nn.Linear, GroupedLinear))
    tables = {id(m.weight): name for name, m in model.named_modules() if isinstance(m, nn.Embedding)}
    for name, module in found.items():
        if id(module.weight) in tables:
            raise AdaptError(
                f"'{name}' shares its weight with '{tables[id(module.weight)]}'; leave it out of the pattern"
            )
    return rewrite(model, found, lambda m: Int8Linear(m) if isinstance(m, nn.Linear) else Int8GroupedLinear(m))  # pyright: ignore


def dequantize(model: nn.Module) -> list[str]:
    """Every int8 projection becomes an ordinary one again, with the rounded weights."""
    kinds = (Int8Linear, Int8GroupedLinear)
    found = {name: m for name, m in model.named_modules() if isinstance(m, kinds)}
    return rewrite(model, found, lambda m: m.dequantized())
