# SPDX-License-Identifier: Apache-2.0
"""A byte n-gram language model with interpolated modified Kneser-Ney smoothing: a baseline for language models.

Smoothing: Chen & Goodman 1998, "An Empirical Study of Smoothing Techniques for Language Modeling", TR-10-98, section 3.
Counts beside the start of a document: Heafield et al. 2013, "Scalable Modified Kneser-Ney Language Model Estimation",
section 3. Two decisions reduce it to arithmetic on sorted arrays:

- One symbol, BOUNDARY, stands between documents. As a context it is the beginning of a document, as a prediction the
  end of one. An n-gram may therefore start or end with it, but no n-gram crosses documents.
- A k-gram is one integer, its k symbols as digits in base 257, oldest first. `key // 257` is its context, `key % 257`
  the symbol predicted, `key % 257**(k-1)` the k-gram shortened to the left; keys in order hold each context together.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import log

import numpy as np

from foundling.errors import ConfigError, DataError

BOUNDARY = 256
N_SYMBOLS = 257
MAX_ORDER = 7  # 257**7 < 2**63 < 257**8
_CHUNK = 1 << 22  # n-grams sorted at once while counting
_FALLBACK_DISCOUNTS = (0.0, 0.5, 1.0, 1.5)


@dataclass(frozen=True)
class _Level:
    """The k-grams that occur, for one k, and their probabilities; `lower` is the level of k-1."""

    keys: np.ndarray  # (n,) int64, ascending
    prob: np.ndarray  # (n,) float64, P(last symbol | the k-1 before), interpolated with all lower orders
    backoff: np.ndarray  # (n_lower + 1,) float64: of context `lower.keys[row]`, the weight of the lower order;
    #                      1 for contexts without continuations, and at row -1, for unseen contexts

    def find(self, keys: np.ndarray) -> np.ndarray:
        """The row of each key, or -1 if it does not occur."""
        rows = np.searchsorted(self.keys, keys)
        return np.where(self.keys.take(rows, mode="clip") == keys, rows, -1)


class ByteNGram:
    """P(next byte or end | the document so far, of which the last order-1 bytes count). Build one with `fit`.

    Every symbol has positive probability after every context, and the 257 of a context sum to one.
    """

    def __init__(self, levels: list[_Level]):
        self._levels = levels  # order k at [k]; [0] is the uniform distribution below the unigrams
        self.order = len(levels) - 1

    @classmethod
    def fit(cls, documents: Sequence[bytes], order: int = 6) -> "ByteNGram":
        """Count the documents' n-grams and smooth them.

        Memory, at the peak and besides the documents: 4 bytes per byte of text, plus up to 180 per distinct n-gram of
        the highest order. At order 6, source code has one of those in 10 bytes of 10 MB and one in 27 bytes of 64 MB:
        14 and 8 bytes per byte in all. Incompressible bytes have one each. The model keeps about 20 bytes per distinct
        k-gram of any order. No limit is set on the text: the caller subsamples what would not fit.

        Raises ConfigError for an order outside 1..7 and DataError for no documents (empty ones are documents).
        """
        if not 1 <= order <= MAX_ORDER:
            raise ConfigError(f"order {order} is not possible: choose an order from 1 to {MAX_ORDER}")
        if not documents:
            raise DataError("no documents to count n-grams in: give at least one")
        symbols, bounds = _join(documents)
        levels = [_Level(np.zeros(1, np.int64), np.full(1, 1 / N_SYMBOLS), np.ones(1))]
        for keys, counts in _adjusted_counts(symbols, bounds, order):
            if not len(keys):  # every document is shorter: this order adds nothing to the lower ones
                break
            levels.append(_interpolate(keys, counts, levels[-1], order=len(levels)))
        return cls(levels)

    def nats(self, document: bytes) -> float:
        """Code length of the whole document and its end, -ln P, in nats. Memory: some 60 bytes per byte of document."""
        symbols, _ = _join([document])
        prob = np.full(len(symbols), 1 / N_SYMBOLS)
        contexts = np.zeros(len(symbols), np.int64)  # for each position, the row of the k-1 symbols before it
        for k, level in enumerate(self._levels[1:], start=1):
            ends = np.arange(k - 1, len(symbols))  # earlier positions have no k-gram and keep the lower order's value
            rows = level.find(_pack(symbols, ends, k))
            prob[ends] = np.where(rows >= 0, level.prob[rows], level.backoff[contexts] * prob[ends])
            contexts = rows[:-1]
        return float(-np.log(prob[1:]).sum())

    def bits_per_byte(self, documents: Sequence[bytes]) -> float:
        """Code length of all documents, ends included, over their bytes. Raises DataError if they hold no byte."""
        n_bytes = sum(map(len, documents))
        if n_bytes == 0:
            raise DataError(f"{len(documents)} documents hold 0 bytes: bits per byte needs at least one")
        return sum(map(self.nats, documents)) / log(2) / n_bytes

    def distribution(self, prefix: bytes) -> np.ndarray:
        """P(next symbol | a document begins with prefix), (257,) float64; the last entry is the end of the document."""
        return self._distribution([BOUNDARY, *prefix[-self.order :]])

    def sample(self, seed: int, max_bytes: int, temperature: float = 1.0) -> bytes:
        """Draw a document, byte by byte until its end symbol or `max_bytes`; the same seed draws the same bytes.

        Probabilities are raised to 1/temperature and normalised. Raises ConfigError unless temperature > 0.
        """
        if not temperature > 0:
            raise ConfigError(f"temperature {temperature} is not possible: choose one above 0, such as 1.0")
        generator = np.random.default_rng(seed)
        history = [BOUNDARY]
        while len(history) <= max_bytes:
            prob = self._distribution(history[-self.order :])
            prob = (prob / prob.max()) ** (1 / temperature)
            symbol = int(generator.choice(N_SYMBOLS, p=prob / prob.sum()))
            if symbol == BOUNDARY:
                break
            history.append(symbol)
        return bytes(history[1:])

    def _distribution(self, history: list[int]) -> np.ndarray:
        """P(next symbol | symbols before it), (257,): each order scales the lower one and replaces the symbols it has
        seen."""
        prob = np.full(N_SYMBOLS, 1 / N_SYMBOLS)
        context = 0
        for k in range(1, min(self.order, len(history) + 1) + 1):
            if k > 1:
                context += history[1 - k] * N_SYMBOLS ** (k - 2)
            row = int(self._levels[k - 1].find(np.array([context]))[0])
            if row < 0:  # longer contexts do not occur either
                break
            level, first = self._levels[k], context * N_SYMBOLS
            start, stop = np.searchsorted(level.keys, [first, first + N_SYMBOLS])
            prob *= level.backoff[row]
            prob[level.keys[start:stop] - first] = level.prob[start:stop]
        return prob


def _join(documents: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """(symbols, bounds): BOUNDARY d BOUNDARY d … BOUNDARY as uint16, and where the boundaries are."""
    bounds = np.concatenate([[0], np.cumsum([len(document) + 1 for document in documents])])
    symbols = np.full(bounds[-1] + 1, BOUNDARY, np.uint16)
    for document, start in zip(documents, bounds):
        symbols[start + 1 : start + 1 + len(document)] = np.frombuffer(document, np.uint8)
    return symbols, bounds


def _pack(symbols: np.ndarray, ends: np.ndarray, k: int) -> np.ndarray:
    """Keys of the k-grams that end at the given positions."""
    keys = np.zeros(len(ends), np.int64)
    for back in range(k - 1, -1, -1):
        keys *= N_SYMBOLS
        keys += symbols[ends - back]
    return keys


def _adjusted_counts(symbols: np.ndarray, bounds: np.ndarray, order: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """For k = 1 … order, the k-grams seen, ascending, and their adjusted counts of Kneser-Ney.

    The highest order, and every k-gram at the start of a document, count their occurrences; any other counts the
    distinct symbols seen before it, that is the (k+1)-grams it ends. (Nothing precedes the start of a document.)
    """
    openings = {}  # k -> end positions of the k-grams that start with BOUNDARY
    for k in range(2, order):
        ends = bounds[:-1] + k - 1
        openings[k] = ends[ends <= bounds[1:]]
    is_full = np.ones(len(symbols), bool)  # positions that end an n-gram within their document
    is_full[0] = False
    for ends in openings.values():
        is_full[ends] = False

    pieces = []
    for start in range(0, len(symbols), _CHUNK):
        ends = start + np.flatnonzero(is_full[start : start + _CHUNK])
        pieces.append(np.unique(_pack(symbols, ends, order), return_counts=True))
    table = _merge(pieces)

    tables = [table]
    for k in range(order - 1, 0, -1):
        table = np.unique(table[0] % N_SYMBOLS**k, return_counts=True)
        if k in openings:
            table = _merge([table, np.unique(_pack(symbols, openings[k], k), return_counts=True)])
        tables.append(table)
    return tables[::-1]


def _merge(tables: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Merges tables with ascending keys: the union of the keys, with summed counts."""
    keys, counts = (np.concatenate(column) for column in zip(*tables))
    by_key = np.argsort(keys, kind="stable")  # this kind merges runs that are sorted already
    keys, counts = keys[by_key], counts[by_key]
    first = np.flatnonzero(np.diff(keys, prepend=-1))
    return keys[first], np.add.reduceat(counts, first) if len(first) else counts


