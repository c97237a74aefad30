# SPDX-License-Identifier: Apache-2.0
"""Pruning by magnitude (Han et al. 2015), unstructured or two of each four (Mishra et al. 2021), and training in which
the zeros stay. A mask is not saved, since the zeros say it: a pruned model is saved, loaded and hashed as any other."""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foundling.adapt.added import added
from foundling.adapt.rewrite import matching, rewrite
from foundling.blocks.moe import GroupedLinear, grouped_mm
from foundling.errors import AdaptError

MAX_SHARE = 0.99


@dataclass(frozen=True)
class PruneOptions:
    """AdaptError for a value out of range."""

    share: float = 0.5
    """share of the weights that become zero"""
    structure: Literal["none", "2:4"] = "none"
    """2:4: the two smallest of each four neighbours along the input become zero, half of all"""
    scope: Literal["matrix", "global"] = "matrix"
    """matrix: the share is of each matrix; global: of all together, so that matrices of small weights lose more"""
    pattern: str = "*layers.*"
    """names of the projections"""

    def __post_init__(self) -> None:
        if not 0 <= self.share <= MAX_SHARE:
            raise AdaptError(f"'share' is {self.share}, expected 0 to {MAX_SHARE}")
        if self.structure not in ("none", "2:4"):
            raise AdaptError(f"'structure' is {self.structure!r}; use 'none' or '2:4'")
        if self.scope not in ("matrix", "global"):
            raise AdaptError(f"'scope' is {self.scope!r}; use 'matrix' or 'global'")
        if self.structure == "2:4" and self.share != 0.5:
            raise AdaptError(f"'share' is {self.share}, which 2:4 cannot have: two of four are half")


class PrunedLinear(nn.Linear):
    """A projection whose zeros stay zero: they get no gradient, and the optimiser sets them back (`masks`). `mask`
    (out, in) int8 is 0 where the weight stays zero."""

    constant_buffers: ClassVar[bool] = True
    mask: Tensor

    def __init__(self, linear: nn.Linear, mask: Tensor) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=linear.bias is not None, device="meta")
        self.weight, self.bias = linear.weight, linear.bias
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, x: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return F.linear(x, self.weight * self.mask, self.bias)

    def plain(self) -> nn.Linear:
        linear = nn.Linear(self.in_features, self.out_features, bias=self.bias is not None, device="meta")
        linear.weight, linear.bias = self.weight, self.bias
        return linear


class PrunedGroupedLinear(GroupedLinear):
    """PrunedLinear for experts; `mask` is (E, out, in)."""

    constant_buffers: ClassVar[bool] = True
    mask: Tensor

    def __init__(self, linear: GroupedLinear, mask: Tensor) -> None:
        with torch.device("meta"):
            super().__init__(linear.n_experts, linear.in_features, linear.out_features)
        self.weight = linear.weight
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, x: Tensor, ends: Tensor) -> Tensor:
        return grouped_mm(x, self.weight * self.mask, ends)

    def plain(self) -> GroupedLinear:
        with torch.device("meta"):
            linear = GroupedLinear(self.n_experts, self.in_features, self.out_features)
        linear.weight = self.weight
        return linear


PRUNED = (PrunedLinear, PrunedGroupedLinear)


def prune(model: nn.Module, options: PruneOptions) -> list[str]:
    """Sets the smallest weights of every matching Linear and GroupedLinear to zero, in place, makes them stay zero in
    training, and returns the names. Exactly round(share · numbers) become zero; of equal ones, the first.

    AdaptError, before any change, for a pattern that matches nothing, a model with adapters, a weight that is tied to
    an embedding or not finite, and, for 2:4, an input that is no multiple of four."""
    matched = _prunable(model, options.pattern)
    weights = {name: m.weight for name, m in matched.items()}
    for name, weight in weights.items():
        if not weight.isfinite().all():
            raise AdaptError(f"'{name}' has weights that are not finite; load an undamaged model")
        if options.structure == "2:4" and weight.shape[-1] % 4:
            raise AdaptError(f"'{name}' has {weight.shape[-1]} inputs, no multiple of 4; leave it out of the pattern")
    with torch.no_grad():
        if options.structure == "2:4":
            removed = {name: two_of_four(weight) for name, weight in weights.items()}
        elif options.scope == "matrix":
            removed = {name: smallest(weight.abs(), options.share) for name, weight in weights.items()}
        else:
            together = torch.cat([weight.float().abs().flatten() for weight in weights.values()])
            parts = smallest(together, options.share).split([weight.numel() for weight in weights.values()])
            removed = {name: part.view(weights[name].shape) for name, part in zip(weights, parts, strict=True)}
        for name, weight in weights.items():
            weight.masked_fill_(removed[name], 0.0)
    return _replace(model, matched, removed)


