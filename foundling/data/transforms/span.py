# SPDX-License-Identifier: Apache-2.0
"""Span corruption (Raffel et al. 2020, T5, section 3.1.4): sentinels replace spans of the source, the target has them.

The objective is Causal, for an encoder-decoder.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from foundling.contracts.data import Batch, Batches
from foundling.errors import ConfigError
from foundling.runtime.rng import generator

Pair = tuple[np.ndarray, np.ndarray]
"""(source, target) tokens of one document"""


def noise_mask(length: int, density: float, mean_span: float, rng: torch.Generator) -> np.ndarray:
    """(length,) bool, True = hidden: round(length · density) positions in spans of `mean_span` on average.

    At least one visible position precedes each span; all such masks are equally likely. (The authors' code ends every
    mask in a hidden span, which hides nothing but the ends of short documents.)
    """
    n_hidden = min(max(round(length * density), 1), length - 1)
    n_spans = min(max(round(n_hidden / mean_span), 1), n_hidden, length - n_hidden)
    visible, hidden = _split(length - n_hidden + 1, n_spans + 1, rng), _split(n_hidden, n_spans, rng)
    visible[-1] -= 1  # the part after the last span may be empty
    counts = np.stack([visible, np.append(hidden, 0)], 1).flatten()
    return np.repeat(np.tile([False, True], n_spans + 1), counts)


def _split(total: int, parts: int, rng: torch.Generator) -> np.ndarray:
    """`total` as a sum of `parts` positive integers; all such sums are equally likely."""
    cuts = np.sort(torch.randperm(total - 1, generator=rng)[: parts - 1].numpy()) + 1
    return np.diff(np.concatenate([[0], cuts, [total]]))


def corrupt(tokens: np.ndarray, mask: np.ndarray, sentinels: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """(T,) tokens and mask -> source, where one sentinel replaces each hidden span, and target, where one replaces each
    visible span. The n-th sentinel of the source announces the n-th hidden span in the target; the last sentinel is
    used for all further spans."""

    def replaced(where: np.ndarray) -> np.ndarray:
        first = where & ~np.concatenate([[False], where[:-1]])
        number = np.minimum(first.cumsum() - 1, len(sentinels) - 1)
        out = np.where(first, np.asarray(sentinels)[number], tokens)
        return out[first | ~where]

    return replaced(mask), replaced(~mask)


class SpanBatches:
    """Batches of packed tokens, each document corrupted by itself: `source`, `source_documents` (B, T), and `tokens`,
    `targets`, `documents`, `loss_mask` (B, target_len) for the decoder, whose queries read their own document.

    The spans depend on (seed, sample id) alone. A document of fewer than three tokens, or whose target does not fit
    into target_len any more, is left whole and has no target. Raises ConfigError for a density outside (0, 1), a
    mean_span below 1 or no sentinels.
    """

    def __init__(
        self,
        batches: Batches,
        *,
        seed: int,
        sentinels: Sequence[int],
        eos: int,
        start_id: int = 0,
        density: float = 0.15,
        mean_span: float = 3.0,
        target_len: int | None = None,
    ) -> None:
        if not 0 < density < 1 or mean_span < 1 or not sentinels:
            raise ConfigError(
                f"density {density} is not between 0 and 1, mean_span {mean_span} below 1, or there is no sentinel"
            )
        self.batches, self.seed, self.sentinels, self.eos, self.start_id = batches, seed, sentinels, eos, start_id
        self.density, self.mean_span, self.target_len = density, mean_span, target_len

    def __getitem__(self, n: int) -> Batch:
        batch = self.batches[n]
        target_len = self.target_len or int(batch["tokens"].shape[1] * self.density * (1 + 1 / self.mean_span)) + 16
        return denoising_batch(batch, self._pair, "span", self.seed, target_len, self.start_id)

    def _pair(self, tokens: np.ndarray, rng: torch.Generator) -> Pair | None:
        if len(tokens) < 3:
            return None
        mask = noise_mask(len(tokens), self.density, self.mean_span, rng)
        source, target = corrupt(tokens, mask, self.sentinels)
        return source, np.append(target, self.eos)


def denoising_batch(
    batch: Batch,
    corrupt: Callable[[np.ndarray, torch.Generator], Pair | None],
    name: str,
    seed: int,
    target_len: int,
    start_id: int,
) -> Batch:
    """Turn packed documents into sources and shifted targets (the columns of SpanBatches).

    `corrupt(tokens, rng)` returns (source, target) of one document, the source no longer than the tokens, or None.
    A document with None, or whose target does not fit into target_len any more, is its own source without a target.
    """
    rows, steps = batch["tokens"].shape
    out = {
        "source": torch.full((rows, steps), start_id),
        "source_documents": torch.full((rows, steps), -1),
        "tokens": torch.full((rows, target_len), start_id),
        "targets": torch.full((rows, target_len), start_id),
        "documents": torch.full((rows, target_len), -1),
    }
    for row in range(rows):
        rng = generator(name, seed, int(batch["sample_ids"][row]))
        documents = batch["documents"][row].numpy()
        read = written = 0
        for document in dict.fromkeys(documents[documents >= 0].tolist()):
            tokens = batch["tokens"][row].numpy()[documents == document]
            pair = corrupt(tokens, rng)
            if pair is None or written + len(pair[1]) > target_len:
                pair = tokens, np.empty(0, tokens.dtype)
            source, target = pair
            out["source"][row, read : read + len(source)] = torch.from_numpy(source)
            out["source_documents"][row, read : read + len(source)] = document
            at = slice(written, written + len(target))
            out["targets"][row, at] = torch.from_numpy(target)
            out["tokens"][row, at] = torch.from_numpy(np.append(start_id, target)[:-1].astype(tokens.dtype))
            out["documents"][row, at] = document
            read, written = read + len(source), written + len(target)
    return out | {"loss_mask": out["documents"] >= 0, "sample_ids": batch["sample_ids"]}
