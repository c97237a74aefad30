# SPDX-License-Identifier: Apache-2.0
"""Estimates the memory of a training step by part, before any is allocated."""

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

from foundling.adapt.frozen import store_frozen
from foundling.adapt.heads import HeadOptions, add_head
from foundling.adapt.method import apply, stores_rounded
from foundling.adapt.options import AdaptOptions
from foundling.adapt.rewrite import LAYERS, matching
from foundling.blocks.heads import scores
from foundling.blocks.init import roles
from foundling.blocks.moe import GroupedLinear
from foundling.contracts.cache import KV, Conv, State
from foundling.models import build, count_parameters
from foundling.objectives.chunked import CHUNK_LOGITS
from foundling.plan.flops import skeleton, training_flops_per_token
from foundling.runtime.device import Precision
from foundling.runtime.memory import anonymous_bytes, free_memory, return_freed_memory
from foundling.train.optim import STACKED, count_state
from foundling.train.options import OptimOptions

PROCESS_BYTES = 440 << 20
"""Memory of torch and its libraries after the first computation, plus malloc's fragmentation."""
LARGE_STEP_SHARE = 0.4
"""Above this share of the free memory, a step returns freed memory to the system, which is slower."""
MICRO_TOKENS = 16384
"""Tokens per micro-batch if memory allows."""
PROBE_LENGTHS = (128, 256)
"""Two lengths at which activations are counted, to separate linear and quadratic growth."""


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes by part, and `peak`, the maximum over the step: at the loss, at the end of the backward pass, or in the
    optimiser."""

    process: int
    weights: int
    gradients: int
    optimizer: int
    activations: int
    """Tensors that a micro-batch saves for the backward pass."""
    logits: int
    """One chunk of logits, and the gradient of the head."""
    update: int
    """Temporary memory of the optimiser."""
    accumulates: bool = False

    @property
    def peak(self) -> int:
        accumulated = self.gradients if self.accumulates else 0
        moments = (accumulated + self.activations + self.logits, self.gradients + self.update)
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
    ema: bool = False,
    adapt: AdaptOptions | None = None,
    head: HeadOptions | None = None,
    frozen_bytes: int = 0,
) -> MemoryEstimate:
    """Memory of a language model in this library's training step. With `ranks`, parameters, gradients and optimiser
    state are sharded. For a model that reads a source, `seq_len` is the length of the source, `target_len` of the
    target. With `adapt`, of the adapted model: gradients and optimiser state of what it trains alone, its frozen
    weights in the type that they are stored in; with `head`, of a model that answers by that in place of its
    vocabulary. `frozen_bytes`: of a teacher beside it, which every rank has whole."""
    model, optim = skeleton(family, config), optim or OptimOptions()
    if adapt is not None:
        model = _adapted(build(family, device="meta", **config), adapt, precision, head)
    stored = stored_bytes(model)
    n = stored.trainable // 4
    parameter_roles = roles(model)
    params = {name: p for name, p in model.named_parameters() if p.requires_grad}
    matrices = {
        name: p for name, p in params.items() if parameter_roles[name].kind == "hidden" and optim.optimizer == "muon"
    }
    shapes: dict[torch.Size, int] = {}
    for p in matrices.values():
        shapes[p.shape] = max(p.numel(), min(STACKED, shapes.get(p.shape, 0) + p.numel()))
    rows = micro_batch_size * (seq_len if target_len is None else target_len)
    buffers = sum(b.nbytes for b in model.buffers())  # not sharded
    whole = buffers + frozen_bytes
    if ranks > 1:  # two layers and all parameters outside the layers are gathered on every rank
        layers = sum(p.nbytes for p in model.layers.parameters())
        whole += sum(p.nbytes for p in model.parameters()) - layers + 2 * layers // len(model.layers)
    return MemoryEstimate(
        process=PROCESS_BYTES if process is None else process,
        weights=(stored.frozen - buffers + stored.trainable * (2 if ema else 1)) // ranks + whole,
        gradients=4 * n // ranks,
        optimizer=4 * count_state(model, optim) // ranks,
        activations=activation_bytes(
            family, config, micro_batch_size, seq_len, precision, checkpointing, target_len, adapt, head
        ),
        logits=_logits_bytes(model, rows, precision) if head is None else 4 * rows * len(head.labels),
        update=3 * 4 * max(shapes.values(), default=0),
        accumulates=accumulates,
    )


def _logits_bytes(model: Any, rows: int, precision: Precision) -> int:
    """Of one chunk of logits over the vocabulary, its gradients and those of the head."""
    trained = sum(p.numel() for p in model.head.parameters() if p.requires_grad)
    loss = 4 * (min(rows * model.head.out_features, CHUNK_LOGITS) + rows * model.head.in_features + trained)
    if precision == "bfloat16":
        loss += 2 * min(rows * model.head.out_features, CHUNK_LOGITS)
        if not trained:  # a frozen head is converted for each chunk
            loss += 2 * model.head.in_features * model.head.out_features
    return loss


class StoredBytes(NamedTuple):
    """Bytes of a model's parameters and buffers, tied ones once."""

    frozen: int
    trainable: int


