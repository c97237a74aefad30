# SPDX-License-Identifier: Apache-2.0
"""Memory of a training step by part, counted before any of it is taken."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable
from dataclasses import dataclass, fields
from functools import lru_cache
from types import FunctionType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from foundling.blocks.init import roles
from foundling.blocks.moe import GroupedLinear
from foundling.contracts.cache import KV, Conv, State
from foundling.models import build, count_parameters
from foundling.objectives.chunked import CHUNK_LOGITS
from foundling.plan.flops import skeleton
from foundling.runtime.device import Precision
from foundling.runtime.memory import anonymous_bytes, free_memory, return_freed_memory
from foundling.train.optim import STACKED
from foundling.train.options import OptimOptions

PROCESS_BYTES = 440 << 20
"""torch with its libraries' own buffers once it has computed, and what malloc holds between its blocks."""
PLENTY = 0.4
"""Share of the free memory below which a step may be wasteful of it to be fast."""
MICRO_TOKENS = 16384
"""Tokens that go through a model at once, where memory allows."""
SEEN = (128, 256)
"""Lengths at which activations are counted: the parts that grow by the token and by its square follow from two."""


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes by part, and `peak`, the most at any one time: at the loss, at the end of the backward pass, or while the
    optimiser works."""

    process: int
    weights: int
    gradients: int
    optimizer: int
    activations: int
    """what a micro-batch keeps for its backward pass"""
    logits: int
    """the loss's chunk, and the gradient of the head's weights"""
    update: int
    """what the optimiser needs for a moment"""
    accumulates: bool = False

    @property
    def peak(self) -> int:
        held = self.gradients if self.accumulates else 0
        moments = (held + self.activations + self.logits, self.gradients + self.update)
        return self.process + self.weights + self.optimizer + max(moments)

    def parts(self) -> dict[str, int]:
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "accumulates"} | {"peak": self.peak}


def estimate_training_memory(
    family: str,
    config: dict[str, Any],
    *,
    micro_batch_size: int,
    seq_len: int,
    precision: Precision = "float32",
    optim: OptimOptions | None = None,
    accumulates: bool = False,
    checkpointing: bool = False,
    ranks: int = 1,
    process: int | None = None,
    target_len: int | None = None,
) -> MemoryEstimate:
    """Of a language model in this library's training step. With `ranks`, parameters, gradients and optimiser are split
    over them. A model that reads a source of `seq_len` tokens answers it with `target_len`."""
    model, optim = skeleton(family, config), optim or OptimOptions()
    n = count_parameters(model)["total"]
    found = roles(model)
    params = dict(model.named_parameters())
    matrices = {name: p for name, p in params.items() if found[name].kind == "hidden" and optim.optimizer == "muon"}
    moments = 2 * n - sum(p.numel() for p in matrices.values())
    shapes: dict[torch.Size, int] = {}
    for p in matrices.values():
        shapes[p.shape] = max(p.numel(), min(STACKED, shapes.get(p.shape, 0) + p.numel()))
    head = model.head.weight.numel()
    rows = micro_batch_size * (seq_len if target_len is None else target_len)
    loss = 4 * (min(rows * model.head.out_features, CHUNK_LOGITS) + rows * model.head.in_features + head)
    if precision == "bfloat16":
        loss += 2 * min(rows * model.head.out_features, CHUNK_LOGITS)
    gathered = 0
    if ranks > 1:  # what lies outside the layers, and two of them, are whole on every rank while they work
        layers = sum(p.numel() for p in model.layers.parameters())
        gathered = 4 * (n - layers + 2 * layers // len(model.layers))
    return MemoryEstimate(
        process=PROCESS_BYTES if process is None else process,
        weights=4 * n // ranks + gathered,
        gradients=4 * n // ranks,
        optimizer=4 * moments // ranks,
        activations=activation_bytes(family, config, micro_batch_size, seq_len, precision, checkpointing, target_len),
        logits=loss,
        update=3 * 4 * max(shapes.values(), default=0),
        accumulates=accumulates,
    )


def activation_bytes(
    family: str,
    config: dict[str, Any],
    rows: int,
    seq_len: int,
    precision: Precision,
    checkpointing: bool,
    target_len: int | None = None,
) -> int:
    """Bytes that autograd keeps of a forward pass over (rows, seq_len) tokens."""
    share = None if target_len is None else target_len / seq_len
    law = _activation_law(family, json.dumps(config, sort_keys=True), precision, checkpointing, share)
    return int(seq_len * (rows * (law.token + law.square * seq_len) + law.place) + law.once)


class _Activations(NamedTuple):
    """Bytes by what they grow with."""

    token: float
    square: float
    """each token and the length"""
    place: float
    """the length alone: what all rows share, such as a convolution's kernel"""
    once: float
    """nothing: weights in another type"""


