# SPDX-License-Identifier: Apache-2.0
"""Statistics of one pass over a source: which documents are distinct, their sizes and order, the data hash."""

import hashlib
from array import array
from collections import Counter
from collections.abc import Iterable

import numpy as np

from foundling.data.sources import Document


class Survey:
    """Collects what the held-out split needs; only hashes and sizes stay in memory.

    Of documents that are equal up to whitespace at the end the first is kept. A document's place is its number among
    the kept ones, from 0.
    """

    def __init__(self, seed: int, parameters: bytes):
        self.removed: Counter[str] = Counter()
        self.removed_bytes = 0
        self.n_bytes = 0
        self._seed, self._digest = seed, hashlib.sha256(parameters)
        self._seen: set[bytes] = set()
        self._ranks, self._sizes = array("Q"), array("Q")

    def add(self, text: str) -> bool:
        """Count the next document. True if it is kept, False for a duplicate or an empty one."""
        key, contents, size = _hashes(text)
        self._digest.update(contents)
        duplicate, empty = key in self._seen, not text.strip()
        self._seen.add(key)
        if duplicate or empty:
            self.removed["exact duplicate" if duplicate else "empty"] += 1
            self.removed_bytes += size
            return False
        self.n_bytes += size
        self._sizes.append(size)
        self._ranks.append(int.from_bytes(hashlib.sha256(b"%d " % self._seed + key).digest()[:8], "big"))
        return True

    @property
    def data_hash(self) -> str:
        """SHA-256 over `parameters` and all contents in order, duplicates included; names do not count."""
        return self._digest.hexdigest()

    @property
    def sizes(self) -> np.ndarray:
        """(n,) int64, bytes of UTF-8 by place."""
        return np.array(self._sizes, dtype=np.int64)

    @property
    def order(self) -> np.ndarray:
        """(n,) places in the order of sha256(seed, text)."""
        return np.argsort(np.array(self._ranks, dtype=np.uint64), kind="stable")


def n_bytes(documents: Iterable[Document]) -> int:
    """The size of the texts in bytes of UTF-8."""
    return sum(len(document.text.encode()) for document in documents)


def _hashes(text: str) -> tuple[bytes, bytes, int]:
    """Return 16 bytes of the SHA-256 of the text without whitespace at its end, the SHA-256 of all of it, its size."""
    stripped = text.rstrip()
    head, tail = stripped.encode(), text[len(stripped) :].encode()
    digest = hashlib.sha256(head)
    key = digest.digest()[:16]
    digest.update(tail)
    return key, digest.digest(), len(head) + len(tail)
