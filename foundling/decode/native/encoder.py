# SPDX-License-Identifier: Apache-2.0
"""An encoder with its layers in native code. All real tokens are concatenated, so padding costs nothing."""

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
from foundling.decode.native.build import NativeUnavailable, is_built
from foundling.decode.native.program import FORMS, LANES, Form, Program, unsupported_layers, unsupported_modules
from foundling.errors import GenerationError

ROWS = 1024
"""Tokens per call, or max_seq_len where that is larger."""
SPAN = 24
"""With int8 weights, this many groups of 32 inputs share one scale. Compared with one scale per group, products are 1.4
times as fast and their error is 1.5 times as large."""


def unsupported_reason(model: Any) -> str | None:
    """Why native code cannot run this model, or None if it can: an encoder like BERT on a CPU."""
    if not isinstance(model, Encoder) or type(model).forward_layers is not Encoder.forward_layers:
        return f"{type(model).__name__} is not a plain stack of bidirectional layers"
    return unsupported_modules(model) or unsupported_layers(model.layers, PostNormBlock)


def native_encoder(model: Any, weights: Form = "int8") -> Any:
    """A copy of an encoder with its layers packed for native code, with weights as 'float32', 'bfloat16', 'int8' or
    'int4'. `encode`, `logits` and the rest work as before, without gradients.

    The copy shares embeddings, pooler and head with the model. Later changes to the model's layers have no effect on
    it; pack them again. It works in the process that made it; threads run one at a time. Raises GenerationError without
    a compiler, and for a model that native code does not support."""
    if weights not in FORMS:
        raise GenerationError(f"weights {weights!r}: expected one of {', '.join(FORMS)}")
    reason = unsupported_reason(model)
    try:
        if reason:
            raise NativeUnavailable(reason)
        layers = _Layers(model, weights)
    except NativeUnavailable as error:
        raise GenerationError(f"native code is not available: {error}") from None
    native = copy.copy(model)
    for name in ("_modules", "_parameters", "_buffers", "_forward_hooks", "_forward_pre_hooks"):
        native.__dict__[name] = copy.copy(native.__dict__[name])  # assigning to the copy leaves the model alone
    native.forward_layers = layers.forward_layers
    return native


def fastest_encoder(model: Any, weights: str | None = None) -> Any:
    """Native code where `weights` asks for it, or where it is built already and supports the model, with the weights as
    they are; else the model itself. GenerationError where it cannot have weights of another type than the model's."""
    own = str(next(model.parameters()).dtype).removeprefix("torch.")
    form: Any = weights or own
    reason = unsupported_reason(model) or ("" if form in FORMS else f"it does not support {form}")
    try:
        if not reason and (weights or is_built()):
            return native_encoder(model, form)
    except (NativeUnavailable, GenerationError) as error:
        reason = str(error)
    if weights not in (None, own):
        raise GenerationError(f"weights {weights!r} need native code: {reason}")
    return model


class _Layers(Program):
    def __init__(self, model: Encoder, form: Form) -> None:
        max_tokens, span = max(ROWS, model.config.max_seq_len), SPAN if form == "int8" else 1
        super().__init__(list(model.layer_sequence()), form, max_tokens, causal=False, span=span)
        # a page holds tokens of one sequence, so the last page of each may be partly empty
        self.keys, self.values = self.new_pages(1, self.max_tokens, torch.float32)
        self.process, self.lock = os.getpid(), threading.Lock()

    def __reduce__(self) -> Any:
        raise GenerationError("packed layers cannot be copied or saved; use the encoder that they were packed from")

    def forward_layers(self, x: Tensor, documents: Tensor | None, positions: Tensor) -> tuple[Tensor, dict[str, Term]]:
        """See Encoder.forward_layers: x (B, T, D), documents (B, T) -> (B, T, D), zero at padding."""
        if torch.is_grad_enabled():
            raise GenerationError("packed layers have no gradients; call them under torch.inference_mode()")
        if os.getpid() != self.process:  # a fork does not copy threads
            raise GenerationError("packed layers work only in the process that packed them; pack them again here")
        flat, out = x.flatten(0, 1), torch.zeros_like(x).flatten(0, 1)
        if not len(flat):
            return out.unflatten(0, x.shape[:2]), {}
        order, counts = _sequences(x, documents)
        start = 0
        while start < len(counts):
            end, total = start, 0
            while end < len(counts) and (end == start or total + counts[end] <= self.max_tokens):
                total, end = total + counts[end], end + 1
            rows, order = order[:total], order[total:]
            with self.lock:
                out[rows] = self._run_batch(flat[rows], counts[start:end]).to(out.dtype)
            start = end
        return out.unflatten(0, x.shape[:2]), {}

    def _run_batch(self, x: Tensor, counts: list[int]) -> Tensor:
        """x (n, D), the tokens of whole sequences -> (n, D), overwritten by the next call."""
        if len(x) > self.max_tokens:
            raise GenerationError(f"a text has {len(x)} tokens; the limit is {self.max_tokens}")
        self.x[: len(x)] = x
        pages = [-(-count // LANES) for count in counts]
        first = torch.tensor([0, *pages[:-1]]).cumsum(0)[:, None]
        tables = (first + torch.arange(max(pages))).clamp_max(self.max_tokens - 1).to(torch.int32)
        positions = torch.cat([torch.arange(count) for count in counts])
        self.run(positions, counts, tables, self.keys, self.values)
        return self.x[: len(x)]


def _sequences(x: Tensor, documents: Tensor | None) -> tuple[Tensor, list[int]]:
    """Indices of the real tokens among the B · T, grouped by row and document, and the size of each group."""
    if documents is None:
        return torch.arange(x.shape[0] * x.shape[1]), [x.shape[1]] * x.shape[0]
    documents = documents.expand(x.shape[:2])
    real = (documents.flatten() >= 0).nonzero()[:, 0]
    keys = torch.stack((real // x.shape[1], documents.flatten()[real]))
    _, group, counts = keys.unique(dim=1, return_inverse=True, return_counts=True)
    return real[group.argsort(stable=True)], counts.tolist()