def _interpolate(keys: np.ndarray, counts: np.ndarray, lower: _Level, order: int) -> _Level:
    """P(w | h) = (c(hw) - D(c(hw))) / c(h·) + backoff(h) P(w | h without its oldest symbol), for all seen hw."""
    discounts = np.array(_discounts(counts))[np.minimum(counts, 3)]
    contexts = keys // N_SYMBOLS
    first = np.flatnonzero(np.diff(contexts, prepend=-1))
    size = np.diff(first, append=len(keys))
    total = np.add.reduceat(counts, first)
    backoff_mass = np.add.reduceat(discounts, first) / total

    prob = (counts - discounts) / np.repeat(total, size)
    prob += np.repeat(backoff_mass, size) * lower.prob[lower.find(keys % N_SYMBOLS ** (order - 1))]
    backoff = np.ones(len(lower.keys) + 1)
    backoff[lower.find(contexts[first])] = backoff_mass
    return _Level(keys, prob, backoff)


def _discounts(counts: np.ndarray) -> tuple[float, float, float, float]:
    """(0, D1, D2, D3+) from the numbers of n-grams that were counted 1, 2, 3 and 4 times.

    Where a corpus is too small or too regular for the estimate to exist, or to take less than the whole count and more
    than nothing, the order falls back on fixed discounts (those of KenLM's --discount_fallback), so that every context
    reserves some mass for unseen symbols.
    """
    n1, n2, n3, n4 = (int(np.count_nonzero(counts == c)) for c in (1, 2, 3, 4))
    if 0 in (n1, n2, n3):
        return _FALLBACK_DISCOUNTS
    y = n1 / (n1 + 2 * n2)
    discounts = (0.0, 1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3)
    return discounts if all(0 < d < c for c, d in enumerate(discounts[1:], 1)) else _FALLBACK_DISCOUNTS
