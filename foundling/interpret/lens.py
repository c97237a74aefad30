# SPDX-License-Identifier: Apache-2.0
"""What the head over the vocabulary makes of the residual stream: after each layer (logit lens), and of each part's
share in it (direct logit attribution)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from foundling.blocks.norm import LayerNorm, RMSNorm
from foundling.blocks.stack import Decoder
from foundling.errors import InterpretError
from foundling.interpret.trace import HeadsRecord, LayerRecord, Trace
from foundling.runtime.mode import evaluation_mode


@contextmanager
def skipping(layers: Any, output: Tensor | None = None) -> Iterator[None]:
    """Inside, each of these layers returns what it reads, or `output`."""
    for layer in layers:
        layer.forward = (lambda x, ctx: x) if output is None else (lambda x, ctx: output)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward  # that of its class again


@torch.no_grad()
def logit_lens(model: Any, record: Trace, positions: Tensor | slice = slice(None)) -> Iterator[Tensor]:
    """The logits (B, n, V) that the model would give if it ended before its first layer, after its first layer, …,
    after its last layer (nostalgebraist 2020, "interpreting GPT: the logit lens"). The last ones are the model's.

    `positions`: of the n tokens to read, all by default. InterpretError for a model without a head over its
    vocabulary, and for one whose layers differ in width."""
    if record.hidden is None or not record.stack:
        raise InterpretError(f"{type(model).__name__} has no head over its vocabulary that could read its layers")
    states = [record.stack[0].before, *(layer.after for layer in record.stack)]
    if len({state.shape for state in states}) > 1:
        raise InterpretError(f"the layers of {type(model).__name__} differ in width, so that one head cannot read them")
    with evaluation_mode(model):
        for state in states:
            with skipping(model.layers, state):
                hidden = model(record.tokens, **record.inputs).hidden
            yield model.logits(hidden[:, positions]).float()


class Contribution(NamedTuple):
    name: str
    """embedding, layers.3.mixer.head.5, layers.3.mixer.bias, layers.3.ffn, … or rest"""
    value: float
    """its part of the logit"""


@torch.no_grad()
def attribute(
    model: Any, record: Trace, token: int, *, versus: int | None = None, position: int = -1, row: int = 0
) -> list[Contribution]:
    """Direct logit attribution (Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits"; Wang et al.
    2022, section 3.1): what the embedding, each head and each feed-forward part adds to the logit of `token` at a
    position, or to its difference to that of `versus`. The scale of the final norm is that of this pass (frozen), so
    that the contributions sum to the logit; `rest` is what is added after the residual stream: biases of the final norm
    and of the head, and what a cap on logits takes.

    InterpretError for a model that is no decoder, and for one that normalises its residual stream (post-norm)."""
    if not isinstance(model, Decoder) or record.hidden is None:
        raise InterpretError(f"{type(model).__name__} is no decoder; logits are attributed in decoders")
    direction, logit = _direction(model, record.hidden[row, position], token, versus)
    final = record.stack[-1].after[row, position]
    read = frozen_norm(model.norm, final)
    parts = [("embedding", record.stack[0].before[row, position])]
    for layer in record.stack:
        parts += _parts(model.get_submodule(layer.name), layer, row, position)
    found = [Contribution(name, float(read(vector) @ direction)) for name, vector in parts]
    return [*found, Contribution("rest", logit - sum(part.value for part in found))]


def _parts(module: nn.Module, layer: LayerRecord, row: int, position: int) -> list[tuple[str, Tensor]]:
    """(name, (D,)) of what a layer added at one token, its self-attention by head."""
    parts: list[tuple[str, Tensor]] = []
    heads = {record.name: record for record in layer.heads}
    for part, written in layer.writes().items():
        name, vector = f"{layer.name}.{part}", written[row, position].float()
        record = heads.get(name)
        if record is None:
            parts.append((name, vector))
            continue
        through: Callable[[Tensor], Tensor] = lambda x: x  # noqa: E731
        if (writer := layer.writer_of(part)) != part:
            through = frozen_norm(module.get_submodule(writer), layer.outputs[part][row, position])
        vectors = through(_head_vectors(record, row, position))
        parts += [(f"{name}.head.{head}", each) for head, each in enumerate(vectors)]
        parts.append((f"{name}.bias", vector - vectors.sum(0)))
    return parts


def _head_vectors(record: HeadsRecord, row: int, position: int) -> Tensor:
    """(H, D) in float32"""
    at = position % record.z.shape[2]
    z = record.z[row : row + 1, :, at : at + 1]
    return replace(record, z=z).outputs()[0, :, 0].float()


def _direction(model: Any, hidden: Tensor, token: int, versus: int | None) -> tuple[Tensor, float]:
    """The gradient (D,) of the logit, or of the difference of two, by what the head reads, and its value."""
    with torch.enable_grad(), evaluation_mode(model):
        hidden = hidden.detach().float().requires_grad_()
        logits = model.logits(hidden)
        value = logits[token] - (logits[versus] if versus is not None else 0.0)
        (gradient,) = torch.autograd.grad(value, hidden)
    return gradient, float(value)


def frozen_norm(norm: nn.Module, x: Tensor) -> Callable[[Tensor], Tensor]:
    """The linear map of vectors (..., D) that a norm is at x (D,) when its scale stays that of x; its bias is left out.
    InterpretError for another norm than those of blocks."""
    x = x.float()
    if isinstance(norm, nn.Identity):
        return lambda v: v.float()
    if isinstance(norm, RMSNorm):
        gain = (norm.weight.float() + norm.offset) * torch.rsqrt(x.pow(2).mean() + norm.eps)
        return lambda v: v.float() * gain
    if isinstance(norm, LayerNorm):
        gain = norm.weight.float() * torch.rsqrt(x.var(unbiased=False) + norm.eps)
        return lambda v: (v.float() - v.float().mean(-1, keepdim=True)) * gain
    raise InterpretError(f"a final norm of the kind {type(norm).__name__} cannot be frozen")
