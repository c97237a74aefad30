# SPDX-License-Identifier: Apache-2.0
"""Batches: named tensors, by number."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from torch import Tensor

Batch = dict[str, Tensor]
"""Named tensors of one micro-batch, rows first. Text: `tokens`, `targets`, `documents` (B, T) int64, `loss_mask`
(B, T) bool (True = counted), `sample_ids` (B,) int64."""


class Batches(Protocol):
    """`batches[n]` is this rank's slice of global batch n, and depends on n alone."""

    def __getitem__(self, n: int, /) -> Batch: ...


@runtime_checkable
class ResumableBatches(Protocol):
    """Batches that depend on what was asked for before (rollouts of the model in training): asked for in order, and
    resumed by their own state, which is saved in the checkpoint."""

    def __getitem__(self, n: int, /) -> Batch: ...
    def state_dict(self) -> dict[str, Any]:
        """Numbers, texts and tensors, in dicts and lists."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on as the source did from which `state` came."""
        ...
