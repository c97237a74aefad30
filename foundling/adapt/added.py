# SPDX-License-Identifier: Apache-2.0
"""Modules that an adaptation puts into a model, and what of the model is the adapter, and what the base."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

from torch import Tensor, nn

from foundling.adapt.rewrite import rewrite
from foundling.errors import AdaptError


class Added(nn.Module):
    """A module that stands in the place of `base`, which it does not change, or beside all others (`base` None: a
    head).

    A low-rank update of a projection, rows added to an embedding, keys and values put before others: every kind is
    saved alone, bound to the base by hash, and merged or switched by the same code."""

    own: ClassVar[tuple[str, ...]]
    """names of the parameters that it adds: the adapter"""
    base: nn.Module | None

    def merged(self) -> nn.Module:
        """The plain module with the same output. AdaptError where there is none."""
        raise AdaptError(f"{type(self).__name__} cannot be merged into the model; use it as it is")


def added(model: nn.Module) -> dict[str, Added]:
    """Name -> module, in the order of the model."""
    return {name: m for name, m in model.named_modules() if isinstance(m, Added)}


def adapter_tensors(model: nn.Module) -> dict[str, nn.Parameter]:
    """'<module>.<own>' -> parameter"""
    return {f"{name}.{part}": getattr(m, part) for name, m in added(model).items() for part in m.own}


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


def merge(model: Any) -> list[str]:
    """Merges every adapter into its base, in place, makes all parameters trainable, and returns the names. Unties a
    tied head that has an adapter. AdaptError, before any change, if there is no adapter or one cannot be merged."""
    matched = added(model)
    if not matched:
        raise AdaptError("the model has no adapters to merge")
    plain = {id(m): m.merged() for m in matched.values()}
    names = rewrite(model, matched, lambda m: plain[id(m)])
    model.requires_grad_(True)
    if hasattr(model, "lora_options"):
        del model.lora_options
    tied = getattr(getattr(model, "config", None), "tie_embeddings", False)
    if tied and model.head.weight is not model.embedding.weight:
        model.config = dataclasses.replace(model.config, tie_embeddings=False)
    return names
