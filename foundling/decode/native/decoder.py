# SPDX-License-Identifier: Apache-2.0
"""A decoder in native code: pre-norm layers over paged keys and values, then the head on selected tokens."""

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
    """Why native code cannot run this model, or None if it can: a decoder of plain pre-norm layers on a CPU."""
    if not isinstance(model, Decoder) or any(
        getattr(type(model), name) is not getattr(Decoder, name)
        for name in (
            "forward", "build_context", "forward_layers", "build_ropes", "attention_bias", "logits", "embed_tokens"
        )
    ):  # fmt: skip
        return f"{type(model).__name__} is not a plain stack of pre-norm layers"
    if type(model.norm) not in (RMSNorm, LayerNorm) or type(model.head) is not torch.nn.Linear:
        return "its final norm or its head is not a plain module"
    if isinstance(model.norm, RMSNorm) and model.norm.offset:
        return "its norms add an offset to their weights"
    reason = unsupported_modules(model) or unsupported_layers(model.layers, Block)
    if reason is None and model.rope is not None and model.rope.head_dim != model.layers[0].mixer.head_dim:  # pyright: ignore
        return "it rotates only a part of each head"
    return reason


class DecoderProgram(Program):
    """A whole decoder, packed for up to `max_tokens` tokens per call.

    Raises NativeUnavailable without a compiler, and for a model that `unsupported_reason` rejects."""

    def __init__(self, model: Any, form: Form, max_tokens: int) -> None:
        reason = unsupported_reason(model)
        if reason:
            raise NativeUnavailable(reason)
        super().__init__(list(model.layers), form, max_tokens, causal=True)
        self.model, self.n_layers = model, len(model.layers)
        # errors of the head reach the logits directly, so int4 models keep an int8 head
        self.head_form = "int8" if form == "int4" else form
        self.head_input, self.logit_buffer = self._buffer(model.config.d_model), self._buffer(model.config.vocab_size)
        head = [
            self._norm(model.norm, self.head_input, self.normed),
            *self._linear([model.head], self.head_form, self.normed, self.logit_buffer),
        ]
        self.head = (Op * len(head))(*head)

    def cache_pages(self, count: int) -> tuple[Tensor, Tensor]:
        """`count` empty pages of keys and values for all layers: bfloat16, or float32 if the weights are float32."""
        return self.new_pages(self.n_layers, count, torch.float32 if self.form == "float32" else torch.bfloat16)

    def forward(
        self,
        tokens: Tensor,
        positions: Tensor,
        counts: Sequence[int],
        tables: Tensor,
        keys: Tensor,
        values: Tensor,
        selected: Tensor,
    ) -> Tensor:
        """The logits (w, V) float32 after the tokens at the indices `selected` (w,); overwritten by the next call.

        tokens, positions (n,): the new tokens of all sequences, concatenated, in order within each sequence. `counts`:
        the number of tokens of each sequence. tables (sequences, max pages) int32: the pages of each sequence, which
        must already hold the keys and values of all earlier tokens."""
        position_rows = positions[None]
        self.x[: len(tokens)] = self.model.embed_positions(self.model.embed_tokens(tokens[None]), position_rows)[0]
        rope = None if self.model.rope is None else self.model.rope(position_rows)
        self.run(positions, counts, tables, keys, values, rope)
        if not len(selected):
            return self.logit_buffer[:0]
        torch.index_select(self.x[: len(tokens)], 0, selected, out=self.head_input[: len(selected)])
        rows = Rows(count=len(selected))
        self.native.foundling_run(self.team, self.head, ctypes.c_int32(len(self.head)), ctypes.byref(rows))
        return self.logit_buffer[: len(selected)]
