# SPDX-License-Identifier: Apache-2.0
"""Batches: named tensors, by number."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

Batch = dict[str, Tensor]
"""Named tensors of one micro-batch, rows first. Text: `tokens`, `targets`, `documents` (B, T) int64, `loss_mask`
(B, T) bool (True = counted), `sample_ids` (B,) int64."""


class Batches(Protocol):
    """`batches[n]` is this rank's slice of global batch n, and depends on n alone."""

    def __getitem__(self, n: int) -> Batch: ...
