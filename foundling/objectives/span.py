# SPDX-License-Identifier: Apache-2.0
"""Span corruption (Raffel et al. 2020, T5, section 3.1.4): spans of the source are hidden behind sentinels, the target
spells them out. The loss is Causal's, of a model that reads a source."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from foundling.contracts.data import Batch, Batches
from foundling.errors import ConfigError
from foundling.runtime.rng import generator


def noise_mask(length: int, density: float, mean_span: float, chance: torch.Generator) -> np.ndarray:
    """(length,) bool, True = hidden: round(length · density) places in spans of `mean_span` on average, each after at
    least one place that stays; every choice is equally likely. (The authors' code ends every mask in a hidden span,
    which for short documents hides nothing but their ends.)"""
    hidden = min(max(round(length * density), 1), length - 1)
    spans = min(max(round(hidden / mean_span), 1), hidden, length - hidden)
    stays, hides = _split(length - hidden + 1, spans + 1, chance), _split(hidden, spans, chance)
    stays[-1] -= 1  # nothing may be left after the last span
    counts = np.stack([stays, np.append(hides, 0)], 1).flatten()
    return np.repeat(np.tile([False, True], spans + 1), counts)


def _split(total: int, parts: int, chance: torch.Generator) -> np.ndarray:
    """`total` into `parts` positive whole numbers, uniformly."""
    cuts = np.sort(torch.randperm(total - 1, generator=chance)[: parts - 1].numpy()) + 1
    return np.diff(np.concatenate([[0], cuts, [total]]))


def corrupt(tokens: np.ndarray, mask: np.ndarray, sentinels: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """(T,) tokens and mask -> source, with each hidden span as one sentinel, and target, with each span that stays as
    one: the n-th sentinel on either side stands for the same place."""

    def replaced(where: np.ndarray) -> np.ndarray:
        first = where & ~np.concatenate([[False], where[:-1]])
        number = np.minimum(first.cumsum() - 1, len(sentinels) - 1)
        out = np.where(first, np.asarray(sentinels)[number], tokens)
        return out[first | ~where]

    return replaced(mask), replaced(~mask)


class SpanBatches:
    """Batches of packed tokens, each document corrupted by itself: `source`, `source_documents` (B, T), and `tokens`,
    `targets`, `documents`, `loss_mask` (B, target_len) for the decoder, whose queries read their own document.

    What is hidden depends on (seed, sample id) alone. A document of fewer than three tokens, or whose target does not
    fit any more, stays whole and is not asked for.
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
        rows, steps = batch["tokens"].shape
        room = self.target_len or int(steps * self.density * (1 + 1 / self.mean_span)) + 16
        out = {
            "source": torch.full((rows, steps), self.start_id),
            "source_documents": torch.full((rows, steps), -1),
            "tokens": torch.full((rows, room), self.start_id),
            "targets": torch.full((rows, room), self.start_id),
            "documents": torch.full((rows, room), -1),
        }
        for row in range(rows):
            chance = generator("span", self.seed, int(batch["sample_ids"][row]))
            documents = batch["documents"][row].numpy()
            read = written = 0
            for document in dict.fromkeys(documents[documents >= 0].tolist()):
                tokens = batch["tokens"][row].numpy()[documents == document]
                source, target = tokens, np.empty(0, tokens.dtype)
                if len(tokens) >= 3:
                    mask = noise_mask(len(tokens), self.density, self.mean_span, chance)
                    left, right = corrupt(tokens, mask, self.sentinels)
                    if written + len(right) + 1 <= room:
                        source, target = left, np.append(right, self.eos)
                out["source"][row, read : read + len(source)] = torch.from_numpy(source)
                out["source_documents"][row, read : read + len(source)] = document
                at = slice(written, written + len(target))
                out["targets"][row, at] = torch.from_numpy(target)
                out["tokens"][row, at] = torch.from_numpy(np.append(self.start_id, target)[:-1].astype(tokens.dtype))
                out["documents"][row, at] = document
                read, written = read + len(source), written + len(target)
        return out | {"loss_mask": out["documents"] >= 0, "sample_ids": batch["sample_ids"]}
