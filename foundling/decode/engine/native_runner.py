# SPDX-License-Identifier: Apache-2.0
"""The step of a transformer as one call into native code, tokens of all sequences concatenated."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from foundling.decode.engine.scheduler import ScheduledChunk
from foundling.decode.native.decoder import DecoderProgram
from foundling.decode.native.program import LANES


class NativeRunner:
    """The result of a token does not depend on which other tokens are in the batch."""

    recurrent = False

    def __init__(self, program: DecoderProgram, n_blocks: int) -> None:
        self.program, self.n_blocks, self.block_size = program, n_blocks, LANES
        self.keys, self.values = program.cache_pages(n_blocks)

    def add_sequence(self, request_id: int, prompt: Sequence[int], adapter: str | None) -> list[int]:
        assert adapter is None  # native code does not support a model with an adapter bank
        return list(prompt)

    def release_state(self, request_id: int) -> None: ...
    def remove_sequence(self, request_id: int) -> None: ...
    def save_state(self, request_id: int, block_hash: bytes) -> None: ...

    def forward(self, chunks: Sequence[ScheduledChunk], n_logits: Sequence[int]) -> Tensor:
        """The logits (Σ n_logits, V) of the last n_logits[i] tokens of each chunk; overwritten by the next call."""
        tokens, positions, selected, tables = [], [], [], []
        for chunk, n in zip(chunks, n_logits, strict=True):
            tokens += chunk.sequence.tokens[chunk.start : chunk.start + chunk.n_tokens]
            positions += range(chunk.start, chunk.start + chunk.n_tokens)
            selected += range(len(tokens) - n, len(tokens))
            tables.append(chunk.sequence.blocks)
        stride = max(map(len, tables))
        table = torch.tensor([blocks + [0] * (stride - len(blocks)) for blocks in tables], dtype=torch.int32)
        return self.program.forward(
            torch.tensor(tokens), torch.tensor(positions), [chunk.n_tokens for chunk in chunks], table, self.keys,
            self.values, torch.tensor(selected, dtype=torch.int64),
        )  # fmt: skip


def block_bytes(model: Any, form: str) -> int:
    """The size of one block, over all layers."""
    m = model.layers[0].mixer
    return len(model.layers) * 2 * LANES * m.n_kv_heads * m.head_dim * (4 if form == "float32" else 2)
