# SPDX-License-Identifier: Apache-2.0
"""x Wᵀ + scale · x aᵀ bᵀ of a weight that gets no gradient, in as few passes through memory as it takes."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from foundling.blocks.mask import compute_dtype


def low_rank_product(x: Tensor, a: Tensor, b: Tensor, scale: float, base: Any) -> Tensor:
    """x (…, in), a (rank, in), b (out, rank) -> (…, out). `base` is a projection with `packed()`, the tensors of its
    weight, and `unpacked(dtype, *tensors)`, its weight (out, in): a quantised one is unpacked anew in the backward
    pass, so that autograd stores no floats."""
    x = x.to(compute_dtype(x))
    bias = None if base.bias is None else base.bias.to(x.dtype)
    return _Product.apply(x, a, b, bias, scale, base.unpacked, *base.packed())  # pyright: ignore[reportReturnType]


class _Product(torch.autograd.Function):
    """The second product is added to the first by the product itself, in both directions, and the scale is applied to
    b, the smallest of all: as autograd's own steps, each of them is a pass through the whole output."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, a: Tensor, b: Tensor, bias: Tensor | None, scale: float, unpacked: Any, *packed: Tensor
    ) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        inner = rows @ a.to(x.dtype).mT
        y = F.linear(rows, unpacked(x.dtype, *packed), bias)
        y.addmm_(inner, b.to(x.dtype).mT, alpha=scale)
        ctx.save_for_backward(rows, inner, a, b, *packed)
        ctx.scale, ctx.unpacked = scale, unpacked
        return y.view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        rows, inner, a, b, *packed = ctx.saved_tensors
        shape, grad = grad.shape, grad.reshape(-1, grad.shape[-1])
        by_inner = grad @ b.to(grad.dtype) * ctx.scale
        grad_a, grad_b = by_inner.mT @ rows, grad.mT @ inner * ctx.scale
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = grad @ ctx.unpacked(grad.dtype, *packed)
            grad_x = grad_x.addmm_(by_inner, a.to(grad.dtype)).view(*shape[:-1], -1)
        return grad_x, grad_a.to(a.dtype), grad_b.to(b.dtype), *[None] * (3 + len(packed))


class PlainWeight:
    """A frozen nn.Linear as `low_rank_product` reads it."""

    def __init__(self, linear: nn.Linear) -> None:
        self.linear, self.bias = linear, linear.bias

    def packed(self) -> tuple[Tensor, ...]:
        return (self.linear.weight,)

    @staticmethod
    def unpacked(dtype: torch.dtype, weight: Tensor) -> Tensor:
        return weight.to(dtype)
