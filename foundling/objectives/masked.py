# SPDX-License-Identifier: Apache-2.0
"""Hide some tokens and ask for them (Devlin et al. 2019, BERT, section 3.1). The loss is Causal's, of a model that
reads both ways: a hidden place is asked for itself."""

from __future__ import annotations

import torch

from foundling.contracts.data import Batch, Batches
from foundling.errors import ConfigError
from foundling.runtime.rng import generator

HIDDEN, OTHER = 0.8, 0.1
"""of the chosen places: shown as the mask, shown as any token; the rest is shown as it is"""


class MaskedBatches:
    """Batches of packed tokens with `rate` of their places hidden: `tokens` as the model sees them, `targets` as they
    were, `loss_mask` (B, T) where it is asked. What is hidden depends on (seed, sample id) alone; padding and the
    tokens `kept` (borders of documents, say) never are."""

    def __init__(
        self, batches: Batches, *, seed: int, mask: int, vocab_size: int, rate: float = 0.15, kept: tuple[int, ...] = ()
    ) -> None:
        if not 0 < rate < 1:
            raise ConfigError(f"rate {rate} is not between 0 and 1")
        self.batches, self.seed, self.mask, self.vocab_size, self.rate = batches, seed, mask, vocab_size, rate
        self.kept = torch.tensor(kept, dtype=torch.int64)

    def __getitem__(self, n: int) -> Batch:
        batch = self.batches[n]
        tokens, documents = batch["tokens"], batch["documents"]
        asked, shown = torch.zeros_like(tokens, dtype=torch.bool), tokens.clone()
        for row, sample in enumerate(batch["sample_ids"].tolist()):
            chance = generator("masked", self.seed, sample)
            chosen, how = torch.rand(2, tokens.shape[1], generator=chance)
            others = torch.randint(self.vocab_size, (tokens.shape[1],), generator=chance)
            asked[row] = (chosen < self.rate) & (documents[row] >= 0) & ~torch.isin(tokens[row], self.kept)
            seen = torch.where(how < HIDDEN, self.mask, torch.where(how < HIDDEN + OTHER, others, tokens[row]))
            shown[row] = torch.where(asked[row], seen, tokens[row])
        return batch | {"tokens": shown, "targets": tokens, "loss_mask": asked}
