# SPDX-License-Identifier: Apache-2.0
"""`digits`: 1,797 handwritten digits of 8 by 8 pixels that come with scikit-learn (Alpaydin & Kaynak 1998)."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch

from foundling.contracts.data import Batch
from foundling.errors import DataError
from foundling.runtime.rng import generator

LICENCE = "CC-BY-4.0"
HELD_OUT = 297


@lru_cache(maxsize=1)
def digits() -> tuple[torch.Tensor, torch.Tensor]:
    """pixels (1797, 1, 8, 8) float32 in [−1, 1] and classes (1797,)."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise DataError("digits need scikit-learn; install it: pip install 'foundling[corpora]'") from None
    found: Any = load_digits()
    pixels = torch.tensor(found.images, dtype=torch.float32)[:, None] / 8 - 1
    return pixels, torch.tensor(found.target, dtype=torch.int64)


class DigitBatches:
    """`pixels`, `classes`, `sample_ids`; sample k depends on (seed, k) alone, every picture once an epoch. The last 297
    pictures are held out."""

    def __init__(self, *, batch_size: int, seed: int, rank: int = 0, world_size: int = 1) -> None:
        if batch_size % world_size:
            raise DataError(f"batch_size {batch_size} is not a multiple of {world_size} processes")
        self.batch_size, self.seed, self.rank, self.world_size = batch_size, seed, rank, world_size
        pixels, classes = digits()
        self.pixels, self.classes = pixels[:-HELD_OUT], classes[:-HELD_OUT]

    def __getitem__(self, n: int) -> Batch:
        share = self.batch_size // self.world_size
        first = n * self.batch_size + self.rank * share
        ids = torch.arange(first, first + share)
        chosen = torch.stack([self._order(int(k) // len(self.pixels))[int(k) % len(self.pixels)] for k in ids])
        return {"pixels": self.pixels[chosen], "classes": self.classes[chosen], "sample_ids": ids}

    @lru_cache(maxsize=2)  # noqa: B019  a run has one of these
    def _order(self, epoch: int) -> torch.Tensor:
        return torch.randperm(len(self.pixels), generator=generator("digits", self.seed, epoch))
