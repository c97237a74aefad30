# SPDX-License-Identifier: Apache-2.0
"""Completions of prompts with numbers of each token, packed into rows (objectives/policy.py)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from foundling.contracts.data import Batch
from foundling.data.transforms.examples import pack, rounded


@dataclass
class Completions:
    """`tokens` (L,) of a prompt and its completion, with the token that ended it; the length of each prompt; and
    columns (C,) float32 of the tokens of each completion."""

    tokens: list[Tensor]
    n_prompt: list[int]
    columns: dict[str, list[Tensor]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.tokens)

    def length(self, i: int) -> int:
        """Tokens of completion i, C."""
        return len(self.tokens[i]) - self.n_prompt[i]

    def add_constant(self, name: str, values: Sequence[float]) -> None:
        """A column with one number for all tokens of a completion."""
        self.columns[name] = [torch.full((self.length(i),), float(value)) for i, value in enumerate(values)]


def pack_completions(
    completions: Completions, which: Sequence[int], pad: int, *, with_columns: bool = True
) -> tuple[Batch, list[tuple[int, int, int]]]:
    """Completions of these numbers packed into rows, longest first: tokens, targets, documents, loss_mask (B, T) and
    their columns; and where the tokens of each lie: (number, row, position of its first target)."""
    order = sorted(which, key=lambda i: -len(completions.tokens[i]))
    lengths = np.array([len(completions.tokens[i]) - 1 for i in order])
    width = rounded(int(lengths[0]))
    rows = [[order[place] for place in row] for row in pack(lengths, width)]
    tokens, targets = (torch.full((len(rows), width), pad) for _ in range(2))
    documents = torch.full((len(rows), width), -1)
    loss_mask = torch.zeros(len(rows), width, dtype=torch.bool)
    names = completions.columns if with_columns else ()
    columns = {name: torch.zeros(len(rows), width) for name in names}
    places = list[tuple[int, int, int]]()
    for row, numbers in enumerate(rows):
        start = 0
        for document, i in enumerate(numbers):
            ids, first = completions.tokens[i], start + completions.n_prompt[i] - 1
            at, answer = slice(start, start + len(ids) - 1), slice(first, first + completions.length(i))
            tokens[row, at], targets[row, at], documents[row, at] = ids[:-1], ids[1:], document
            loss_mask[row, answer] = True
            for name, column in columns.items():
                column[row, answer] = completions.columns[name][i]
            places.append((i, row, first))
            start += len(ids) - 1
    named = {"tokens": tokens, "targets": targets, "documents": documents, "loss_mask": loss_mask}
    return named | columns, places
