# SPDX-License-Identifier: Apache-2.0
"""Several adapters on one base: each row of a batch may use another, or a sum of several. An engine binds them before
every forward pass; elsewhere `switch` chooses one for all rows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from foundling.adapt.added import wrapping
from foundling.adapt.lora import GROUPED, LINEAR
from foundling.adapt.rewrite import rewrite
from foundling.config import nearest
from foundling.errors import AdaptError


class LowRank(NamedTuple):
    """The update of one projection: alpha / rank · b a."""

    rank: int
    alpha: float
    a: Tensor
    """(rank, in), with a leading dimension for experts"""
    b: Tensor
    """(out, rank)"""


class Banked(nn.Module):
    """A projection with all its adapters. Rows without an adapter get the output of the base."""

    bank: AdapterBank

    def __init__(self, base: Any, bank: AdapterBank) -> None:
        super().__init__()
        self.base = base
        self.in_features, self.out_features = base.in_features, base.out_features
        object.__setattr__(self, "bank", bank)  # not registered as a submodule
        self.adapters: dict[str, LowRank] = {}

    def forward(self, x: Tensor) -> Tensor:
        """x (B, …, in) -> (B, …, out); row b uses the adapters bound to it"""
        y = self.base(x)
        for bound in dict.fromkeys(name for name in self.bank.bound if name is not None):
            rows = [row for row, other in enumerate(self.bank.bound) if other == bound]
            y[rows] = self._adapted(x[rows], y[rows], bound)
        return y if self.bank.bound else self._adapted(x, y, self.bank.active)

    def _adapted(self, x: Tensor, y: Tensor, bound: str | None) -> Tensor:
        for name, weight in self.bank.parts(bound).items():
            if name in self.adapters:
                rank, alpha, a, b = self.adapters[name]
                y = y + weight * alpha / rank * F.linear(F.linear(x, a), b)
        return y


class AdapterBank:
    """Adds a bank of adapters to a model's projections, in place. `bind` sets the adapter of each row of the next
    batch, `switch` that of all rows of every batch; without either the model computes its original output.

    Raises AdaptError for adapters of experts (an expert does not know which row a token comes from), for a name that is
    not a projection, and for a model that already has adapters.
    """

    def __init__(self, model: Any, adapters: Mapping[str, Mapping[str, LowRank]]) -> None:
        """`adapters`: name of the adapter -> name of the projection -> its update"""
        if wrapping(model) or any(isinstance(m, Banked) for m in model.modules()):
            raise AdaptError("the model already has adapters; merge them first, or load the base again")
        self.sums = {name: {name: 1.0} for name in adapters}
        self.bound, self.active = tuple[str | None, ...](), None
        modules = dict(model.named_modules())
        targets = {name for adapter in adapters.values() for name in adapter}
        for name in sorted(targets):
            if isinstance(modules.get(name), GROUPED):
                raise AdaptError(f"'{name}' belongs to experts, whose adapters cannot share a batch; merge it instead")
            if not isinstance(modules.get(name), LINEAR):
                raise AdaptError(f"'{name}' is not a projection of this model")
        rewrite(model, {name: modules[name] for name in targets}, lambda m: Banked(m, self))
        for name, adapter in adapters.items():
            for path, (rank, alpha, a, b) in adapter.items():
                model.get_submodule(path).adapters[name] = LowRank(rank, alpha, a.detach(), b.detach())
        model.adapter_bank = self

    @property
    def names(self) -> tuple[str, ...]:
        """Of the adapters and of their sums."""
        return tuple(self.sums)

    def parts(self, name: str | None) -> Mapping[str, float]:
        """Adapter -> weight, of an adapter or a sum. AdaptError for an unknown name."""
        if name is None:
            return {}
        if name not in self.sums:
            raise AdaptError(f"adapter '{name}' is unknown; {nearest(name, list(self.sums))}")
        return self.sums[name]

    def stack(self, name: str, weights: Mapping[str, float]) -> None:
        """Names a weighted sum of adapters, which `bind`, `switch` and requests take like one adapter. AdaptError for a
        name that is taken or unknown, and for a weight that is not finite."""
        if name in self.sums:
            raise AdaptError(f"there is an adapter '{name}' already; choose another name")
        total = dict[str, float]()
        for part, weight in weights.items():
            if not math.isfinite(weight):
                raise AdaptError(f"the weight of '{part}' is {weight}, expected a finite number")
            for inner, inner_weight in self.parts(part).items():
                total[inner] = total.get(inner, 0.0) + weight * inner_weight
        self.sums[name] = total

    def bind(self, rows: Sequence[str | None]) -> None:
        """The adapter of each row of the next batch, None for the base alone; () returns to that of `switch`."""
        self.bound = tuple(rows)


def switch(model: Any, name: str | None) -> None:
    """All rows use this adapter (or sum) of the model's bank from now on, None: the base alone. AdaptError for an
    unknown name, and for a model without a bank."""
    bank = getattr(model, "adapter_bank", None)
    if bank is None:
        raise AdaptError("the model has no bank of adapters; load_adapters(model, {name: directory}) makes one")
    bank.parts(name)
    bank.active = name
