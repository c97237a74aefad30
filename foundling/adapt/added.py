# SPDX-License-Identifier: Apache-2.0
"""Modules that an adaptation puts into a model, and what of the model is the adapter, and what the base."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

from torch import Tensor, nn

from foundling.adapt.rewrite import rewrite
from foundling.errors import AdaptError


class Added(nn.Module):
    """A module that stands in the place of `base`, which it does not change, or beside all others (`base` None: a
    head).

    A low-rank update of a projection, rows added to an embedding, keys and values put before others: every kind is
    saved alone, bound to the base by hash, and merged or switched by the same code."""

    own: tuple[str, ...]
    """names of the parameters that it adds: the adapter; of a module without base, () once it belongs to the model"""
    base: nn.Module | None

    def merged(self) -> nn.Module:
        """The plain module with the same output. AdaptError where there is none."""
        raise AdaptError(f"{type(self).__name__} cannot be merged into the model; use it as it is")


def added(model: nn.Module) -> dict[str, Added]:
    """Name -> module, in the order of the model."""
    return {name: m for name, m in model.named_modules() if isinstance(m, Added)}


def wrapping(model: nn.Module) -> dict[str, Added]:
    """Those that stand in the place of another module: all but heads."""
    return {name: m for name, m in added(model).items() if m.base is not None}


def adapter_tensors(model: nn.Module) -> dict[str, nn.Parameter]:
    """'<module>.<own>' -> parameter"""
    return {f"{name}.{part}": getattr(m, part) for name, m in added(model).items() for part in m.own}


def freeze_base(model: nn.Module) -> None:
    """Lets only what adaptations added train."""
    model.requires_grad_(False)
    for parameter in adapter_tensors(model).values():
        parameter.requires_grad_(True)


def base_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers of the base, by their names without adapters; tied ones once."""
    wrapped, own = added(model), adapter_tensors(model).keys()

    def base_name(name: str) -> str:
        path, _, leaf = name.rpartition(".")
        parts, plain = path.split(".") if path else [], list[str]()
        for at, part in enumerate(parts):
            if not (part == "base" and ".".join(parts[:at]) in wrapped):
                plain.append(part)
        return ".".join([*plain, leaf])

    named = [*model.named_parameters(), *model.named_buffers()]
    return {base_name(name): t for name, t in named if name not in own}


def merge(model: Any, *, only: tuple[type[Added], ...] = (Added,), reversible: bool = False) -> list[str]:
    """Merges every module of the kinds `only` that wraps another into it, in place, makes all parameters trainable, and
    returns the names. Unties a tied head that has an adapter; what stands beside others (a head, `base` None) becomes a
    part of the model.

    `reversible` keeps the weights of before, for `unmerge`: twice the memory of the adapted projections. AdaptError,
    before any change, if there is no adapter or one cannot be merged."""
    matched = {name: m for name, m in wrapping(model).items() if isinstance(m, only)}
    if not matched:
        raise AdaptError("the model has no adapters to merge")
    frozen = [name for name, p in model.named_parameters() if not p.requires_grad]
    plain = {id(m): m.merged() for m in matched.values()}
    names: list[str] = rewrite(model, matched, lambda m: plain[id(m)])
    config: Any = getattr(model, "config", None)
    model.requires_grad_(True)
    beside = {m: m.own for m in added(model).values() if m.base is None}
    for module in beside:
        module.own = ()
    head = getattr(model, "head", None)
    if getattr(config, "tie_embeddings", False) and head is not None and head.weight is not model.embedding.weight:
        model.config = dataclasses.replace(config, tie_embeddings=False)
    if reversible:
        model.before_merge = Unmerged(matched, frozen, config, beside)
    return names


class Unmerged(NamedTuple):
    """What `unmerge` restores; not a module, so that the model does not show it as its own."""

    modules: dict[str, Added]
    frozen: list[str]
    config: Any
    beside: dict[Added, tuple[str, ...]]
    """what stood beside others, and what of it was the adapter"""


def unmerge(model: Any) -> list[str]:
    """Takes back a reversible merge: the base has its very bits again, and the adapters beside it. Returns the names.
    AdaptError where there is none."""
    before = getattr(model, "before_merge", None)
    if before is None:
        raise AdaptError("no merge to take back; merge(model, reversible=True), or load the base and the adapter again")
    names = rewrite(model, {name: name for name in before.modules}, lambda name: before.modules[name])
    del model.before_merge
    for module, own in before.beside.items():
        module.own = own
    if before.config is not None:
        model.config = before.config
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in before.frozen)
    return names
