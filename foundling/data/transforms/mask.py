# SPDX-License-Identifier: Apache-2.0
"""Masked language modelling (Devlin et al. 2019, BERT, section 3.1): predict hidden tokens at their own positions.

The objective is Causal, for a bidirectional model.
"""

from __future__ import annotations

import torch

from foundling.contracts.data import Batch, Batches
from foundling.errors import ConfigError
from foundling.runtime.rng import generator

HIDDEN, OTHER = 0.8, 0.1
"""Of the chosen positions: replaced by the mask, replaced by a random token; the rest is unchanged."""


class MaskedBatches:
    """Batches of packed tokens with `rate` of their positions chosen to be predicted.

    `tokens` (B, T) are corrupted, `targets` (B, T) the original ones, `loss_mask` (B, T) True at chosen positions. The
    choice depends on (seed, sample id) alone. Padding and the tokens `never` (document separators, for instance) are
    not chosen. Raises ConfigError for a rate outside (0, 1).
    """

    def __init__(
        self,
        batches: Batches,
        *,
        seed: int,
        mask: int,
        vocab_size: int,
        rate: float = 0.15,
        never: tuple[int, ...] = (),
    ) -> None:
        if not 0 < rate < 1:
            raise ConfigError(f"rate {rate} is not between 0 and 1")
        self.batches, self.seed, self.mask, self.vocab_size, self.rate = batches, seed, mask, vocab_size, rate
        self.never = torch.tensor(never, dtype=torch.int64)

    def __getitem__(self, n: int) -> Batch:
        batch = self.batches[n]
        tokens, documents = batch["tokens"], batch["documents"]
        chosen, corrupted = torch.zeros_like(tokens, dtype=torch.bool), tokens.clone()
        for row, sample in enumerate(batch["sample_ids"].tolist()):
            rng = generator("masked", self.seed, sample)
            choice, kind = torch.rand(2, tokens.shape[1], generator=rng)
            others = torch.randint(self.vocab_size, (tokens.shape[1],), generator=rng)
            chosen[row] = (choice < self.rate) & (documents[row] >= 0) & ~torch.isin(tokens[row], self.never)
            shown = torch.where(kind < HIDDEN, self.mask, torch.where(kind < HIDDEN + OTHER, others, tokens[row]))
            corrupted[row] = torch.where(chosen[row], shown, tokens[row])
        return batch | {"tokens": corrupted, "targets": tokens, "loss_mask": chosen}
