# SPDX-License-Identifier: Apache-2.0
"""Word vectors by negative sampling (Mikolov et al. 2013, "Distributed representations of words and phrases and their
compositionality"), with gradients written out, because an update touches a few rows of two large tables.

The words of a text are taken in blocks of consecutive positions, and a block shares its negatives (Ji et al. 2016,
"Parallelizing word2vec in shared and distributed memory"): all scores of a block are then one matrix product. Letters:
B blocks, T positions of a block, C candidates of a block, D width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def keep_probability(counts: Tensor, sample: float) -> Tensor:
    """How likely an occurrence of each word is kept: sqrt(s/f) + s/f, at most 1, for the word's share f of all
    occurrences and s = `sample`; 1 where `sample` is 0. This is the formula of word2vec.c; the paper (section 2.3) has
    sqrt(s/f)."""
    if not sample:
        return torch.ones(len(counts))
    ratio = sample * counts.sum() / counts.double()
    return (ratio.sqrt() + ratio).clamp_max(1).float()


def noise_distribution(counts: Tensor, power: float = 0.75) -> Tensor:
    """Probabilities of the negatives: counts to the power of 3/4 (section 2.2)."""
    weights = counts.double() ** power
    return weights / weights.sum()


def reach_masks(window: int, positions: int) -> Tensor:
    """Which words each position of a block reaches: (window + 1, window + 1, T, T + 2·window) of 0 and 1, by the
    number of words to the left, to the right, and the position. The columns are the block's words, with `window` words
    before it and after it; a position does not reach itself."""
    offset = torch.arange(positions + 2 * window) - window - torch.arange(positions)[:, None]
    reach = torch.arange(window + 1)
    left, right = reach[:, None, None, None], reach[:, None, None]
    return ((offset >= -left) & (offset <= right) & (offset != 0)).float()


def negative_sampling_loss(logits: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
    """−positive · log σ(x) − negative · log σ(−x), in nats, where the weights say as how many pairs of the text and as
    how many negatives a score counts (equation 4)."""
    return positive * F.softplus(-logits) + negative * F.softplus(logits)


def negative_sampling_gradient(logits: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
    """The derivative of negative_sampling_loss by the logits: (positive + negative) · σ(x) − positive."""
    return torch.sigmoid(logits).mul_(positive + negative).sub_(positive)


def skipgram_gradients(words: Tensor, candidates: Tensor, positive: Tensor, negative: Tensor) -> tuple[Tensor, Tensor]:
    """words (B, T, D), candidates (B, C, D), weights (B, T, C) -> the gradients, by words and by candidates, of the sum
    of negative_sampling_loss over the scores words · candidatesᵀ."""
    by_logits = negative_sampling_gradient(words @ candidates.mT, positive, negative)
    return by_logits @ candidates, by_logits.mT @ words
