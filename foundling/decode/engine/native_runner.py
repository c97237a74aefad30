# SPDX-License-Identifier: Apache-2.0
"""The step of a transformer by one call into native code, tokens of all sequences side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from foundling.decode.engine.scheduler import Work
from foundling.decode.native.decoder import DecoderProgram
from foundling.decode.native.program import LANES


class NativeRunner:
    """What a token gets does not depend on which others are read with it."""

    recurrent = False

    def __init__(self, program: DecoderProgram, pages: int) -> None:
        self.program, self.pages, self.page_size = program, pages, LANES
        self.keys, self.values = program.cache_pages(pages)

    def begin(self, number: int, prompt: Sequence[int], adapter: str | None) -> list[int]:
        assert adapter is None  # a model with a bank is not for native code
        return list(prompt)

    def leave(self, number: int) -> None: ...
    def forget(self, number: int) -> None: ...
    def keep(self, number: int, key: bytes) -> None: ...

    def read(self, works: Sequence[Work], wants: Sequence[int]) -> Tensor:
        """The logits (Σ wants, V) after the last `wants` tokens of each work; overwritten by the next call."""
        tokens, positions, wanted, tables = [], [], [], []
        for work, want in zip(works, wants, strict=True):
            tokens += work.sequence.tokens[work.start : work.start + work.count]
            positions += range(work.start, work.start + work.count)
            wanted += range(len(tokens) - want, len(tokens))
            tables.append(work.sequence.pages)
        stride = max(map(len, tables))
        table = torch.tensor([pages + [0] * (stride - len(pages)) for pages in tables], dtype=torch.int32)
        return self.program.read(
            torch.tensor(tokens), torch.tensor(positions), [work.count for work in works], table, self.keys,
            self.values, torch.tensor(wanted, dtype=torch.int64),
        )  # fmt: skip


def page_bytes(model: Any, form: str) -> int:
    """Of one page through all layers."""
    m = model.layers[0].mixer
    return len(model.layers) * 2 * LANES * m.n_kv_heads * m.head_dim * (4 if form == "float32" else 2)
