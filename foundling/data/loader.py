# SPDX-License-Identifier: Apache-2.0
"""Batches by number: the tokens of sample k depend on (seed, data, k) alone, not on ranks or restarts."""

from __future__ import annotations

import hashlib
from functools import lru_cache

import numpy as np
import torch

from foundling.contracts.data import Batch
from foundling.data.shards import TokenArray, TokenShards
from foundling.errors import DataError


class PackedBatches:
    """Windows of seq_len tokens from the stream of all documents, in a new order and at a new offset every epoch.

    `documents` (B, T) numbers the documents inside a row, so that attention stays within each. Global batch n is
    samples [n·B, (n+1)·B); a rank gets its consecutive share of the rows. Raises DataError for a batch_size that the
    ranks do not divide and for text shorter than two windows.
    """

    def __init__(
        self,
        shards: TokenShards | TokenArray,
        *,
        seq_len: int,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if batch_size % world_size:
            raise DataError(f"batch_size {batch_size} is not a multiple of {world_size} processes")
        self.shards, self.seq_len, self.batch_size, self.seed = shards, seq_len, batch_size, seed
        self.rank, self.world_size = rank, world_size
        self.windows = (shards.n_tokens - seq_len) // seq_len  # the same for every offset below seq_len
        if self.windows < 1:
            raise DataError(
                f"the training text has {shards.n_tokens} tokens, one window takes {2 * seq_len}; "
                f"give more text or a seq_len of at most {shards.n_tokens // 2}"
            )
        self._epoch = lru_cache(maxsize=2)(self._order)

    def _order(self, epoch: int) -> tuple[int, np.ndarray]:
        name = f"{self.seed} {self.shards.hash} {self.seq_len} {epoch}".encode()
        rng = np.random.default_rng(np.frombuffer(hashlib.sha256(name).digest(), dtype=np.uint32))
        return int(rng.integers(self.seq_len)), rng.permutation(self.windows)

    def sample(self, k: int) -> np.ndarray:
        """(seq_len + 1,) tokens of sample k."""
        epoch, place = divmod(k, self.windows)
        offset, order = self._epoch(epoch)
        start = offset + int(order[place]) * self.seq_len
        return self.shards.read(start, start + self.seq_len + 1)

    def __getitem__(self, n: int) -> Batch:
        share = self.batch_size // self.world_size
        first = n * self.batch_size + self.rank * share
        ids = range(first, first + share)
        rows = torch.from_numpy(np.stack([self.sample(k) for k in ids]))
        return packed(rows, self.shards.eos) | {"sample_ids": torch.tensor(ids)}


def packed(rows: torch.Tensor, eos: int) -> Batch:
    """rows (B, T+1) of packed tokens -> tokens, targets, documents and loss_mask (B, T).

    The eos before a document belongs to it and predicts its first token.
    """
    tokens, targets = rows[:, :-1].contiguous(), rows[:, 1:].contiguous()
    documents = (tokens == eos).cumsum(dim=1)
    return {
        "tokens": tokens,
        "targets": targets,
        "documents": documents,
        "loss_mask": torch.ones_like(tokens, dtype=torch.bool),
    }


def evaluation_batches(shards: TokenShards | TokenArray, *, seq_len: int, batch_size: int, stride: int) -> list[Batch]:
    """Batches that predict every token of the shards once, after at least seq_len − stride tokens where there are any.

    Windows overlap, and each counts only its last `stride` targets (the first counts all). `sample_ids` numbers the
    rows across all batches.
    """
    stream = torch.from_numpy(shards.read(0, shards.n_tokens))
    length = min(seq_len, len(stream) - 1)
    starts = list(range(0, len(stream) - 1 - length, stride)) + [len(stream) - 1 - length]
    rows, masks, done = [], [], 0
    for start in starts:
        mask = torch.zeros(length, dtype=torch.bool)
        mask[done - start :] = True
        rows.append(stream[start : start + length + 1])
        masks.append(mask)
        done = start + length
    batches = []
    for i in range(0, len(rows), batch_size):
        batch = packed(torch.stack(rows[i : i + batch_size]), shards.eos)
        batch["loss_mask"] = torch.stack(masks[i : i + batch_size])
        batch["sample_ids"] = torch.arange(i, i + len(batch["tokens"]))
        batches.append(batch)
    return batches
