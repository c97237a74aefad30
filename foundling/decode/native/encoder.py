# SPDX-License-Identifier: Apache-2.0
"""An encoder whose layers native code reads: real tokens side by side, whatever the lengths, so that padding costs
nothing."""

from __future__ import annotations

import copy
import os
import threading
from typing import Any

import torch
from torch import Tensor

from foundling.blocks.encoder import Encoder
from foundling.blocks.layer import PostNormBlock
from foundling.contracts.objective import Term
from foundling.decode.native.build import NativeUnavailable
from foundling.decode.native.program import FORMS, LANES, Form, Program, unsupported_layers, unsupported_modules
from foundling.errors import GenerationError

ROWS = 1024
"""tokens at once, unless one text may be longer"""
SPAN = 24
"""With 8 bits this many times 32 inputs share a scale: products are 1.4 times as fast as with one for every 32, and err
half as much again."""


def unsupported_reason(model: Any) -> str | None:
    """What a model has that native code has not, or None: it serves BERT and those alike, on a CPU."""
    if not isinstance(model, Encoder) or type(model).forward_layers is not Encoder.forward_layers:
        return f"{type(model).__name__} does not read as a stack of layers without direction"
    return unsupported_modules(model) or unsupported_layers(model.layers, PostNormBlock)


def native_encoder(model: Any, weights: Form = "int8") -> Any:
    """The same encoder to read with, its layers as they are now packed for native code in `weights` ('float32',
    'bfloat16', 'int8', 'int4'): `encode`, `logits` and all else as before, but no gradients. Embeddings, pooler and
    head are the model's own still; after any change of its layers, pack them again. It serves one process, whose
    threads take turns. GenerationError where there is no compiler, or for a model that native code does not know."""
    if weights not in FORMS:
        raise GenerationError(f"weights {weights!r}: expected one of {', '.join(FORMS)}")
    reason = unsupported_reason(model)
    try:
        if reason:
            raise NativeUnavailable(reason)
        layers = _Layers(model, weights)
    except NativeUnavailable as error:
        raise GenerationError(f"native code is not available: {error}") from None
    made = copy.copy(model)
    for name in ("_modules", "_parameters", "_buffers", "_forward_hooks", "_forward_pre_hooks"):
        made.__dict__[name] = copy.copy(made.__dict__[name])  # what is put there is not put into the model
    made.forward_layers = layers.forward_layers
    return made


class _Layers(Program):
    def __init__(self, model: Encoder, form: Form) -> None:
        most, span = max(ROWS, model.config.max_seq_len), SPAN if form == "int8" else 1
        super().__init__(list(model.layer_sequence()), form, most, causal=False, span=span)
        # a page holds tokens of one sequence, so each may leave one half empty
        self.keys, self.values = self.new_pages(1, self.most_rows, torch.float32)
        self.process, self.turn = os.getpid(), threading.Lock()

    def __reduce__(self) -> Any:
        raise GenerationError("packed layers are neither copied nor written; take the encoder that they were made of")

    def forward_layers(self, x: Tensor, documents: Tensor | None) -> tuple[Tensor, dict[str, Term]]:
        """As Encoder.forward_layers: x (B, T, D), documents (B, T) -> (B, T, D), 0 where there is padding."""
        if torch.is_grad_enabled():
            raise GenerationError("packed layers have no gradients; read under torch.inference_mode()")
        if os.getpid() != self.process:  # threads do not come along
            raise GenerationError("packed layers serve the process that packed them; pack them here again")
        flat, out = x.flatten(0, 1), torch.zeros_like(x).flatten(0, 1)
        if not len(flat):
            return out.unflatten(0, x.shape[:2]), {}
        order, counts = _sequences(x, documents)
        begin = 0
        while begin < len(counts):
            end, total = begin, 0
            while end < len(counts) and (end == begin or total + counts[end] <= self.most_rows):
                total, end = total + counts[end], end + 1
            some, order = order[:total], order[total:]
            with self.turn:
                out[some] = self._some(flat[some], counts[begin:end]).to(out.dtype)
            begin = end
        return out.unflatten(0, x.shape[:2]), {}

    def _some(self, x: Tensor, counts: list[int]) -> Tensor:
        """x (n, D), whole sequences -> (n, D), overwritten by the next ones"""
        if len(x) > self.most_rows:
            raise GenerationError(f"a text is {len(x)} tokens, at most {self.most_rows} are read")
        self.x[: len(x)] = x
        pages = [-(-count // LANES) for count in counts]
        first = torch.tensor([0, *pages[:-1]]).cumsum(0)[:, None]
        tables = (first + torch.arange(max(pages))).clamp_max(self.most_rows - 1).to(torch.int32)
        positions = torch.cat([torch.arange(count) for count in counts])
        self.run(positions, counts, tables, self.keys, self.values)
        return self.x[: len(x)]


def _sequences(x: Tensor, documents: Tensor | None) -> tuple[Tensor, list[int]]:
    """Which of the B · T tokens are real, those of one document of one row side by side, and how many each has."""
    if documents is None:
        return torch.arange(x.shape[0] * x.shape[1]), [x.shape[1]] * x.shape[0]
    documents = documents.expand(x.shape[:2])
    real = (documents.flatten() >= 0).nonzero()[:, 0]
    whose = torch.stack((real // x.shape[1], documents.flatten()[real]))
    _, of, counts = whose.unique(dim=1, return_inverse=True, return_counts=True)
    return real[of.argsort(stable=True)], counts.tolist()
