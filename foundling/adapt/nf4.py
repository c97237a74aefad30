# SPDX-License-Identifier: Apache-2.0
"""4-bit NormalFloat weights with scales quantised in turn (Dettmers et al. 2023, QLoRA, section 3): 4.13 bits a
weight."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from foundling.adapt.quantised import QuantisedGroupedLinear, QuantisedLinear, QuantisedWeight
from foundling.blocks.mask import compute_dtype
from foundling.blocks.moe import GroupedLinear, grouped_mm

BLOCK = 64
"""weights that share a scale"""
SCALES = 256
"""scales that share a scale of their own"""
LEVELS = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
"""Appendix E: quantiles of a normal distribution, normalised to [−1, 1], one of them exactly zero."""
Packed = tuple[Tensor, Tensor, Tensor, Tensor]
"""codes (n / 2,) uint8, two weights each, the first in the high bits; scales (n / BLOCK,) uint8; scales of scales
(n / BLOCK / SCALES,) float32; mean () float32 of the scales, which quantisation takes away first"""


def to_nf4(weight: Tensor) -> Packed:
    """Weights of any shape, in the order of their memory; the last block is filled with zeros."""
    flat = weight.detach().float().flatten()
    blocks = F.pad(flat, (0, -len(flat) % BLOCK)).view(-1, BLOCK)
    largest = blocks.abs().amax(1)
    mean = _mean(largest)
    groups = F.pad(largest - mean, (0, -len(largest) % SCALES)).view(-1, SCALES)
    step = groups.abs().amax(1, keepdim=True) / 127
    step = torch.where(step >= torch.finfo(step.dtype).tiny, step, 1.0)
    scales = ((groups / step).round() + 128).to(torch.uint8).flatten()[: len(largest)].clone()
    packed = (scales, step[:, 0].clone(), mean)
    # by the scales as they will be read, so that their own rounding is no further error
    levels = torch.tensor(LEVELS, device=flat.device)
    borders = (levels[1:] + levels[:-1]) / 2
    codes = torch.empty(blocks.shape, dtype=torch.uint8, device=flat.device)
    for rows in range(0, len(blocks), 1 << 16):  # bucketize makes 8 bytes of each weight
        part = slice(rows, rows + (1 << 16))
        divisor = _scales(*packed)[part, None]
        ratios = torch.where(divisor > 0, blocks[part] / divisor, 0.0)
        codes[part] = torch.bucketize(ratios, borders).to(torch.uint8)
    pairs = codes.view(-1, 2)
    return (pairs[:, 0] << 4 | pairs[:, 1], *packed)


def _mean(values: Tensor) -> Tensor:
    """() of (n,), halves added to each other: the same bits on any number of threads, as `mean` has not."""
    n = len(values)
    total = F.pad(values, (0, (1 << (n - 1).bit_length()) - n))
    while len(total) > 1:
        total = total[: len(total) // 2] + total[len(total) // 2 :]
    return total[0] / n


def _scales(scales: Tensor, steps: Tensor, mean: Tensor) -> Tensor:
    """(n / BLOCK,) float32"""
    centred = scales.float() - 128
    return centred.mul_(steps.repeat_interleave(SCALES)[: len(centred)]).add_(mean).clamp_(min=0)


def from_nf4(packed: Packed, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """The weights in `dtype`. Both of a byte come from a table of 256 pairs."""
    codes, *scales = packed
    table = _pairs(dtype, codes.device)
    if dtype.itemsize == 2:  # a pair of two-byte numbers is one number of four bytes
        flat = table.view(torch.int32).flatten().index_select(0, codes.int()).view(dtype)
    else:
        flat = table.index_select(0, codes.int())
    flat = flat.view(-1, BLOCK).mul_(_scales(*scales).to(dtype)[:, None]).flatten()
    return flat[: math.prod(shape)].view(shape)


def _pairs(dtype: torch.dtype, device: torch.device) -> Tensor:
    """(256, 2): the levels of the two halves of a byte"""
    levels = torch.tensor(LEVELS, dtype=dtype, device=device)
    return torch.stack((levels.repeat_interleave(16), levels.repeat(16)), dim=1).contiguous()


class _Product(torch.autograd.Function):
    """x Wᵀ; the backward pass unpacks the weight again: autograd would store the floats of every layer."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, shape: torch.Size, ends: Tensor | None, *packed: Tensor) -> Tensor:
        ctx.save_for_backward(ends, *packed)
        ctx.shape = shape
        weight = from_nf4(packed, shape, x.dtype)  # pyright: ignore[reportArgumentType]
        return F.linear(x, weight) if ends is None else grouped_mm(x, weight, ends)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        ends, *packed = ctx.saved_tensors
        weight = from_nf4(packed, ctx.shape, grad.dtype).mT  # pyright: ignore[reportArgumentType]
        grad_x = F.linear(grad, weight) if ends is None else grouped_mm(grad, weight, ends)
        return grad_x, *[None] * (2 + len(packed))


class NF4Weight(QuantisedWeight):
    scale_names: ClassVar[tuple[str, ...]] = ("steps", "mean")
    """the scales of scales"""
    scales: Tensor
    steps: Tensor
    mean: Tensor

    def pack(self, weight: Tensor) -> None:
        self.shape = weight.shape
        for name, tensor in zip(("weight", "scales", "steps", "mean"), to_nf4(weight), strict=True):
            self.register_buffer(name, tensor)

    def packed(self) -> Packed:
        return self.weight, self.scales, self.steps, self.mean

    def unpacked(self, dtype: torch.dtype, *packed: Tensor) -> Tensor:
        """The weight in `dtype`, of `packed()`."""
        return from_nf4(packed, self.shape, dtype)  # pyright: ignore[reportArgumentType]

    def dequantized_weight(self) -> Tensor:
        return from_nf4(self.packed(), self.shape, torch.float32)


class NF4Linear(QuantisedLinear, NF4Weight):
    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear)
        self.pack(linear.weight)

    def product(self, x: Tensor) -> Tensor:
        return _Product.apply(x.to(compute_dtype(x)), self.shape, None, *self.packed())  # pyright: ignore


class NF4GroupedLinear(QuantisedGroupedLinear, NF4Weight):
    def __init__(self, linear: GroupedLinear) -> None:
        super().__init__(linear)
        self.pack(linear.weight)

    def forward(self, x: Tensor, ends: Tensor) -> Tensor:
        return _Product.apply(x.to(compute_dtype(x)), self.shape, ends, *self.packed())  # pyright: ignore
