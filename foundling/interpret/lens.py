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
from foundling.interpret.trace import HeadsRecord, LayerRecord, Trace, check_tokens
from foundling.runtime.mode import evaluation_mode


@contextmanager
def skipping(layers: Any, output: Tensor | None = None) -> Iterator[None]:
    """Inside, each of these layers returns what it reads, or `output`."""
    before = [(layer, vars(layer).get("forward")) for layer in layers]
    for layer, _ in before:
        layer.forward = (lambda x, ctx: x) if output is None else (lambda x, ctx: output)
    try:
        yield
    finally:
        for layer, forward in before:
            del layer.forward  # that of its class again
            if forward is not None:  # or what stood there
                layer.forward = forward


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
    and of the head, and what a cap on logits takes, which is nothing that a part of the model adds.

    InterpretError for a model that is no decoder, for one that normalises its residual stream (post-norm), and for a
    token that it has not."""
    if not isinstance(model, Decoder) or record.hidden is None:
        raise InterpretError(f"{type(model).__name__} is no decoder; logits are attributed in decoders")
    check_tokens(model, torch.tensor([token] if versus is None else [token, versus]))
    logits, direction = model.logits(record.hidden[row, position]).float(), _row(model, record.hidden, token)
    logit = logits[token]
    if versus is not None:
        logit, direction = logit - logits[versus], direction - _row(model, record.hidden, versus)
    read = frozen_norm(model.norm, record.stack[-1].after[row, position])
    parts = [("embedding", record.stack[0].before[row, position])]
    for layer in record.stack:
        parts += _parts(model.get_submodule(layer.name), layer, row, position)
    contributions = [Contribution(name, float(read(vector) @ direction)) for name, vector in parts]
    return [*contributions, Contribution("rest", float(logit) - sum(part.value for part in contributions))]


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
        through = frozen_norm(nn.Identity(), vector)
        if (writer := layer.writer_of(part)) != part:
            through = frozen_norm(module.get_submodule(writer), layer.outputs[part][row, position])
        vectors = through(_head_vectors(record, row, position))
        parts += [(f"{name}.head.{head}", each) for head, each in enumerate(vectors)]
        nothing = record.z.new_zeros(record.z.shape[1] * record.z.shape[3])
        parts.append((f"{name}.bias", through(record.module.o(nothing))))  # no difference, which would hide errors
    return parts


def _head_vectors(record: HeadsRecord, row: int, position: int) -> Tensor:
    """(H, D) in float32"""
    at = position % record.z.shape[2]
    z = record.z[row : row + 1, :, at : at + 1]
    return replace(record, z=z).outputs()[0, :, 0].float()


def _row(model: Any, hidden: Tensor, token: int) -> Tensor:
    """(D,) in float32: the gradient of a token's logit by what the head reads, at 0, where a cap does not bend it."""
    with torch.enable_grad(), evaluation_mode(model):
        nothing = torch.zeros_like(hidden[0, 0], requires_grad=True)
        (gradient,) = torch.autograd.grad(model.logits(nothing)[token], nothing)
    return gradient.float()


def linear_part(norm: nn.Module) -> Callable[[Tensor], Tensor]:
    """What a norm does to vectors (..., D) besides its scale and its bias: centring and gain, in float32.
    InterpretError for another norm than those of blocks."""
    if isinstance(norm, nn.Identity):
        return lambda v: v.float()
    if isinstance(norm, RMSNorm):
        return lambda v: v.float() * (norm.weight.float() + norm.offset)
    if isinstance(norm, LayerNorm):
        return lambda v: (v.float() - v.float().mean(-1, keepdim=True)) * norm.weight.float()
    raise InterpretError(f"a norm of the kind {type(norm).__name__} cannot be frozen")


def frozen_norm(norm: nn.Module, x: Tensor) -> Callable[[Tensor], Tensor]:
    """The linear map of vectors (..., D) that a norm is at x (D,) when its scale stays that of x; its bias is left
    out."""
    linear, scale = linear_part(norm), 1.0
    if isinstance(norm, RMSNorm | LayerNorm):
        centred = x.float() - x.float().mean() if isinstance(norm, LayerNorm) else x.float()
        scale = torch.rsqrt(centred.pow(2).mean() + norm.eps)
    return lambda v: linear(v) * scale
