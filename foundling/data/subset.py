# SPDX-License-Identifier: Apache-2.0
"""Some of the encoded examples, as a split of their own."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from foundling.data.encoded import EncodedSplit


class Subset:
    """The examples of `split` at `indices`; read as an EncodedSplit is."""

    def __init__(self, split: EncodedSplit, indices: Sequence[int] | np.ndarray) -> None:
        self.split, self.indices = split, np.asarray(indices, dtype=np.int64)
        self.packed, self.eos = split.packed, split.eos
        self.hash = hashlib.sha256(f"{split.hash} ".encode() + self.indices.tobytes()).hexdigest()
        self.lengths, self.places = split.lengths[self.indices], split.places[self.indices]

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def n_tokens(self) -> int:
        return int(self.lengths.sum())

    def example(self, i: int) -> dict[str, np.ndarray]:
        return self.split.example(int(self.indices[i]))
