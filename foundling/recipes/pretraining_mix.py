# SPDX-License-Identifier: Apache-2.0
"""Text of pretraining beside the completions of a rollout, so that a policy forgets less (Ouyang et al. 2022:
PPO-ptx)."""

from __future__ import annotations

import hashlib
from itertools import chain, islice
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from foundling.contracts.data import Batch
from foundling.data.datasets import open_data
from foundling.errors import DataError, MismatchError
from foundling.recipes.recipe import Recipe
from foundling.text import Tokenizer

MOST_TOKENS = 1 << 22
"""of the text that are used, from its beginning"""


class PretrainingText(NamedTuple):
    windows: Tensor
    """(N, S + 1) int32"""
    hash: str

    def columns(self, rows: int, rng: np.random.Generator) -> Batch:
        """`pretraining_tokens` and `pretraining_targets` (rows, S), drawn anew for each update."""
        chosen = self.windows[torch.from_numpy(rng.integers(len(self.windows), size=rows))].long()
        return {"pretraining_tokens": chosen[:, :-1], "pretraining_targets": chosen[:, 1:]}


def read_pretraining(recipe: Recipe, tokenizer: Tokenizer) -> PretrainingText | None:
    """The documents one after another, in windows as long as a row of training. None where none is asked for. DataError
    where they do not fill one; MismatchError where they are not what the recipe was resolved with."""
    place, length = recipe.objective.pretraining, recipe.train.seq_len
    if place is None:
        return None
    documents = (document.text for document in open_data(place))
    ids = chain.from_iterable([*tokenizer.opening, *tokenizer.encode(text), tokenizer.eos] for text in documents)
    stream = np.fromiter(islice(ids, MOST_TOKENS), dtype=np.int32)
    if len(stream) <= length:
        raise DataError(f"the text of pretraining, {place}, has {len(stream):,} tokens; give more than {length:,}")
    windows = torch.from_numpy(np.lib.stride_tricks.sliding_window_view(stream, length + 1)[::length].copy())
    digest = hashlib.sha256(windows.numpy().tobytes()).hexdigest()
    expected = recipe.objective.pretraining_hash
    if expected not in (None, digest):
        raise MismatchError(
            f"the text of pretraining, {place}, hashes to {digest[:12]}, the recipe was resolved with "
            f"{str(expected)[:12]}; put the same text back"
        )
    return PretrainingText(windows, digest)
