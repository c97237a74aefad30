# SPDX-License-Identifier: Apache-2.0
"""A shallower model that starts from some layers of a deeper one, as DistilBERT does (Sanh et al. 2019, section 3)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from types import BuiltinFunctionType, FunctionType
from typing import Any

import torch
from torch import Tensor, nn

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
    smaller.load_state_dict(_tensors(model, indices))
    smaller.inert = dict(getattr(model, "inert", {}))
    return smaller.train(model.training)


ABOVE = ("pooler", "classifier", "score")
"""what stands on the states beside the head over the vocabulary"""


@torch.no_grad()
def start_from_layers(student: Any, teacher: Any) -> list[int]:
    """Copies evenly spaced layers of one encoder into another, or those next to them of the same kind
    (`spaced_layers`), with the embeddings and the head over the vocabulary, and returns their numbers. What stands on
    the states beside that head stays the student's own where the teacher has none of its shape. A student without the
    teacher's token types has type 0, which all text has by default, in its positions; so one with as many layers
    computes the same. AdaptError, and nothing is changed, where they do not fit."""
    n, available = len(student.layers), len(teacher.layers)
    if n > available:
        raise AdaptError(f"it has {n} layers, its teacher {available}")
    taken = spaced_layers(student.layers, teacher.layers)
    rotations = [_settings(getattr(model, "ropes", nn.Module())) for model in (student, teacher)]
    if rotations[0] != rotations[1]:
        raise AdaptError("its positions are rotated in another way than its teacher's (rope_theta)")
    tied = student.config.tie_embeddings, teacher.config.tie_embeddings
    if student.activation is not teacher.activation or tied[0] != tied[1]:
        raise AdaptError("its head over the vocabulary computes in another way than its teacher's")
    ours = student.state_dict()
    theirs = _with_positions(_tensors(teacher, taken), ours, student, teacher)
    unlike = {name for name, _ in _shapes(ours) ^ _shapes(theirs)}
    for name in sorted(unlike):
        if name.partition(".")[0] not in ABOVE:
            raise AdaptError(f"its tensor {name} is not of its teacher's shape")
    student.load_state_dict({name: t if name in unlike else theirs[name] for name, t in ours.items()})
    return taken


def evenly_spaced(n: int, available: int) -> list[int]:
    """n of the numbers below `available`, the first and the last among them; 6 of 12 are 0 2 4 7 9 11, as in the
    reference code of DistilBERT (transformers, research_projects/distillation/scripts/extract_distilbert.py)."""
    return [round(place * (available - 1) / max(1, n - 1)) for place in range(n)]


def spaced_layers(student: Sequence[nn.Module], teacher: Sequence[nn.Module]) -> list[int]:
    """For each layer of the student, the number of one of the teacher's that computes in the same way. The numbers
    rise, and are the nearest to evenly spaced ones by the sum of distances: where kinds of layers alternate, evenly
    spaced ones are of the wrong kind. AdaptError where no such numbers rise."""
    theirs, wanted = [_settings(layer) for layer in teacher], evenly_spaced(len(student), len(teacher))
    # best[k]: (distance, numbers) for the student's layers so far among the teacher's first k, or None
    best: list[tuple[int, list[int]] | None] = [(0, [])] * (len(theirs) + 1)
    for place, ours in enumerate(map(_settings, student)):
        longer: list[tuple[int, list[int]] | None] = [None]
        for index, before in enumerate(best[:-1]):
            with_index = None
            if before and ours == theirs[index]:
                with_index = before[0] + abs(index - wanted[place]), [*before[1], index]
            longer.append(min((choice for choice in (longer[-1], with_index) if choice), default=None))
        if longer[-1] is None:
            first = next(k for k, choice in enumerate(best) if choice)
            raise AdaptError(f"its layer {place} computes in another way than its teacher's layers from {first} on")
        best = longer
    assert best[-1]
    return best[-1][1]


def _with_positions(
    tensors: dict[str, Tensor], ours: dict[str, Tensor], student: Any, teacher: Any
) -> dict[str, Tensor]:
    """The teacher's tensors with tables of positions and token types of the student's shapes."""
    table, types = "position_embedding.weight", "type_embedding.weight"
    if table not in tensors or table not in ours:
        return tensors
    tensors = dict(tensors)
    rows = tensors[table][teacher.position_embedding.first :][: student.position_embedding.max_positions]
    kinds = tensors.pop(types, None)
    if types in ours and kinds is not None and kinds.shape == ours[types].shape:
        tensors[types] = kinds
    else:
        rows = rows if kinds is None else rows + kinds[0]
        tensors |= {types: torch.zeros_like(ours[types])} if types in ours else {}
    tensors[table] = torch.cat([ours[table][: student.position_embedding.first].to(rows), rows])
    return tensors


def _shapes(tensors: dict[str, Tensor]) -> set[tuple[str, torch.Size]]:
    return {(name, t.shape) for name, t in tensors.items()}


def _tensors(model: Any, indices: Sequence[int]) -> dict[str, Tensor]:
    """Of a model with these of its layers alone, in this order."""
    rest = {name: t for name, t in model.state_dict().items() if not name.startswith("layers.")}
    of_layers = {
        f"layers.{place}.{name}": t
        for place, index in enumerate(indices)
        for name, t in model.layers[index].state_dict().items()
    }
    return rest | of_layers


def _settings(layer: nn.Module) -> dict[str, Any]:
    """What a layer computes outside training: the classes, sizes, functions and plain settings of its modules."""
    plain = (bool, int, float, str, type(None), FunctionType, BuiltinFunctionType)
    return {
        name: (
            type(module),
            {
                key: value
                for key, value in vars(module).items()
                if key[0] != "_" and key not in ("training", "dropout") and isinstance(value, plain)
            },
            {key: p.shape for key, p in module.named_parameters(recurse=False)},
        )
        for name, module in layer.named_modules()
        if not isinstance(module, nn.Dropout)
    }