def stored_bytes(model: nn.Module) -> StoredBytes:
    trainable = sum(p.nbytes for p in model.parameters() if p.requires_grad)
    return StoredBytes(sum(t.nbytes for t in [*model.parameters(), *model.buffers()]) - trainable, trainable)


class FrozenCost(NamedTuple):
    """Of a model beside the one that is trained."""

    bytes: int = 0
    flops: int = 0
    """per token, of its forward pass"""


NO_TEACHER = FrozenCost()


def frozen_cost(model: nn.Module, seq_len: int) -> FrozenCost:
    """Of a teacher as it is built, all of it trainable: a forward pass is a third of training."""
    return FrozenCost(sum(stored_bytes(model)), training_flops_per_token(model, seq_len) // 3)


def _adapted(model: Any, options: AdaptOptions, precision: Precision, head: HeadOptions | None) -> Any:
    """The model as a run with these options trains it, on meta or fake tensors."""
    if head is not None:
        add_head(model, head, torch.Generator())
    apply(model, options, torch.Generator())
    if stores_rounded(options, precision):
        store_frozen(model, "")
    return model


def activation_bytes(
    family: str,
    config: dict[str, Any],
    rows: int,
    seq_len: int,
    precision: Precision,
    checkpointing: bool,
    target_len: int | None = None,
    adapt: AdaptOptions | None = None,
    head: HeadOptions | None = None,
) -> int:
    """Bytes that autograd saves in a forward pass over (rows, seq_len) tokens."""
    share = None if target_len is None else target_len / seq_len
    law = _activation_law(family, json.dumps(config, sort_keys=True), precision, checkpointing, share, adapt, head)
    return int(seq_len * (rows * (law.token + law.quadratic * seq_len) + law.shared) + law.constant)


class _Activations(NamedTuple):
    """Coefficients of activation bytes."""

    token: float
    """bytes per token"""
    quadratic: float
    """bytes per token and position, such as attention scores"""
    shared: float
    """bytes per position, shared by all rows, such as a convolution's kernel"""
    constant: float
    """bytes independent of the batch, such as weights cast to another type"""


@lru_cache(maxsize=64)
def _activation_law(
    family: str,
    config: str,
    precision: Precision,
    checkpointing: bool,
    share: float | None,
    adapt: AdaptOptions | None = None,
    head: HeadOptions | None = None,
) -> _Activations:
    """Counts activations on fake tensors at two short lengths. `config` is JSON, so that results are cached. `share`:
    length of the target over length of the source."""
    fields, (short, long) = json.loads(config), PROBE_LENGTHS
    longest = long if share is None else max(long, round(long * share))
    if fields.get("max_seq_len", longest) < longest:
        fields["max_seq_len"] = longest  # tables of positions are no activations
    with FakeTensorMode():
        model = build(family, **fields)
        if adapt is not None:
            model = _adapted(model, adapt, precision, head)

        def saved(rows: int, length: int) -> int:
            if not checkpointing:
                return _saved_by_all_layers(model, rows, length, precision, share)
            first, both = (_saved(model, rows, length, precision, model.layers[:n], share) for n in (1, 2))
            return both - first or first

        one, two = ([saved(rows, length) for length in PROBE_LENGTHS] for rows in (1, 2))
        row = [b - a for a, b in zip(one, two, strict=True)]
        rest = [a - b for a, b in zip(one, row, strict=True)]
    quadratic = max(0.0, (row[1] / long - row[0] / short) / (long - short))
    shared = max(0.0, (rest[1] - rest[0]) / (long - short))
    token = row[0] / short - quadratic * short
    if checkpointing:  # the input of each layer, and everything in one layer
        token += 4 * fields["d_model"] * (fields["n_layers"] + fields.get("n_decoder_layers", 0) + 2)
    return _Activations(token, quadratic, shared, max(0.0, rest[0] - shared * short))


def largest_fit(
    family: str, config: dict[str, Any], *, memory_bytes: int, batch_size: int, seq_len: int, **settings: Any
) -> tuple[int, bool, MemoryEstimate] | None:
    """(rows of a micro-batch, activation checkpointing, memory estimate): the most rows that fit in `memory_bytes`,
    with checkpointing only if not even one row fits without it; None if nothing fits."""
    for checkpointing in (False, True):
        rows = min(batch_size, max(1, MICRO_TOKENS // seq_len))
        while rows:
            estimate = estimate_training_memory(
                family, config, micro_batch_size=rows, seq_len=seq_len, checkpointing=checkpointing,
                accumulates=rows < batch_size, **settings,
            )  # fmt: skip
            if estimate.peak <= memory_bytes:
                return rows, checkpointing, estimate
            rows //= 2
    return None


def _saved_by_all_layers(model: Any, rows: int, length: int, precision: Precision, share: float | None = None) -> int:
    """Bytes that all layers save. For equal layers, one and two of them give the cost of each."""
    if share is not None:
        return _saved(model, rows, length, precision, model.layers, share)
    groups: dict[Any, list[nn.Module]] = {}
    for layer in model.layers:
        groups.setdefault(_kind(layer), []).append(layer)
    first = [layers[0] for layers in groups.values()]
    if len(first) * (len(first) + 2) >= len(model.layers):
        return _saved(model, rows, length, precision, model.layers)
    constant = total = _saved(model, rows, length, precision, first)
    for layers in groups.values():
        if len(layers) > 1:
            total += (len(layers) - 1) * (_saved(model, rows, length, precision, [*first, layers[1]]) - constant)
    return total


def _kind(layer: nn.Module) -> tuple[Any, ...]:
    """A key that is equal for layers that differ only in their weights."""
    plain = (bool, int, float, str, type(None), FunctionType)
    return tuple(
        (
            name,
            type(m),
            *((k, v) for k, v in vars(m).items() if isinstance(v, plain)),
            *((p.shape, p.dtype, p.requires_grad) for p in m.parameters()),
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
    """Bytes of distinct tensors, except parameters, that a forward pass through these layers saves."""
    tensors: dict[int, Tensor] = {}
    parameters = {t.untyped_storage()._cdata for t in [*model.parameters(), *model.buffers()]}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage()._cdata not in parameters:
            tensors[tensor.untyped_storage()._cdata] = tensor
        return tensor

    tokens, all_layers = torch.zeros(rows, length, dtype=torch.long), model.layers
    batch = {"tokens": tokens, "documents": torch.zeros_like(tokens)}
    if share is not None:
        target = torch.zeros(rows, max(1, round(length * share)), dtype=torch.long)
        batch = {"source": tokens, "source_documents": batch["documents"], "tokens": target, "documents": target}
    half = torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16")
    try:
        model.layers = nn.ModuleList(layers)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t), half:
            if model.capabilities.task:
                scores(model, batch)
            elif share is None:
                model(tokens, documents=batch["documents"])
            else:
                memory = model.encode(batch["source"], documents=batch["source_documents"])
                model(batch["tokens"], documents=batch["documents"], memory=memory)
    finally:
        model.layers = all_layers
    return sum(t.untyped_storage().nbytes() for t in tensors.values())


def serving_bytes(family: str, config: dict[str, Any], *, rows: int, seq_len: int) -> dict[str, int]:
    """Bytes of the weights in float32, bfloat16 and int8 (see adapt.quantize), and of the float32 cache for `rows`
    sequences of `seq_len` tokens, which an encoder has none of."""
    model, cache = skeleton(family, config), 0
    n = count_parameters(model)["total"]
    slots: Any = model.cache_spec() if model.capabilities.generates else ()
    for slot in (slot for of_layer in slots for slot in of_layer):
        if isinstance(slot, KV):
            cache += 2 * slot.n_kv_heads * slot.head_dim * seq_len
        elif isinstance(slot, State):
            cache += math.prod(slot.shape)
        elif isinstance(slot, Conv):
            cache += slot.width * slot.channels
    rounded: list[Any] = [m.weight for m in matching(model, LAYERS, (nn.Linear, GroupedLinear)).values()]
    integer = 4 * n - sum(3 * w.numel() - 4 * (w.numel() // w.shape[-1]) for w in rounded)  # one scale per output
    return {"float32": 4 * n, "bfloat16": 2 * n, "int8": integer, "cache": 4 * rows * cache}


def process_bytes() -> int:
    """Memory of this process, at least PROCESS_BYTES: torch allocates about half of that on first use."""
    return max(anonymous_bytes(os.getpid()), PROCESS_BYTES)


def spare_memory(footprint: MemoryEstimate) -> None:
    """Makes this process return freed memory to the system if the step needs a large share of the free memory."""
    if footprint.peak > LARGE_STEP_SHARE * (free_memory() + anonymous_bytes(os.getpid())):
        return_freed_memory()
