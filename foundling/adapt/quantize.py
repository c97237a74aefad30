# SPDX-License-Identifier: Apache-2.0
"""Quantises weights, not activations, to symmetric 8-bit integers with one scale per output channel (Dettmers et al.
2022, section 2.1): a quarter of the bytes."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd.function import once_differentiable

from foundling.adapt.added import added
from foundling.adapt.frozen import FROZEN
from foundling.adapt.nf4 import NF4GroupedLinear, NF4Linear, NF4Weight
from foundling.adapt.quantised import QuantisedGroupedLinear, QuantisedLinear, QuantisedWeight
from foundling.adapt.rewrite import LAYERS, matching, rewrite
from foundling.blocks.moe import GroupedLinear, grouped_mm
from foundling.errors import AdaptError


def to_int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """(…, out, in) -> int8 of the same shape and scale (…, out, 1) float32, with |weight − int8 · scale| ≤ scale /
    2."""
    weight = weight.detach().float()
    scale = weight.abs().amax(-1, keepdim=True) / 127
    scale = torch.where(
        scale >= torch.finfo(scale.dtype).tiny, scale, 1.0
    )  # with a subnormal scale, a quotient could exceed 127
    return (weight / scale).round().to(torch.int8), scale


class _Product(torch.autograd.Function):
    """x @ (int8 · scale)ᵀ, with the scale applied to the result. The backward pass converts the weight to float again:
    autograd would store the floats of every layer and save no memory."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, scale: Tensor, ends: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight, scale, ends)
        return _multiply(x, weight, ends) * _scales(scale, ends, x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        weight, scale, ends = ctx.saved_tensors
        return _multiply(grad * _scales(scale, ends, grad), weight.mT, ends), None, None, None


def _multiply(x: Tensor, weight: Tensor, ends: Tensor | None) -> Tensor:
    floats = weight.to(x.dtype)
    if (unit := _unit(x.dtype)) > 1:
        floats = floats / unit
    return F.linear(x, floats) if ends is None else grouped_mm(x, floats, ends)


def _unit(dtype: torch.dtype) -> int:
    """The integers of float16 are multiples of 1/128, exactly: sums of numbers up to 127 would pass 65,504, and scales
    of small weights lose digits."""
    return 128 if dtype == torch.float16 else 1


def _scales(scale: Tensor, ends: Tensor | None, reference: Tensor) -> Tensor:
    """(out,), or (n, out) for rows sorted by expert"""
    scale = scale * _unit(reference.dtype)
    if ends is None:
        return scale[:, 0].to(reference.dtype)
    rows = torch.arange(len(reference), device=reference.device, dtype=ends.dtype)
    return scale[torch.searchsorted(ends, rows, right=True), :, 0].to(reference.dtype)


def int8_product(x: Tensor, weight: Tensor, scale: Tensor, ends: Tensor | None = None) -> Tensor:
    """x (…, in), weight (out, in), scale (out, 1) -> (…, out); `ends` as in GroupedLinear. Under
    autocast it computes in the autocast type, which represents int8 exactly."""
    if torch.is_autocast_enabled(x.device.type):
        x = x.to(torch.get_autocast_dtype(x.device.type))
    return _Product.apply(x, weight, scale, ends)  # pyright: ignore[reportReturnType]


class Int8Weight(QuantisedWeight):
    scale_names: ClassVar[tuple[str, ...]] = ("scale",)
    scale: Tensor

    def pack(self, weight: Tensor) -> None:
        integers, scale = to_int8(weight)
        self.register_buffer("weight", integers)
        self.register_buffer("scale", scale)

    def dequantized_weight(self) -> Tensor:
        return self.weight * self.scale


class Int8Linear(QuantisedLinear, Int8Weight):
    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear)
        self.pack(linear.weight)

    def product(self, x: Tensor) -> Tensor:
        return int8_product(x, self.weight, self.scale)


class Int8GroupedLinear(QuantisedGroupedLinear, Int8Weight):
    """Each expert has its own scales."""

    def __init__(self, linear: GroupedLinear) -> None:
        super().__init__(linear)
        self.pack(linear.weight)

    def forward(self, x: Tensor, ends: Tensor) -> Tensor:
        return int8_product(x, self.weight, self.scale, ends)


Kind = Literal["int8", "nf4"]
_LINEAR: dict[str, Any] = {"int8": Int8Linear, "nf4": NF4Linear}
_GROUPED: dict[str, Any] = {"int8": Int8GroupedLinear, "nf4": NF4GroupedLinear}


def quantize(model: nn.Module, pattern: str = LAYERS, kind: Kind = "int8") -> list[str]:
    """Converts every matching Linear and GroupedLinear to 8 bits a weight, or to 4 (`nf4`, see adapt.nf4), in place,
    and returns the names.

    Raises AdaptError, before any change, for an unknown kind, and a weight that is tied to an embedding (which needs
    floats), already rounded to a shorter type, or not finite (which the integers would hide)."""
    if kind not in _LINEAR:
        raise AdaptError(f"kind is {kind!r}; expected one of {', '.join(_LINEAR)}")
    matched = matching(model, pattern, (nn.Linear, GroupedLinear))
    embeddings = {id(m.weight): name for name, m in model.named_modules() if isinstance(m, nn.Embedding)}
    for name, module in matched.items():
        if id(module.weight) in embeddings:
            raise AdaptError(
                f"'{name}' shares its weight with '{embeddings[id(module.weight)]}'; leave it out of the pattern"
            )
        if isinstance(module, FROZEN):
            raise AdaptError(f"the weight of '{name}' is stored rounded; load the base again and quantize that")
        if _has_values(module.weight) and not module.weight.isfinite().all():  # pyright: ignore
            raise AdaptError(f"'{name}' has weights that are not finite; load an undamaged model")
    return rewrite(model, matched, lambda m: (_LINEAR if isinstance(m, nn.Linear) else _GROUPED)[kind](m))


def _has_values(tensor: Any) -> bool:
    return not tensor.is_meta and not isinstance(tensor.data, FakeTensor)


def quantized_kind(model: nn.Module) -> Kind | None:
    """How the model is quantised; None if it is not."""
    kinds = {type(m) for m in model.modules() if isinstance(m, QuantisedWeight)}
    if not kinds:
        return None
    return "nf4" if any(issubclass(kind, NF4Weight) for kind in kinds) else "int8"


def dequantize(model: nn.Module) -> list[str]:
    """Makes every quantised projection a plain one again, with the rounded weights, frozen where the model has
    adapters, and returns the names."""
    matched = {name: m for name, m in model.named_modules() if isinstance(m, QuantisedWeight)}
    frozen = bool(added(model))
    return rewrite(model, matched, lambda m: m.dequantized().requires_grad_(not frozen))
