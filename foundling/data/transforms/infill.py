# SPDX-License-Identifier: Apache-2.0
"""Text infilling (Lewis et al. 2020, BART, section 2.2): one mask replaces each span, the target is the whole document.

The objective is Causal, for an encoder-decoder.
"""

from __future__ import annotations

import numpy as np
import torch

from foundling.contracts.data import Batch, Batches
from foundling.data.transforms.span import Pair, denoising_batch
from foundling.errors import ConfigError


def span_lengths(length: int, rate: float, mean_span: float, rng: torch.Generator) -> np.ndarray:
    """(K,) lengths of the spans that hide round(length · rate) tokens of a document, drawn from Poisson(mean_span).

    The last one is shortened to meet that number. There are never more spans than hidden tokens: surplus spans of
    length 0, which only very short documents have, are dropped, so that a source is never longer than its document.
    """
    n_hidden = round(length * rate)
    if not n_hidden:
        return np.empty(0, dtype=np.int64)
    lengths = np.empty(0, dtype=np.int64)
    while lengths.sum() < n_hidden:
        drawn = torch.poisson(torch.full((n_hidden + 16,), mean_span), generator=rng)
        lengths = np.concatenate([lengths, drawn.numpy().astype(np.int64)])
    lengths = lengths[: np.searchsorted(lengths.cumsum(), n_hidden) + 1]
    lengths[-1] -= lengths.sum() - n_hidden
    surplus = max(0, len(lengths) - n_hidden)
    return np.delete(lengths, np.flatnonzero(lengths == 0)[:surplus])


def infill(tokens: np.ndarray, lengths: np.ndarray, mask: int, rng: torch.Generator) -> np.ndarray:
    """(T,) tokens -> (T − sum(lengths) + K,) source: the K spans lie in the given order at random places.

    All orders of visible tokens and spans are equally likely. A span of length 0 inserts a mask.
    """
    n_items = len(tokens) - int(lengths.sum()) + len(lengths)
    is_span = np.zeros(n_items, dtype=bool)
    is_span[torch.randperm(n_items, generator=rng)[: len(lengths)].numpy()] = True
    counts = np.ones(n_items, dtype=np.int64)
    counts[is_span] = lengths
    starts = np.minimum(counts.cumsum() - counts, len(tokens) - 1)  # minimum: a span of length 0 at the end
    return np.where(is_span, mask, tokens[starts])


class InfillBatches:
    """Batches of packed tokens, each document corrupted by itself: `source`, `source_documents` (B, T), and `tokens`,
    `targets`, `documents`, `loss_mask` (B, target_len) for the decoder, whose queries read their own document.

    Targets are the original documents, each closed by eos; `tokens` are the targets shifted right from `start_id`. The
    spans depend on (seed, sample id) alone. target_len is T + 16 by default; a document whose target does not fit any
    more is left whole and has no target. Raises ConfigError for a rate outside [0, 1) or a mean_span below 1.
    """

    def __init__(
        self,
        batches: Batches,
        *,
        seed: int,
        mask: int,
        eos: int,
        start_id: int = 0,
        rate: float = 0.3,
        mean_span: float = 3.0,
        target_len: int | None = None,
    ) -> None:
        if not 0 <= rate < 1 or mean_span < 1:
            raise ConfigError(f"rate {rate}, mean_span {mean_span}: expected 0 <= rate < 1 and mean_span >= 1")
        self.batches, self.seed, self.mask, self.eos, self.start_id = batches, seed, mask, eos, start_id
        self.rate, self.mean_span, self.target_len = rate, mean_span, target_len

    def __getitem__(self, n: int) -> Batch:
        batch = self.batches[n]
        target_len = self.target_len or batch["tokens"].shape[1] + 16
        return denoising_batch(batch, self._pair, "infill", self.seed, target_len, self.start_id)

    def _pair(self, tokens: np.ndarray, rng: torch.Generator) -> Pair:
        lengths = span_lengths(len(tokens), self.rate, self.mean_span, rng)
        return infill(tokens, lengths, self.mask, rng), np.append(tokens, self.eos)
