# SPDX-License-Identifier: Apache-2.0
"""A decoder in native code: pre-norm layers over pages of keys and values, and the head over the last of them."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from foundling.blocks.layer import Block
from foundling.blocks.norm import LayerNorm, RMSNorm
from foundling.blocks.stack import Decoder
from foundling.decode.native.build import NativeUnavailable
from foundling.decode.native.program import Form, Op, Program, Rows, unsupported_layers, unsupported_modules


def unsupported_reason(model: Any) -> str | None:
    """What a model has that native code has not, or None: it serves a decoder of plain pre-norm layers on a CPU."""
    if not isinstance(model, Decoder) or any(
        getattr(type(model), name) is not getattr(Decoder, name)
        for name in ("forward", "build_context", "forward_layers", "build_ropes", "attention_bias", "logits", "embed")
    ):
        return f"{type(model).__name__} does not read as a stack of pre-norm layers"
    if type(model.norm) not in (RMSNorm, LayerNorm) or type(model.head) is not torch.nn.Linear:
        return "its last norm or its head is not plain"
    if isinstance(model.norm, RMSNorm) and model.norm.offset:
        return "its norms' gains are written less an offset"
    return unsupported_modules(model) or unsupported_layers(model.layers, Block)


class DecoderProgram(Program):
    """Raises NativeUnavailable where there is no compiler, or for a model that `unsupported_reason` names."""

    def __init__(self, model: Any, form: Form, most_rows: int) -> None:
        reason = unsupported_reason(model)
        if reason:
            raise NativeUnavailable(reason)
        super().__init__(list(model.layers), form, most_rows, causal=True)
        self.model, self.n_layers = model, len(model.layers)
        # the head's input is rounded least: the last layer decides what is said
        self.head_form = "int8" if form == "int4" else form
        self.last, self.said = self._buffer(model.config.d_model), self._buffer(model.config.vocab_size)
        head = [
            self._norm(model.norm, self.last, self.normed),
            *self._linear([model.head], self.head_form, self.normed, self.said),
        ]
        self.head = (Op * len(head))(*head)

    def cache_pages(self, count: int) -> tuple[Tensor, Tensor]:
        """Keys and values of all layers, in bfloat16 unless weights are float32."""
        return self.new_pages(self.n_layers, count, torch.float32 if self.form == "float32" else torch.bfloat16)

    def read(
        self,
        tokens: Tensor,
        positions: Tensor,
        counts: Sequence[int],
        tables: Tensor,
        keys: Tensor,
        values: Tensor,
        wanted: Tensor,
    ) -> Tensor:
        """Reads n tokens (n,) at their places in their sequences, each `counts` of them, whose pages are tables
        (sequences, most) int32; gives the logits (w, V) float32 after those of index `wanted` (w,). Tokens of one
        sequence stand in order, and everything before them is in its pages."""
        places = positions[None]
        self.x[: len(tokens)] = self.model.embed_positions(self.model.embed(tokens[None]), places)[0]
        rope = None if self.model.rope is None else self.model.rope(places)
        self.run(positions, counts, tables, keys, values, rope)
        if not len(wanted):
            return self.said[:0]
        torch.index_select(self.x[: len(tokens)], 0, wanted, out=self.last[: len(wanted)])
        rows = Rows(count=len(wanted))
        self.native.foundling_run(self.team, self.head, ctypes.c_int32(len(self.head)), ctypes.byref(rows))
        return self.said[: len(wanted)]
