# SPDX-License-Identifier: Apache-2.0
"""Partial training: which parameters are trained, by name, by depth, or biases and norms alone. What is frozen has
`requires_grad` False; the optimiser and the update read nothing else. Every function returns the names of the trainable
parameters."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from foundling.adapt.added import Added
from foundling.adapt.rewrite import matches
from foundling.config import nearest
from foundling.contracts.model import named_layers
from foundling.errors import AdaptError

BELOW = {
    "embedding", "embedding_norm", "position_embedding", "type_embedding", "position", "relative", "widen", "patches",
    "class_token", "norm_before", "time", "classes", "conv_in",
}  # fmt: skip
"""Parts beside the layers that the first layer depends on; all others read what the last layer gives."""


def trainable(model: nn.Module) -> list[str]:
    return [name for name, p in model.named_parameters() if p.requires_grad]


def freeze(model: nn.Module, pattern: str) -> list[str]:
    """Freezes the parameters that match, or that are in a module that matches, any of the shell patterns in `pattern`,
    separated by commas ("embedding,layers.0.*"). AdaptError, before any change, if none matches or none is left."""
    matched = _matching(model, pattern)
    return _train(model, [name for name in trainable(model) if name not in matched], f"pattern '{pattern}'")


def unfreeze(model: nn.Module, pattern: str) -> list[str]:
    """Makes the parameters that match trainable, besides those that are. AdaptError if none matches."""
    return _train(model, [*trainable(model), *_matching(model, pattern)], f"pattern '{pattern}'")


def train_top(model: Any, n_layers: int) -> list[str]:
    """Trains the top `n_layers` layers and what comes after them (final norm, pooler, head), and freezes the rest; 0
    trains what comes after the layers alone. The layers of each of two towers are counted from its own top.

    A head that is tied to the embedding stays frozen with it (see `is_tied`): the embedding is the bottom of the model.
    AdaptError for more layers than there are, and if nothing would be trained."""
    depths, n = _depths(model)
    if not 0 <= n_layers <= n:
        raise AdaptError(f"{n_layers} top layers: expected 0 to {n}, which are the layers of {type(model).__name__}")
    names = [name for name, depth in depths.items() if depth > n - n_layers]
    return _train(model, _read(model, names), f"{n_layers} top layers")


def train_biases(model: nn.Module) -> list[str]:
    """Trains biases, the gains and offsets of norms, and added heads, and freezes the rest (Ben Zaken et al. 2022,
    BitFit). A family without biases trains its norms alone. AdaptError for a model without either."""
    names = []
    for name, _ in model.named_parameters():
        path, _, leaf = name.rpartition(".")
        module = model.get_submodule(path)
        is_head = any(isinstance(m, Added) and m.base is None for m in _ancestors(model, path))
        if leaf.endswith("bias") or type(module).__name__.endswith("Norm") or is_head:
            names.append(name)
    return _train(model, _read(model, names), "biases and norms")


def _read(model: Any, names: Iterable[str]) -> list[str]:
    """Without the head over the vocabulary of a model that has a head for texts, which nothing reads."""
    task = getattr(getattr(model, "capabilities", None), "task", None)
    return [name for name in names if not (task and name.startswith("head."))]


def is_tied(model: Any) -> bool:
    """Whether the head is the embedding, so that one cannot be trained without the other."""
    head, embedding = getattr(model, "head", None), getattr(model, "embedding", None)
    return head is not None and embedding is not None and head.weight is embedding.weight


def depth_of(model: Any) -> dict[str, int]:
    """Parameter name -> depth: 0 for embeddings, 1 to L for the layers, L + 1 for what comes after them.

    Stacks that read each other are counted in the order of computation: an encoder before its decoder, the sides of a
    U-Net as they are passed. Two towers are counted apart, from the top. The end of an inner stack (an encoder's final
    norm) belongs to its last layer; a tied head is an embedding."""
    return _depths(model)[0]


def _depths(model: Any) -> tuple[dict[str, int], int]:
    """(the depth of each parameter, L)"""
    stacks: dict[str, list[str]] = {}  # path of the module with the layers -> names of the layers
    for name in named_layers(model):
        stacks.setdefault(name.rpartition(".")[0].removesuffix("layers").rstrip("."), []).append(name)
    can = model.capabilities
    owners = sorted(stacks, key=lambda path: path == "") if can.reads_source else list(stacks)
    beside = can.embeds and not can.generates  # towers, which do not read each other
    counts = [len(stacks[owner]) for owner in owners]
    n = max(counts, default=0) if beside else sum(counts)
    of_layer, ends = dict[str, int](), dict[str, int]()
    first = 1
    for owner, count in zip(owners, counts, strict=True):
        start = n - count + 1 if beside else first
        of_layer |= {name: start + i for i, name in enumerate(stacks[owner])}
        ends[owner] = start + count - 1
        first += count
    ends = {owner: n + 1 if beside or end == n else end for owner, end in ends.items()}
    return {name: _depth(name, of_layer, ends, n) for name, _ in model.named_parameters()}, n


def _depth(name: str, of_layer: dict[str, int], ends: dict[str, int], n: int) -> int:
    parts = name.split(".")
    for at in range(len(parts) - 1, 0, -1):
        path = ".".join(parts[:at])
        if path in of_layer:
            return of_layer[path]
        if path in ends:
            return 0 if parts[at] in BELOW else ends[path]
    return 0 if parts[0] in BELOW else n + 1


def _ancestors(model: nn.Module, path: str) -> Iterable[nn.Module]:
    parts = path.split(".") if path else []
    return (model.get_submodule(".".join(parts[: at + 1])) for at in range(len(parts)))


def _matching(model: nn.Module, pattern: str) -> set[str]:
    matched, known = set[str](), dict[str, None]()
    for name, _ in model.named_parameters():
        parts = name.split(".")
        paths = [".".join(parts[: at + 1]) for at in range(len(parts))]  # the modules around it, and itself
        known |= dict.fromkeys(paths)
        if any(matches(path, pattern) for path in paths):
            matched.add(name)
    if not matched:
        raise AdaptError(f"pattern '{pattern}' matches no parameter; {nearest(pattern, list(known))}")
    return matched


def _train(model: nn.Module, names: Iterable[str], what: str) -> list[str]:
    chosen = set(names)
    if not chosen:
        raise AdaptError(f"{what}: nothing of {type(model).__name__} would be trained; choose more of it")
    for name, p in model.named_parameters():
        p.requires_grad_(name in chosen)
    return trainable(model)
