# SPDX-License-Identifier: Apache-2.0
"""Batches of encoded examples: several in a row for a causal model, one in a row else.

An epoch is `steps_per_epoch` batches of `batch_size` rows, in a new order; what its last batch lacks is filled with
rows from the beginning of the same epoch. Global batch n depends on (seed, data, n) alone, and a rank gets its
consecutive share of the rows.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from foundling.contracts.data import Batch
from foundling.data.encode import MULTIPLE
from foundling.data.encoded import EncodedExamples, EncodedSplit
from foundling.errors import DataError

SORTED_BATCHES = 16
"""batches whose examples are sorted by length among each other: less padding, and still a random order"""


class _Epochs:
    """Batches of rows; a subclass says which rows an epoch has, in order, `batch_size` for each batch."""

    def __init__(
        self, split: EncodedSplit, n_rows: int, batch_size: int, seed: int, rank: int, world_size: int
    ) -> None:
        if batch_size % world_size:
            raise DataError(f"batch_size {batch_size} is not a multiple of {world_size} processes")
        self.split, self.batch_size, self.seed, self.rank, self.world_size = split, batch_size, seed, rank, world_size
        self.steps_per_epoch = -(-n_rows // batch_size)
        self._rows = lru_cache(maxsize=2)(self._epoch)

    def _epoch(self, epoch: int) -> Sequence[Any]:
        raise NotImplementedError

    def _rng(self, epoch: int) -> np.random.Generator:
        name = f"examples {self.seed} {self.split.hash} {epoch}".encode()
        return np.random.default_rng(np.frombuffer(hashlib.sha256(name).digest(), dtype=np.uint32))

    def _rows_of(self, n: int) -> tuple[Sequence[Any], int]:
        """This rank's rows of global batch n, and the number of the first over all batches."""
        epoch, step = divmod(n, self.steps_per_epoch)
        share = self.batch_size // self.world_size
        first = step * self.batch_size + self.rank * share
        rows = self._rows(epoch)[first : first + share]
        return rows, n * self.batch_size + self.rank * share


class PackedExamples(_Epochs):
    """Rows of seq_len positions that hold several examples each, for a causal model: tokens, targets, documents,
    loss_mask (B, T) and sample_ids (B,), the number of the row.

    `documents` numbers the examples of a row, and is −1 where it is not full. A target is the next token of the same
    example. Which lengths share a row is the same in every epoch (best fit of the longest first), which examples do is
    not. DataError for an example longer than seq_len.
    """

    def __init__(
        self, split: EncodedSplit, *, seq_len: int, batch_size: int, seed: int, rank: int = 0, world_size: int = 1
    ) -> None:
        lengths = split.lengths
        if len(lengths) and lengths.max() > seq_len:
            raise DataError(
                f"an example has {lengths.max():,} positions, a row {seq_len:,}: encode them for this seq_len"
            )
        self.seq_len, self._lengths = seq_len, lengths
        self._pattern = pack(np.sort(lengths)[::-1], seq_len)
        self.n_rows = len(self._pattern)
        self.padding = 1 - float(lengths.sum()) / (self.n_rows * seq_len)
        """share of all positions"""
        super().__init__(split, self.n_rows, batch_size, seed, rank, world_size)

    def _epoch(self, epoch: int) -> Sequence[Any]:
        rng = self._rng(epoch)
        order = np.lexsort((rng.permutation(len(self._lengths)), -self._lengths))  # longest first, equal ones shuffled
        chosen = np.resize(rng.permutation(self.n_rows), self.steps_per_epoch * self.batch_size)
        return [order[self._pattern[row]] for row in chosen]

    def __getitem__(self, n: int) -> Batch:
        rows, first = self._rows_of(n)
        return packed_rows(self.split, rows, self.seq_len) | {"sample_ids": torch.arange(first, first + len(rows))}


def pack(lengths: np.ndarray, seq_len: int) -> list[list[int]]:
    """Rows of places, so that the lengths (in descending order, each at most seq_len) of a row sum to at most seq_len:
    each goes to the fullest row that has room for it (best-fit decreasing; Johnson 1973)."""
    rows = list[list[int]]()
    with_room: dict[int, list[int]] = {}
    """room -> rows"""
    rooms = list[int]()
    for place, length in enumerate(lengths.tolist()):
        at = bisect_left(rooms, length)
        if at == len(rooms):
            row, room = len(rows), seq_len
            rows.append([])
        else:
            room = rooms[at]
            row = with_room[room].pop()
            if not with_room[room]:
                del with_room[room], rooms[at]
        rows[row].append(place)
        if left := room - length:
            if left not in with_room:
                with_room[left] = []
                rooms.insert(bisect_left(rooms, left), left)
            with_room[left].append(row)
    return rows


def packed_rows(split: EncodedSplit, rows: Sequence[Sequence[int]], seq_len: int) -> Batch:
    """tokens, targets, documents and loss_mask (B, seq_len) of rows of examples; padding is the tokenizer's eos."""
    shape = (len(rows), seq_len)
    tokens, targets = np.full(shape, split.eos), np.full(shape, split.eos)
    documents, loss_mask = np.full(shape, -1), np.zeros(shape, dtype=bool)
    for row, examples in enumerate(rows):
        start = 0
        for document, i in enumerate(examples):
            example = split.example(int(i))
            at = slice(start, start := start + len(example["tokens"]) - 1)
            tokens[row, at], targets[row, at] = example["tokens"][:-1], example["tokens"][1:]
            documents[row, at], loss_mask[row, at] = document, example["mask"][1:]
    named = {"tokens": tokens, "targets": targets, "documents": documents, "loss_mask": loss_mask}
    return {name: torch.from_numpy(array) for name, array in named.items()}


