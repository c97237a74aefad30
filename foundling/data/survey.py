# SPDX-License-Identifier: Apache-2.0
"""What one reading of a source tells: which documents are distinct, how large, in what order by hash; the data hash."""

import hashlib
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator

import numpy as np

from foundling.data.sources import Document
from foundling.errors import DataError


class Survey:
    """Reads `source` once, and again whenever asked for its distinct documents. In memory are hashes and sizes.

    Of documents that are equal but for whitespace at the end the first is kept. A document's place is its number in
    the source, from 0. `order` holds the places of the distinct ones by sha256(seed, text), `sizes` the bytes by
    place, 0 where a document was removed. `data_hash` is the SHA-256 over `parameters` and all contents in order.
    """

    def __init__(self, source: Iterable[Document], seed: int, parameters: bytes):
        self.removed: Counter[str] = Counter()
        self.removed_bytes = 0
        self._source, self._parameters, self._gone = source, parameters, set()
        digest = hashlib.sha256(parameters)
        seen: set[bytes] = set()
        ranks, sizes = array("Q"), array("Q")
        for place, document in enumerate(source):
            key, contents = _hashes(document.text)
            digest.update(contents)
            size = n_bytes([document])
            if key in seen or not document.text.strip():
                self.removed["exact duplicate" if key in seen else "empty"] += 1
                self.removed_bytes += size
                self._gone.add(place)
            seen.add(key)
            sizes.append(0 if place in self._gone else size)
            ranks.append(int.from_bytes(hashlib.sha256(b"%d " % seed + key).digest()[:8], "big"))
        self.data_hash = digest.hexdigest()
        self.sizes = np.array(sizes, dtype=np.int64)
        order = np.argsort(np.array(ranks, dtype=np.uint64), kind="stable")
        self.order = order[self.sizes[order] > 0]

    @property
    def n_bytes(self) -> int:
        return int(self.sizes.sum())

    def documents(self) -> Iterator[tuple[int, Document]]:
        """Yield (place, document), the distinct ones. Raises DataError at the end if the source has changed."""
        digest = hashlib.sha256(self._parameters)
        for place, document in enumerate(self._source):
            digest.update(_hashes(document.text)[1])
            if place not in self._gone:
                yield place, document
        if digest.hexdigest() != self.data_hash:
            raise DataError("the data changed while it was read: leave it alone until the run ends, and start again")


def n_bytes(documents: Iterable[Document]) -> int:
    """The size of the texts in bytes of UTF-8."""
    return sum(len(document.text.encode()) for document in documents)


def _hashes(text: str) -> tuple[bytes, bytes]:
    """Return the first 16 bytes of the SHA-256 of the text without whitespace at its end, and the SHA-256 of it all."""
    stripped = text.rstrip()
    digest = hashlib.sha256(stripped.encode())
    key = digest.digest()[:16]
    digest.update(text[len(stripped) :].encode())
    return key, digest.digest()