def keep_zeros(model: nn.Module, pattern: str = "*layers.*") -> list[str]:
    """Makes the zeros of every matching projection that has some stay zero in training: what to call on a pruned model
    that was loaded. A matrix of zeros alone was not pruned but starts so, and is left out. Returns the names."""
    matched = _prunable(model, pattern)
    zeros = {name: m.weight.detach() == 0 for name, m in matched.items()}
    pruned = {name: m for name, m in matched.items() if zeros[name].any() and not zeros[name].all()}
    return _replace(model, pruned, zeros)


def _prunable(model: nn.Module, pattern: str) -> dict[str, Any]:
    if added(model):
        raise AdaptError("the model has adapters; prune it before they are added, or merge them first")
    matched: dict[str, Any] = matching(model, pattern, (nn.Linear, GroupedLinear))
    embeddings = {id(m.weight): name for name, m in model.named_modules() if isinstance(m, nn.Embedding)}
    for name, module in matched.items():
        if id(module.weight) in embeddings:
            raise AdaptError(
                f"'{name}' shares its weight with '{embeddings[id(module.weight)]}'; leave it out of the pattern"
            )
    return matched


def _replace(model: nn.Module, matched: dict[str, Any], zeros: dict[str, Tensor]) -> list[str]:
    by_module = {id(m): (~zeros[name]).to(torch.int8) for name, m in matched.items()}

    def make(module: Any) -> nn.Module:
        mask = by_module[id(module)]
        return PrunedLinear(module, mask) if isinstance(module, nn.Linear) else PrunedGroupedLinear(module, mask)

    return rewrite(model, matched, make)


def finish(model: nn.Module) -> list[str]:
    """Makes every pruned projection a plain one with exact zeros, in place, and returns the names. The model can be
    saved without; further training would fill the zeros."""
    matched = {name: m for name, m in model.named_modules() if isinstance(m, PRUNED)}
    return rewrite(model, matched, lambda m: m.plain())


def masks(model: nn.Module) -> dict[str, Tensor]:
    """Parameter name -> its mask, of every pruned projection: what an optimiser applies after a step."""
    return {f"{name}.weight": m.mask for name, m in model.named_modules() if isinstance(m, PRUNED)}


def smallest(magnitudes: Tensor, share: float) -> Tensor:
    """bool of the same shape: round(share · numbers) of the smallest, and of equal ones the first."""
    flat = magnitudes.flatten()
    n = round(share * flat.numel())
    if n == 0:
        return torch.zeros_like(magnitudes, dtype=torch.bool)
    threshold = flat.kthvalue(n).values
    chosen = flat < threshold
    equal = (flat == threshold).nonzero()[:, 0]
    chosen[equal[: n - int(chosen.sum())]] = True
    return chosen.view(magnitudes.shape)


def two_of_four(weight: Tensor) -> Tensor:
    """(…, in) -> bool of the same shape: the two smallest of each four neighbours; of equal ones the last."""
    groups = weight.abs().unflatten(-1, (-1, 4))
    order = groups.sort(dim=-1, descending=True, stable=True).indices
    return torch.zeros_like(groups, dtype=torch.bool).scatter_(-1, order[..., 2:], True).flatten(-2)


def sparsity(model: nn.Module) -> dict[str, float]:
    """Projection -> share of its weights that are zero."""
    projections = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear | GroupedLinear)}
    return {name: float((m.weight == 0).float().mean()) for name, m in projections.items()}


def stored_bytes(tensors: Iterable[Tensor], *, deflate: bool = True) -> dict[str, int]:
    """Bytes of the tensors as they are ('dense'), as a bit for each number and the values that are not zero
    ('bitmask', which for 2:4 is what its format takes too), and compressed by deflate at level 6 ('deflate', unless
    turned off: a second for each 30 MB)."""
    total = {"dense": 0, "bitmask": 0, **({"deflate": 0} if deflate else {})}
    for tensor in tensors:
        tensor = tensor.detach().cpu().contiguous()
        n_values = int((tensor != 0).sum())
        total["dense"] += tensor.nbytes
        total["bitmask"] += min(tensor.nbytes, -(-tensor.numel() // 8) + n_values * tensor.element_size())
        if deflate:
            total["deflate"] += len(zlib.compress(tensor.flatten().view(torch.uint8).numpy().data, 6))
    return total


def unsupported_reason(device: str) -> str | None:
    """Why a product with a 2:4 weight takes as long as a dense one here: torch's kernels (to_sparse_semi_structured)
    are for CUDA of capability 8.0 and newer. None where they can be used, in float16, bfloat16 and int8."""
    if not device.startswith("cuda"):
        return f"torch has no 2:4 kernels for {device}; the zeros save bytes of a compressed file, not time"
    if torch.cuda.get_device_capability(device) < (8, 0):
        return f"2:4 kernels need CUDA capability 8.0, {device} is older"
    return None