class PaddedExamples(_Epochs):
    """One example in a row, rows of similar length together: tokens and documents (B, T), T a multiple of 8, −1 in
    `documents` for padding on the right; sample_ids (B,), the place in the split; and by kind

    - classify, regress: labels (B,), int64 or float32; token_types (B, T) of pairs, where the tokenizer has them
    - tag: targets and loss_mask (B, T), the tag at the first token of each word
    - seq2seq: source, source_documents (B, S), targets and loss_mask; tokens are the targets shifted right from
      `start_id`
    """

    def __init__(
        self, split: EncodedSplit, *, batch_size: int, seed: int, rank: int = 0, world_size: int = 1, start_id: int = 0
    ) -> None:
        super().__init__(split, len(split), batch_size, seed, rank, world_size)
        self.start_id, self._lengths = start_id, split.lengths

    def set_rows(self, lengths: np.ndarray) -> None:
        """Rows that are other than the examples of the split, by their lengths."""
        self._lengths, self.steps_per_epoch = lengths, -(-len(lengths) // self.batch_size)

    def _epoch(self, epoch: int) -> Sequence[Any]:
        rng = self._rng(epoch)
        order = np.resize(rng.permutation(len(self._lengths)), self.steps_per_epoch * self.batch_size)
        batches = list[np.ndarray]()
        for group in np.split(
            order, range(SORTED_BATCHES * self.batch_size, len(order), SORTED_BATCHES * self.batch_size)
        ):
            by_length = group[np.argsort(self._lengths[group], kind="stable")]
            parts = by_length.reshape(-1, self.batch_size)
            batches += [parts[i] for i in rng.permutation(len(parts))]
        return np.concatenate(batches).tolist()

    def __getitem__(self, n: int) -> Batch:
        rows, _ = self._rows_of(n)
        return padded_rows(self.split, rows, self.start_id)


def padded_rows(split: EncodedSplit, rows: Sequence[int], start_id: int = 0) -> Batch:
    """The batch of PaddedExamples, or of a causal model, with one example in each row."""
    if split.packed:
        width = rounded(max(int(split.lengths[i]) for i in rows))
        return packed_rows(split, [[i] for i in rows], width) | {"sample_ids": torch.tensor([int(i) for i in rows])}
    examples = [split.example(int(i)) for i in rows]
    batch = {"sample_ids": torch.tensor([int(i) for i in rows])}
    lengths = [len(example["tokens"]) for example in examples]
    batch["documents"] = _documents(lengths)
    ids = _padded(examples, "tokens", split.eos)
    if "source" in examples[0]:
        batch["source_documents"] = _documents([len(example["source"]) for example in examples])
        batch["source"] = _padded(examples, "source", split.eos)
        first = torch.full((len(rows), 1), start_id)
        return batch | {
            "tokens": torch.cat([first, ids[:, :-1]], 1),
            "targets": ids,
            "loss_mask": batch["documents"] >= 0,
        }
    batch["tokens"] = ids
    if "targets" in examples[0]:
        batch |= {"targets": _padded(examples, "targets", 0), "loss_mask": _padded(examples, "mask", 0).bool()}
    if "types" in examples[0]:
        batch["token_types"] = _padded(examples, "types", 0)
    if "labels" in examples[0]:
        batch["labels"] = torch.from_numpy(np.array([example["labels"] for example in examples]))
    return batch


def rounded(length: int) -> int:
    return -(-length // MULTIPLE) * MULTIPLE


def _documents(lengths: Sequence[int]) -> torch.Tensor:
    return torch.where(torch.arange(rounded(max(lengths))) < torch.tensor(lengths)[:, None], 0, -1)


def _padded(examples: Sequence[dict[str, np.ndarray]], name: str, fill: int) -> torch.Tensor:
    out = np.full((len(examples), rounded(max(len(example[name]) for example in examples))), fill)
    for row, example in enumerate(examples):
        out[row, : len(example[name])] = example[name]
    return torch.from_numpy(out)


class Once(Sequence[Batch]):
    """n rows in order, `batch_size` a batch, the last of which may have fewer; `make` makes those of a range."""

    def __init__(self, n: int, batch_size: int, make: Callable[[range], Batch]) -> None:
        self.n, self.batch_size, self.make = n, batch_size, make

    def __len__(self) -> int:
        return -(-self.n // self.batch_size)

    def __getitem__(self, n: Any) -> Any:
        if isinstance(n, slice):
            return [self[i] for i in range(*n.indices(len(self)))]
        n = range(len(self))[n]
        return self.make(range(n * self.batch_size, min((n + 1) * self.batch_size, self.n)))


def example_batches(split: EncodedSplit, *, batch_size: int, start_id: int = 0) -> Sequence[Batch]:
    """Each example once, in order, one in a row, for evaluation; the last batch may have fewer rows."""
    return Once(len(split), batch_size, lambda rows: padded_rows(split, rows, start_id))


def training_batches(
    encoded: EncodedExamples,
    *,
    batch_size: int,
    seed: int,
    seq_len: int | None = None,
    rank: int = 0,
    world_size: int = 1,
    start_id: int = 0,
) -> PackedExamples | PaddedExamples:
    """The batches of its kind; `seq_len` is the length of packed rows, by default that of the longest examples."""
    same: dict[str, Any] = {"batch_size": batch_size, "seed": seed, "rank": rank, "world_size": world_size}
    if encoded.packed:
        return PackedExamples(encoded.train, seq_len=seq_len or encoded.seq_len, **same)
    return PaddedExamples(encoded.train, start_id=start_id, **same)
