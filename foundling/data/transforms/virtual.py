# SPDX-License-Identifier: Apache-2.0
"""Soft prompts (Lester et al. 2021) in batches: virtual tokens before each document, for any objective."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from foundling.contracts.data import Batch, Batches

SOURCE = "source"


class VirtualBatches:
    """Batches whose documents each begin with the tokens `ids`, of which nothing is asked: 0 in `targets`, False in
    `loss_mask`. Where a batch has a `source`, its documents begin so, and the tokens that answer them do not. Rows
    become longer by len(ids) for each document of the fullest row."""

    def __init__(self, batches: Batches, ids: Sequence[int]) -> None:
        self.batches, self.ids = batches, torch.tensor(list(ids), dtype=torch.int64)

    def __getitem__(self, n: int) -> Batch:
        batch = self.batches[n]
        if not len(self.ids):
            return batch
        if batch["tokens"].dim() == 3:  # the completions of prompts (B, K, T): each is a text
            shape = batch["tokens"].shape[:2]
            flat = {name: c.flatten(0, 1) if c.dim() == 3 else c for name, c in batch.items()}
            wide = with_virtual_tokens(flat, self.ids)
            return {name: c.unflatten(0, shape) if batch[name].dim() == 3 else c for name, c in wide.items()}
        return with_virtual_tokens(batch, self.ids)


def with_virtual_tokens(batch: Batch, ids: Tensor) -> Batch:
    """All columns (B, T) of the side that is read, widened alike; ids (n,)."""
    side = SOURCE if SOURCE in batch else "tokens"
    tokens, name = batch[side], "source_documents" if side == SOURCE else "documents"
    documents = batch[name] if name in batch else torch.zeros_like(tokens)
    begins = documents >= 0
    begins[:, 1:] &= documents[:, 1:] != documents[:, :-1]
    n, (rows, width) = len(ids), tokens.shape
    shift = n * begins.cumsum(1)
    places = torch.arange(width, device=tokens.device) + shift
    row, at = begins.nonzero(as_tuple=True)
    first = (places[row, at] - n)[:, None] + torch.arange(n, device=tokens.device)  # (documents, n)
    ends = torch.where(documents >= 0, places + 1, 0)
    widened = width + int(shift[:, -1].max())

    def widen(column: Tensor, fill: int = 0) -> Tensor:
        wide = column.new_full((rows, widened), fill)
        return wide.scatter(1, places, column)[:, : int(ends.max())]

    wide = {
        key: widen(column)
        for key, column in batch.items()
        if column.shape == tokens.shape and key.startswith(SOURCE) == (side == SOURCE)
    }
    wide[name] = widen(documents, -1)
    wide[side][row[:, None], first] = ids.to(tokens.device)
    wide[name][row[:, None], first] = documents[row, at][:, None].expand(-1, n)
    return batch | wide
