# SPDX-License-Identifier: Apache-2.0
"""What projections in 8 and in 4 bits have in common: buffers in place of a weight, and the way back."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from foundling.blocks.moe import GroupedLinear


class QuantisedWeight(nn.Module):
    """`weight` holds the codes. `dtype` is what the weight was in, and follows `module.to(dtype)`; the buffers
    `scale_names` stay float32 whatever the model computes in."""

    constant_buffers: ClassVar[bool] = True
    """see train.buffers"""
    scale_names: ClassVar[tuple[str, ...]]
    weight: Tensor
    dtype: torch.dtype

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        scales = {name: getattr(self, name) for name in self.scale_names}
        super()._apply(fn, recurse)
        for name, tensor in scales.items():
            if getattr(self, name).dtype != torch.float32:
                setattr(self, name, tensor.to(getattr(self, name).device))
        self.dtype = fn(torch.empty(0, dtype=self.dtype, device=self.weight.device)).dtype
        return self

    def dequantized_weight(self) -> Tensor:
        """In float32, before it is rounded to the type that the weight was in."""
        raise NotImplementedError

    def dequantized(self) -> Any:
        """A plain projection with the rounded weight."""
        raise NotImplementedError


class QuantisedLinear(QuantisedWeight):
    """Stands in place of a Linear; only its input gets a gradient."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.dtype = linear.weight.dtype
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.bias = None if linear.bias is None else nn.Parameter(linear.bias.detach(), requires_grad=False)

    def product(self, x: Tensor) -> Tensor:
        """x Wᵀ"""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        y = self.product(x)
        return y if self.bias is None else y + self.bias.to(y.dtype)

    def dequantized(self) -> nn.Linear:
        linear = nn.Linear(self.in_features, self.out_features, bias=self.bias is not None, device="meta")
        linear.weight = nn.Parameter(self.dequantized_weight().to(self.dtype))
        if self.bias is not None:
            linear.bias = nn.Parameter(self.bias.detach().clone())
        return linear


class QuantisedGroupedLinear(QuantisedWeight):
    """QuantisedLinear for experts."""

    def __init__(self, linear: GroupedLinear) -> None:
        super().__init__()
        self.dtype = linear.weight.dtype
        self.n_experts, self.in_features, self.out_features = linear.n_experts, linear.in_features, linear.out_features

    def dequantized(self) -> GroupedLinear:
        with torch.device("meta"):
            linear = GroupedLinear(self.n_experts, self.in_features, self.out_features)
        linear.weight = nn.Parameter(self.dequantized_weight().to(self.dtype))
        return linear
