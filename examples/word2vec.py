# SPDX-License-Identifier: Apache-2.0
"""word2vec: skip-gram and CBOW with negative sampling, frequent words subsampled, windows of random reach.

A step takes `blocks` blocks of `block` consecutive positions and makes its gradients by matrix products
(foundling.objectives.skipgram). The updates of one step are summed; with more blocks a step is faster, and its
gradients are older. Every pair counts once, and `negatives` times as a negative, as in word2vec.c, with two
differences. A block draws `shared` negatives, each of which counts negatives / shared for each of the block's pairs.
And word2vec.c skips a negative that is the word of the pair itself; here it counts, so that such a word gets both
gradients.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor

from foundling.errors import ConfigError
from foundling.objectives.skipgram import keep_probability, noise_distribution, reach_masks, skipgram_gradients


@dataclass(frozen=True)
class Options:
    cbow: bool = False
    """predict a word from the mean of those around it, not each of those from the word"""
    width: int = 100
    window: int = 5
    negatives: int = 5
    sample: float = 1e-3
    epochs: int = 5
    rate: float = 0.025
    last_rate: float = 1e-4
    seed: int = 0
    threads: int = 1
    """above 1, threads update the same tables without locks (Recht et al. 2011, "Hogwild!"), and the result depends on
    their timing"""
    block: int = 32
    shared: int = 32
    blocks: int = 8

    def __post_init__(self) -> None:
        for name in ("width", "window", "negatives", "epochs", "threads", "block", "shared", "blocks"):
            if (value := getattr(self, name)) < 1:
                raise ConfigError(f"{name} is {value}, expected at least 1")
        if not 0 <= self.sample < 1 or not 0 <= self.last_rate <= self.rate < math.inf:
            raise ConfigError(
                f"sample is {self.sample}, rate {self.rate}, last_rate {self.last_rate}: expected a sample of 0 or "
                "more below 1, and rates from 0 of which the last is not the larger"
            )


class Text:
    """Sentences as ids; the most frequent word is 0. Words that occur fewer than `min_count` times are left out."""

    def __init__(self, sentences: Iterable[list[str]], min_count: int = 5) -> None:
        rows = list(sentences)
        counts = Counter(chain.from_iterable(rows))
        self.words = [word for word, n in counts.most_common() if n >= min_count]
        if len(self.words) < 2:
            raise ConfigError(f"{len(self.words)} words occur {min_count} times or more, expected at least 2")
        self.index = {word: at for at, word in enumerate(self.words)}
        self.counts = torch.tensor([counts[word] for word in self.words])
        ids = [[at for word in row if (at := self.index.get(word)) is not None] for row in rows]
        self.n_words = counts.total()
        """of the text, those left out too"""
        self.lengths = torch.tensor([len(row) for row in ids])
        self.ids = torch.tensor(list(chain.from_iterable(ids)))


@dataclass
class Positions:
    """The positions of an epoch, in blocks: all that is drawn."""

    ids: Tensor
    """(N, T)"""
    context: Tensor
    """(N, T + 2·window) ids of the blocks and of the words around them"""
    reach: Tensor
    """(N, T): rows of the flattened reach_masks"""
    pairs: Tensor
    """(N, T) words that each position reaches"""
    negatives: Tensor
    """(N, shared)"""


def draw_positions(text: Text, o: Options, noise: Tensor, draw: torch.Generator) -> Positions:
    """Words are dropped before windows are laid, so that windows reach further where words were dropped. A position's
    reach is uniform over 1 … window, and ends with its sentence."""
    keep = torch.rand(len(text.ids), generator=draw) < keep_probability(text.counts, o.sample)[text.ids]
    ids = text.ids[keep]
    ends = torch.cat([keep.new_zeros(1, dtype=torch.long), keep.cumsum(0)])[text.lengths.cumsum(0)]
    lengths = ends.diff(prepend=ends.new_zeros(1))
    before = torch.arange(len(ids)) - torch.repeat_interleave(ends - lengths, lengths)
    after = torch.repeat_interleave(lengths, lengths) - 1 - before
    drawn = torch.randint(1, o.window + 1, (len(ids),), generator=draw)
    left, right = torch.minimum(drawn, before), torch.minimum(drawn, after)
    size = o.block * o.blocks
    rest = -len(ids) % size  # positions that reach nothing, to fill the last step

    def blocks(values: Tensor) -> Tensor:
        return torch.nn.functional.pad(values, (0, rest)).view(-1, o.block)

    rows = (blocks(left) * (o.window + 1) + blocks(right)) * o.block + torch.arange(o.block)
    around = torch.nn.functional.pad(ids, (o.window, rest + o.window))
    uniform = torch.rand(len(rows), o.shared, generator=draw)
    return Positions(
        blocks(ids),
        around.unfold(0, o.block + 2 * o.window, o.block),
        rows,
        blocks((left + right).float()),
        torch.searchsorted(noise, uniform).clamp_max(len(text.words) - 1),
    )


class Model:
    """`inputs` are the word vectors; `outputs` those that they are scored against."""

    def __init__(self, n_words: int, o: Options, draw: torch.Generator) -> None:
        self.options = o
        # the range of gensim, twice that of word2vec.c: CBOW of a few epochs scores higher with it
        self.inputs = (2 * torch.rand(n_words, o.width, generator=draw) - 1) / o.width
        self.outputs = torch.zeros(n_words, o.width)
        self.masks = reach_masks(o.window, o.block).flatten(0, 2)
        ones = torch.full((o.shared,), o.negatives / o.shared)
        self.weights = torch.cat([torch.zeros(o.block + 2 * o.window), ones])
        self.cbow_weights = torch.cat([torch.zeros(o.block), ones])
        self.own = torch.eye(o.block, o.block + o.shared)

    def step(self, p: Positions, chosen: slice, rate: float) -> None:
        """One step over the blocks `chosen`."""
        ids, negatives = p.ids[chosen], p.negatives[chosen]
        reach = self.masks[p.reach[chosen]]
        if self.options.cbow:
            self._cbow(ids, p.context[chosen], negatives, reach, p.pairs[chosen, :, None], rate)
        else:
            self._skipgram(ids, p.context[chosen], negatives, reach, p.pairs[chosen, :, None], rate)

    def _skipgram(
        self, ids: Tensor, context: Tensor, negatives: Tensor, reach: Tensor, pairs: Tensor, rate: float
    ) -> None:
        """Each word is scored against those that it reaches, and the negatives."""
        candidates = torch.cat([context, negatives], 1)
        positive = torch.nn.functional.pad(reach, (0, negatives.shape[1]))
        by_words, by_candidates = skipgram_gradients(
            rows(self.inputs, ids), rows(self.outputs, candidates), positive, pairs * self.weights
        )
        add(self.inputs, ids, by_words, -rate)
        add(self.outputs, candidates, by_candidates, -rate)

    def _cbow(self, ids: Tensor, context: Tensor, negatives: Tensor, reach: Tensor, pairs: Tensor, rate: float) -> None:
        """The mean of the words that a position reaches is scored against its word, and the negatives. Each of them
        takes the gradient of the mean whole, not divided by their number, as in word2vec.c and in gensim."""
        mean = reach @ rows(self.inputs, context) / pairs.clamp_min(1)
        counts = (pairs > 0).float()
        candidates = torch.cat([ids, negatives], 1)
        by_mean, by_candidates = skipgram_gradients(
            mean, rows(self.outputs, candidates), counts * self.own, counts * self.cbow_weights
        )
        add(self.inputs, context, reach.mT @ by_mean, -rate)
        add(self.outputs, candidates, by_candidates, -rate)


def rows(table: Tensor, ids: Tensor) -> Tensor:
    """(V, D), (B, C) -> (B, C, D); index_select is several times as fast as table[ids]."""
    return table.index_select(0, ids.flatten()).view(*ids.shape, -1)


def add(table: Tensor, ids: Tensor, values: Tensor, scale: float) -> None:
    """table[ids] += scale · values (B, C, D), those of one id summed."""
    table.index_add_(0, ids.flatten(), values.flatten(0, 1), alpha=scale)


@torch.inference_mode()
def train(text: Text, options: Options) -> Tensor:
    """(V, width) vectors of text.words. The rate falls linearly from `rate` to `last_rate`."""
    o, draw = options, torch.Generator().manual_seed(options.seed)
    model = Model(len(text.words), o, draw)
    noise = noise_distribution(text.counts).cumsum(0).float()
    for epoch in range(o.epochs):
        positions = draw_positions(text, o, noise, draw)
        n_steps = len(positions.ids) // o.blocks

        def work(first: int, p: Positions = positions, n: int = n_steps, epoch: int = epoch) -> None:
            with torch.inference_mode():  # which is of a thread
                for step in range(first, n, o.threads):
                    done = (epoch + step / n) / o.epochs
                    chosen = slice(step * o.blocks, (step + 1) * o.blocks)
                    model.step(p, chosen, o.rate + (o.last_rate - o.rate) * done)

        if o.threads == 1:
            work(0)
            continue
        with ThreadPoolExecutor(o.threads) as pool:
            list(pool.map(work, range(o.threads)))
    return model.inputs.clone()