@lru_cache(maxsize=64)
def _activation_law(
    family: str, config: str, precision: Precision, checkpointing: bool, share: float | None
) -> _Activations:
    """Counted on tensors without memory at two short lengths. `config` is JSON, so that equal ones are counted once;
    `share`: length of the target by that of the source."""
    fields, (some, more) = json.loads(config), SEEN
    if fields.get("max_seq_len", more) < more:
        fields["max_seq_len"] = more  # tables of positions are no activations
    with FakeTensorMode():
        model = build(family, **fields)

        def saved(rows: int, length: int) -> int:
            if not checkpointing:
                return _saved_by_all(model, rows, length, precision, share)
            first, both = (_saved(model, rows, length, precision, model.layers[:n], share) for n in (1, 2))
            return both - first or first

        one, two = ([saved(rows, length) for length in SEEN] for rows in (1, 2))
        row = [b - a for a, b in zip(one, two, strict=True)]
        rest = [a - b for a, b in zip(one, row, strict=True)]
    square = max(0.0, (row[1] / more - row[0] / some) / (more - some))
    place = max(0.0, (rest[1] - rest[0]) / (more - some))
    token = row[0] / some - square * some
    if checkpointing:  # what enters each layer, and all of one layer
        token += 4 * fields["d_model"] * (fields["n_layers"] + fields.get("n_decoder_layers", 0) + 2)
    return _Activations(token, square, place, max(0.0, rest[0] - place * some))


def largest_fit(
    family: str, config: dict[str, Any], *, memory_bytes: int, batch_size: int, seq_len: int, **settings: Any
) -> tuple[int, bool, MemoryEstimate] | None:
    """(rows of a micro-batch, whether layers are computed twice, footprint): the most rows that stay below
    `memory_bytes`, without computing twice if one row fits so; None where nothing does."""
    for checkpointing in (False, True):
        rows = min(batch_size, max(1, MICRO_TOKENS // seq_len))
        while rows:
            found = estimate_training_memory(
                family, config, micro_batch_size=rows, seq_len=seq_len, checkpointing=checkpointing,
                accumulates=rows < batch_size, **settings,
            )  # fmt: skip
            if found.peak <= memory_bytes:
                return rows, checkpointing, found
            rows //= 2
    return None


def _saved_by_all(model: Any, rows: int, length: int, precision: Precision, share: float | None = None) -> int:
    """What all layers save; of those that are alike, two tell what each adds."""
    if share is not None:
        return _saved(model, rows, length, precision, model.layers, share)
    alike: dict[Any, list[nn.Module]] = {}
    for layer in model.layers:
        alike.setdefault(_kind(layer), []).append(layer)
    first = [layers[0] for layers in alike.values()]
    if len(first) * (len(first) + 2) >= len(model.layers):
        return _saved(model, rows, length, precision, model.layers)
    once = total = _saved(model, rows, length, precision, first)
    for layers in alike.values():
        if len(layers) > 1:
            total += (len(layers) - 1) * (_saved(model, rows, length, precision, [*first, layers[1]]) - once)
    return total


def _kind(layer: nn.Module) -> tuple[Any, ...]:
    """Equal for layers that differ in nothing but their weights."""
    plain = (bool, int, float, str, type(None), FunctionType)
    return tuple(
        (
            name,
            type(m),
            *((k, v) for k, v in vars(m).items() if isinstance(v, plain)),
            *(p.shape for p in m.parameters()),
        )
        for name, m in layer.named_modules()
    )


def _saved(
    model: Any,
    rows: int,
    length: int,
    precision: Precision,
    layers: Iterable[nn.Module],
    share: float | None = None,
) -> int:
    """Bytes of distinct tensors, parameters apart, that a forward pass through these layers saves.."""
    kept: dict[int, Tensor] = {}
    own = {p.untyped_storage()._cdata for p in model.parameters()}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage()._cdata not in own:
            kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    tokens, everything = torch.zeros(rows, length, dtype=torch.long), model.layers
    batch = {"tokens": tokens, "documents": torch.zeros_like(tokens)}
    if share is not None:
        target = torch.zeros(rows, max(1, round(length * share)), dtype=torch.long)
        batch = {"source": tokens, "source_documents": batch["documents"], "tokens": target, "documents": target}
    half = torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16")
    try:
        model.layers = nn.ModuleList(layers)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t), half:
            if share is None:
                model(tokens, documents=batch["documents"])
            else:
                memory = model.encode(batch["source"], documents=batch["source_documents"])
                model(batch["tokens"], documents=batch["documents"], memory=memory)
    finally:
        model.layers = everything
    return sum(t.untyped_storage().nbytes() for t in kept.values())


def serving_bytes(family: str, config: dict[str, Any], *, rows: int, seq_len: int) -> dict[str, int]:
    """Weights in float32, bfloat16 and int8 (as adapt.quantize leaves a model), and the cache of `rows` answers of
    `seq_len` tokens in float32."""
    model, cache = skeleton(family, config), 0
    n = count_parameters(model)["total"]
    for slot in (slot for slots in model.cache_spec() for slot in slots):  # pyright: ignore
        if isinstance(slot, KV):
            cache += 2 * slot.n_kv_heads * slot.head_dim * seq_len
        elif isinstance(slot, State):
            cache += math.prod(slot.shape)
        elif isinstance(slot, Conv):
            cache += slot.width * slot.channels
    rounded = [m.weight for m in model.layers.modules() if isinstance(m, nn.Linear | GroupedLinear)]
    integer = 4 * n - sum(3 * w.numel() - 4 * (w.numel() // w.shape[-1]) for w in rounded)  # a scale for each output
    return {"float32": 4 * n, "bfloat16": 2 * n, "int8": integer, "cache": 4 * rows * cache}


def process_bytes() -> int:
    """What this process holds, or soon will: before anything is computed half of it is not there yet."""
    return max(anonymous_bytes(os.getpid()), PROCESS_BYTES)


def spare_memory(footprint: MemoryEstimate) -> None:
    """Has this process give back what it frees if the step would take much of what is there."""
    if footprint.peak > PLENTY * (free_memory() + anonymous_bytes(os.getpid())):
        return_freed_memory()
