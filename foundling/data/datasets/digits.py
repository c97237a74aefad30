# SPDX-License-Identifier: Apache-2.0
"""`digits`: 1,797 handwritten digits of 8 by 8 pixels that come with scikit-learn (Alpaydin & Kaynak 1998)."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch

from foundling.contracts.data import Batch
from foundling.errors import DataError
from foundling.runtime.rng import generator

HELD_OUT = 297


@lru_cache(maxsize=1)
def digits() -> tuple[torch.Tensor, torch.Tensor]:
    """pixels (1797, 1, 8, 8) float32 in [−1, 1] and classes (1797,)."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise DataError("digits need scikit-learn; install it: pip install 'foundling[corpora]'") from None
    loaded: Any = load_digits()
    pixels = torch.tensor(loaded.images, dtype=torch.float32)[:, None] / 8 - 1
    return pixels, torch.tensor(loaded.target, dtype=torch.int64)


def load(split: str) -> tuple[torch.Tensor, torch.Tensor]:
    """pixels (N, 1, 8, 8) and classes (N,) of "train", the first 1,500 pictures, or "test", the last 297."""
    pixels, classes = digits()
    here = slice(len(pixels) - HELD_OUT, None) if split == "test" else slice(0, len(pixels) - HELD_OUT)
    return pixels[here], classes[here]


class DigitBatches:
    """Batches of the training split: `pixels` (B, 1, 8, 8), `classes` and `sample_ids` (B,).

    Sample k depends on (seed, k) alone; every picture comes once an epoch.
    """

    def __init__(self, *, batch_size: int, seed: int, rank: int = 0, world_size: int = 1) -> None:
        if batch_size % world_size:
            raise DataError(f"batch_size {batch_size} is not a multiple of {world_size} processes")
        self.batch_size, self.seed, self.rank, self.world_size = batch_size, seed, rank, world_size
        self.pixels, self.classes = load("train")

    def __getitem__(self, n: int) -> Batch:
        share = self.batch_size // self.world_size
        first = n * self.batch_size + self.rank * share
        ids = torch.arange(first, first + share)
        chosen = torch.stack([self._order(int(k) // len(self.pixels))[int(k) % len(self.pixels)] for k in ids])
        return {"pixels": self.pixels[chosen], "classes": self.classes[chosen], "sample_ids": ids}

    @lru_cache(maxsize=2)  # noqa: B019  a run has one of these
    def _order(self, epoch: int) -> torch.Tensor:
        return torch.randperm(len(self.pixels), generator=generator("digits", self.seed, epoch))
