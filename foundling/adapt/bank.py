# SPDX-License-Identifier: Apache-2.0
"""Several adapters on one base: each row of a batch may use another. An engine binds them before every forward pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from foundling.adapt.added import wrapping
from foundling.adapt.lora import GROUPED, LINEAR, LoRAOptions
from foundling.adapt.rewrite import rewrite
from foundling.errors import AdaptError


class Adapter(NamedTuple):
    options: LoRAOptions
    tensors: dict[str, Tensor]
    """'<projection>.a' and '.b', as `adapter_tensors` names them"""


class Banked(nn.Module):
    """A projection with all its adapters. Rows without an adapter get the output of the base."""

    bank: AdapterBank

    def __init__(self, base: Any, bank: AdapterBank) -> None:
        super().__init__()
        self.base = base
        self.in_features, self.out_features = base.in_features, base.out_features
        object.__setattr__(self, "bank", bank)  # not registered as a submodule
        self.adapters: dict[str, tuple[Tensor, Tensor, float]] = {}

    def forward(self, x: Tensor) -> Tensor:
        """x (B, …, in) -> (B, …, out); row b uses the adapter bound to it"""
        y = self.base(x)
        for name in dict.fromkeys(self.bank.bound):
            if name in self.adapters:
                a, b, scale = self.adapters[name]
                rows = [row for row, other in enumerate(self.bank.bound) if other == name]
                y[rows] = y[rows] + scale * F.linear(F.linear(x[rows], a), b)
        return y


class AdapterBank:
    """Adds a bank of adapters to a model's projections, in place. `bind` sets the adapter of each row of the next
    batch; without it the model computes its original output.

    Raises AdaptError for adapters of experts (an expert does not know which row a token comes from), for a name that is
    not a projection, and for a model that already has adapters.
    """

    def __init__(self, model: Any, adapters: Mapping[str, Adapter]) -> None:
        if wrapping(model) or any(isinstance(m, Banked) for m in model.modules()):
            raise AdaptError("the model already has adapters; merge them first, or load the base again")
        self.names, self.bound = tuple(adapters), tuple[str | None, ...]()
        modules = dict(model.named_modules())
        targets = {name.rpartition(".")[0] for adapter in adapters.values() for name in adapter.tensors}
        for name in sorted(targets):
            if isinstance(modules.get(name), GROUPED):
                raise AdaptError(f"'{name}' belongs to experts, whose adapters cannot share a batch; merge it instead")
            if not isinstance(modules.get(name), LINEAR):
                raise AdaptError(f"'{name}' is not a projection of this model")
        rewrite(model, {name: modules[name] for name in targets}, lambda m: Banked(m, self))
        for name, adapter in adapters.items():
            scale = adapter.options.alpha / adapter.options.rank
            for path in {key.rpartition(".")[0] for key in adapter.tensors}:
                a, b = (adapter.tensors[f"{path}.{part}"].detach() for part in "ab")
                model.get_submodule(path).adapters[name] = (a, b, scale)
        model.adapter_bank = self

    def bind(self, rows: Sequence[str | None]) -> None:
        """The adapter of each row of the next batch, None for the base alone."""
        self.bound = tuple(rows)
