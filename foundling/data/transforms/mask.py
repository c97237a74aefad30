# SPDX-License-Identifier: Apache-2.0
"""Masked language modelling (Devlin et al. 2019, BERT, section 3.1): predict hidden tokens at their own positions.

The objective is Causal, for a bidirectional model.
"""

from __future__ import annotations

import torch
from torch import Tensor

from foundling.contracts.data import Batch, Batches
from foundling.errors import ConfigError
from foundling.runtime.rng import generator
from foundling.text import Tokenizer

HIDDEN, OTHER = 0.8, 0.1
"""Of the chosen positions: replaced by the mask, replaced by a random token; the rest is unchanged."""


class MaskedBatches:
    """Batches of packed tokens with `rate` of their positions chosen to be predicted.

    `tokens` (B, T) are corrupted, `targets` (B, T) the original ones, `loss_mask` (B, T) True at chosen positions. The
    choice depends on (seed, sample id) alone. Padding and the tokens `never` (document separators, for instance) are
    not chosen. With `word_starts` (V,), True for tokens that begin a word, all tokens of a word are chosen or none
    (whole-word masking; Cui et al. 2019, section 2.2); each is replaced on its own. Raises ConfigError for a rate
    outside (0, 1).
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
        word_starts: Tensor | None = None,
    ) -> None:
        if not 0 < rate < 1:
            raise ConfigError(f"rate {rate} is not between 0 and 1")
        self.batches, self.seed, self.mask, self.vocab_size, self.rate = batches, seed, mask, vocab_size, rate
        self.never = torch.tensor(never, dtype=torch.int64)
        self.word_starts = word_starts

    def __getitem__(self, n: int) -> Batch:
        batch = self.batches[n]
        tokens, documents = batch["tokens"], batch["documents"]
        chosen, corrupted = torch.zeros_like(tokens, dtype=torch.bool), tokens.clone()
        for row, sample in enumerate(batch["sample_ids"].tolist()):
            rng = generator("masked", self.seed, sample)
            choice, kind = torch.rand(2, tokens.shape[1], generator=rng)
            if self.word_starts is not None:
                choice = choice[self._words(tokens[row], documents[row])]  # that of its word, for each token
            others = torch.randint(self.vocab_size, (tokens.shape[1],), generator=rng)
            chosen[row] = (choice < self.rate) & (documents[row] >= 0) & ~torch.isin(tokens[row], self.never)
            shown = torch.where(kind < HIDDEN, self.mask, torch.where(kind < HIDDEN + OTHER, others, tokens[row]))
            corrupted[row] = torch.where(chosen[row], shown, tokens[row])
        return batch | {"tokens": corrupted, "targets": tokens, "loss_mask": chosen}

    def _words(self, tokens: Tensor, documents: Tensor) -> Tensor:
        """(T,) -> (T,) the number of the word of each token. A token of `never` is a word of its own, and no word goes
        on in another document."""
        assert self.word_starts is not None
        alone = torch.isin(tokens, self.never)
        starts = self.word_starts[tokens] | alone
        starts[1:] |= alone[:-1] | (documents[1:] != documents[:-1])
        return starts.cumsum(0) - starts[0].long()


def word_starts(tokenizer: Tokenizer) -> Tensor:
    """(V,) bool, True for tokens that begin a word: those without "##" in a WordPiece vocabulary; with "Ġ" (a space) or
    "▁" in front, or without any letter or digit, in a byte-level BPE or SentencePiece vocabulary. ConfigError for a
    vocabulary that marks neither."""
    vocabulary = tokenizer.backend.get_vocab(with_added_tokens=False)
    mark = next((mark for mark in ("##", "Ġ", "▁") if any(piece.startswith(mark) for piece in vocabulary)), None)
    if mark is None:
        raise ConfigError("the tokens do not say where words begin (##, Ġ or ▁), so whole words cannot be masked")
    starts = torch.ones(tokenizer.vocab_size, dtype=torch.bool)  # special tokens too
    for piece, token in vocabulary.items():
        if mark == "##":
            starts[token] = not piece.startswith(mark)
        elif token not in tokenizer.special:
            starts[token] = piece.startswith(mark) or not any(sign.isalnum() for sign in piece)
    return starts
