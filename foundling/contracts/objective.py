# SPDX-License-Identifier: Apache-2.0
"""Objectives, and how their terms become the scalar that is differentiated."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from foundling.contracts.data import Batch


class Term(NamedTuple):
    """A sum and the count to divide it by. They stay apart so that the mean is the same for any number of micro-batches
    and ranks."""

    sum: Tensor
    """()"""
    count: Tensor | int  # pyright: ignore[reportIncompatibleMethodOverride]  hides tuple.count, which nobody needs here
    """of this micro-batch"""
    weight: float = 1.0
    """0 for a metric that is only logged"""


Loss = dict[str, Term]
"""Terms by name; the one called "loss" is what the log shows. The total is Σ weight · sum / count, where training puts
the *global* count of the step in place of the local one."""


class Objective(Protocol):
    """What a model is trained for."""

    def normalizers(self, batch: Batch) -> dict[str, int]:
        """Term -> its count in this batch, from the batch alone, before any forward pass. The batch is on the CPU."""
        ...

    def __call__(self, model: Any, batch: Batch) -> Loss:
        """The terms of a micro-batch. A term that `normalizers` does not name is a mean over micro-batches."""
        ...


@runtime_checkable
class ContrastiveObjective(Protocol):
    """An objective that is not a sum over rows: it needs the representations of the whole global batch at once, which
    training gathers from micro-batches and ranks (gradient caching, Gao et al. 2021)."""

    def normalizers(self, batch: Batch) -> dict[str, int]:
        """As of an Objective."""
        ...

    def represent(self, model: Any, batch: Batch) -> dict[str, Tensor]:
        """Named (B, …) tensors of a micro-batch, rows first; the loss may depend on the model through them alone."""
        ...

    def loss(self, representations: dict[str, Tensor]) -> Loss:
        """The terms of the global batch."""
        ...


def total(loss: Loss, counts: dict[str, int], micro_batches: int = 1) -> Tensor:
    """() the scalar to differentiate: Σ weight · sum / global count. A term that `counts` does not name (router
    balance) is a mean over the `micro_batches` of the step on all ranks, each divided by its own count."""

    def divisor(name: str, count: Tensor | int) -> Tensor | int:
        if name in counts:
            return max(counts[name], 1)
        # a number read from a tensor would wait for the device
        return (count.clamp_min(1) if isinstance(count, Tensor) else max(count, 1)) * micro_batches

    terms = [term.weight * term.sum / divisor(name, term.count) for name, term in loss.items()]
    return torch.stack([t.float() for t in terms]).sum()
