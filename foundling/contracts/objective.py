# SPDX-License-Identifier: Apache-2.0
"""What is to be learnt, and how its terms become one scalar."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from foundling.contracts.data import Batch


class Term(NamedTuple):
    """A sum and the count it is to be divided by, kept apart so that accumulation and ranks cannot change a mean."""

    sum: Tensor
    count: Tensor | int  # pyright: ignore[reportIncompatibleMethodOverride]  hides tuple.count, which nobody needs here
    weight: float = 1.0


Loss = dict[str, Term]
"""total = Σ weight · sum / count, where the loop puts the *global* count of the step in place of the local one."""


class Objective(Protocol):
    """What is to be learnt. `normalizers` is known from the batch alone, before any forward pass."""

    def normalizers(self, batch: Batch) -> dict[str, int]: ...
    def __call__(self, model: Any, batch: Batch) -> Loss: ...


@runtime_checkable
class ContrastiveObjective(Protocol):
    """An objective that is no sum over rows: it sees the representations of the whole global batch at once, which the
    loop gathers from micro-batches and ranks (gradient caching)."""

    def normalizers(self, batch: Batch) -> dict[str, int]: ...
    def represent(self, model: Any, batch: Batch) -> dict[str, Tensor]:
        """Named (B, …) tensors, rows first: all through which the model reaches the loss."""
        ...

    def loss(self, representations: dict[str, Tensor]) -> Loss: ...


def total(loss: Loss, counts: dict[str, int], micro_batches: int = 1) -> Tensor:
    """The scalar to differentiate: Σ weight · sum / global count. A term without a declared count (router balance)
    is a mean over the step's `micro_batches`, of all ranks, each by its own count."""
    terms = [
        term.weight * term.sum / (max(counts[name], 1) if name in counts else max(int(term.count), 1) * micro_batches)
        for name, term in loss.items()
    ]
    return torch.stack([t.float() for t in terms]).sum()
