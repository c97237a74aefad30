# SPDX-License-Identifier: Apache-2.0
"""Batches of comparisons: the completions of a prompt side by side, the best first (objectives/preference.py)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from foundling.contracts.data import Batch
from foundling.data.encoded import EncodedSplit
from foundling.data.subset import Subset
from foundling.data.transforms.examples import Once, PaddedExamples, packed_rows, rounded

REFERENCE = "reference_logprobs"


def comparisons_of(split: EncodedSplit) -> list[np.ndarray]:
    """The places of the completions of each prompt, which lie together in the split."""
    return np.split(np.arange(len(split)), np.flatnonzero(np.diff(split.places)) + 1)


def _longest(split: EncodedSplit) -> np.ndarray:
    """(prompts,) positions of the longest completion of each."""
    return np.maximum.reduceat(split.lengths, [int(group[0]) for group in comparisons_of(split)])


def subset_of(split: EncodedSplit, which: Sequence[int] | np.ndarray) -> Subset:
    """Some of the prompts, each with all its completions."""
    groups = comparisons_of(split)
    return Subset(split, np.concatenate([groups[int(i)] for i in which]))


def comparison_rows(split: EncodedSplit, groups: Sequence[np.ndarray], *, whole: bool = False) -> Batch:
    """tokens, targets, documents, loss_mask (B, K, T), n_completions (B,), and where the split has a `reference`,
    reference_logprobs (B, K). A prompt with fewer than K completions repeats its last one. `whole`: for a head, which
    reads all tokens; else the last one is a target alone."""
    n = max(map(len, groups))
    places = np.array([np.pad(group, (0, n - len(group)), mode="edge") for group in groups])
    width = rounded(max(int(split.lengths[i]) for i in places.flat) + whole)
    rows = packed_rows(split, [[i] for i in places.flat], width)
    if whole:
        for row, i in enumerate(places.flat):
            ids = torch.from_numpy(np.array(split.example(int(i))["tokens"], dtype=np.int64))
            rows["tokens"][row, : len(ids)], rows["documents"][row, : len(ids)] = ids, 0
    batch = {name: column.unflatten(0, places.shape) for name, column in rows.items()}
    batch["n_completions"] = torch.tensor([len(group) for group in groups])
    if split.reference is not None:
        batch[REFERENCE] = torch.from_numpy(split.reference[places])
    return batch


class Comparisons(PaddedExamples):
    """Of `batch_size` prompts a batch, those with completions of similar length together."""

    def __init__(
        self,
        split: EncodedSplit,
        *,
        batch_size: int,
        seed: int,
        whole: bool = False,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        super().__init__(split, batch_size=batch_size, seed=seed, rank=rank, world_size=world_size)
        self.groups, self.whole = comparisons_of(split), whole
        self.set_rows(_longest(split))

    def __getitem__(self, n: int) -> Batch:
        rows, first = self._rows_of(n)
        batch = comparison_rows(self.split, [self.groups[int(i)] for i in rows], whole=self.whole)
        return batch | {"sample_ids": torch.arange(first, first + len(rows))}


def longest_first(split: EncodedSplit) -> np.ndarray:
    """The prompts by their longest completion: those of a batch need little padding, and a lack of memory shows at the
    first batch."""
    return np.argsort(-_longest(split), kind="stable")


def comparison_batches(
    split: EncodedSplit, *, batch_size: int, whole: bool = False, order: np.ndarray | None = None
) -> Sequence[Batch]:
    """Each prompt once, in the order of the split or in this one, for evaluation; the last batch may have fewer."""
    groups = comparisons_of(split)
    groups = groups if order is None else [groups[int(i)] for i in order]
    return Once(len(groups), batch_size, lambda rows: comparison_rows(split, [groups[i] for i in rows], whole=whole))
