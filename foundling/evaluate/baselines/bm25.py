# SPDX-License-Identifier: Apache-2.0
"""BM25: documents by the words they share with a query, rare words first."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

K1, B = 1.2, 0.75
_WORD = re.compile(r"\w+")


class BM25:
    """Robertson & Zaragoza 2009, "The Probabilistic Relevance Framework", equation 3.15, with the inverse document
    frequency ln(1 + (N − n + 0.5) / (n + 0.5)) of Lucene, which is never negative. Words are runs of letters and digits
    in lower case; nothing is stemmed or left out."""

    def __init__(self, documents: Sequence[str]) -> None:
        counts = [Counter(words_of(text)) for text in documents]
        lengths = np.array([sum(count.values()) for count in counts], np.float64)
        norm = K1 * (1 - B + B * lengths / max(1.0, lengths.mean()))
        places, weights = defaultdict[str, list[int]](list), defaultdict[str, list[float]](list)
        for i, count in enumerate(counts):
            for word, n in count.items():
                places[word].append(i)
                weights[word].append(n * (K1 + 1) / (n + norm[i]))
        self.n = len(counts)
        self._postings = {
            word: (np.array(at), np.log(1 + (self.n - len(at) + 0.5) / (len(at) + 0.5)) * np.array(weights[word]))
            for word, at in places.items()
        }

    def scores(self, query: str) -> Any:
        """(N,) float64; a word that the query repeats counts each time."""
        out = np.zeros(self.n)
        for word, n in Counter(words_of(query)).items():
            if word in self._postings:
                places, weights = self._postings[word]
                out[places] += n * weights
        return out


def words_of(text: str) -> list[str]:
    return _WORD.findall(text.lower())
