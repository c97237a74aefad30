# SPDX-License-Identifier: Apache-2.0
"""A shallower model that starts from some layers of a deeper one, as DistilBERT does (Sanh et al. 2019, section 3)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from torch import nn

from foundling.adapt.added import added
from foundling.contracts.model import named_layers
from foundling.errors import AdaptError, ConfigError


def take_layers(model: Any, indices: Sequence[int]) -> Any:
    """A new model with copies of these layers of `model`, counted from 0, in this order, and of everything else;
    range(0, n, 2) takes every other one. `model` is not changed.

    AdaptError for a model with adapters, without exactly one stack of layers of their own, for a layer that is not
    there, and where a layer would take the place of one that computes in another way (a window, a recurrence)."""
    layers, config = named_layers(model), model.config
    if added(model):
        raise AdaptError("the model has adapters; merge them first")
    if getattr(config, "n_layers", None) != len(layers) or not all(name.startswith("layers.") for name in layers):
        raise AdaptError(f"{type(model).__name__} has no single stack of layers to take some of")
    if not indices or not all(0 <= index < len(layers) for index in indices):
        raise AdaptError(f"layers {list(indices)}: expected one or more of 0 to {len(layers) - 1}")
    try:
        smaller = type(model)(dataclasses.replace(config, n_layers=len(indices)))
    except ConfigError as error:
        raise AdaptError(f"no {type(model).__name__} of {len(indices)} layers: {error}") from None
    if model.head is None:
        smaller.head, smaller.capabilities = None, model.capabilities
    for place, index in enumerate(indices):
        old, new = model.layers[index], smaller.layers[place]
        if _settings(old) != _settings(new):
            raise AdaptError(
                f"layer {index} computes in another way than layer {place} of a {type(model).__name__} of "
                f"{len(indices)} layers; take layers in the same pattern"
            )
    first = next(model.parameters())
    smaller.to(device=first.device, dtype=first.dtype)
    rest = {name: t for name, t in model.state_dict().items() if not name.startswith("layers.")}
    of_layers = {
        f"layers.{place}.{name}": t
        for place, index in enumerate(indices)
        for name, t in model.layers[index].state_dict().items()
    }
    smaller.load_state_dict(rest | of_layers)
    smaller.inert = dict(getattr(model, "inert", {}))
    return smaller.train(model.training)


def _settings(layer: nn.Module) -> dict[str, Any]:
    """What a layer computes: the classes, sizes and plain settings of its modules."""
    plain = (bool, int, float, str, type(None))
    return {
        name: (
            type(module),
            {key: value for key, value in vars(module).items() if key[0] != "_" and isinstance(value, plain)}
            | {"training": None},
            {key: p.shape for key, p in module.named_parameters(recurse=False)},
        )
        for name, module in layer.named_modules()
    }
