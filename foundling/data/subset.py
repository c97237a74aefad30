# SPDX-License-Identifier: Apache-2.0
"""Some of the encoded examples, as a split of their own."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from foundling.data.encoded import EncodedSplit


class Subset(EncodedSplit):
    """The examples of `split` at `indices`, in their order."""

    def __init__(self, split: EncodedSplit, indices: Sequence[int] | np.ndarray) -> None:
        self.split, self.indices = split, np.asarray(indices, dtype=np.int64)
        self.packed, self.eos = split.packed, split.eos
        self.reference = None if split.reference is None else split.reference[self.indices]
        self.hash = hashlib.sha256(f"{split.hash} ".encode() + self.indices.tobytes()).hexdigest()
        self.places, self.lengths = split.places[self.indices], split.lengths[self.indices]

    def example(self, i: int) -> dict[str, np.ndarray]:
        return self.split.example(int(self.indices[i]))
