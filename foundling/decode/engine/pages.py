# SPDX-License-Identifier: Apache-2.0
"""Memory in pages of a few tokens each: who holds which, and which hold the beginning of a text that may come again.

Numbers only; what a page is made of is the runner's affair.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Sequence


def keys_of(tokens: Sequence[int], size: int, before: bytes = b"") -> list[bytes]:
    """One key for each whole page of `tokens`: a hash of it and of all that stands before it, `before` included."""
    keys = list[bytes]()
    for begin in range(0, len(tokens) - size + 1, size):
        page = array("q", tokens[begin : begin + size]).tobytes()
        before = hashlib.blake2b(before + page, digest_size=16).digest()
        keys.append(before)
    return keys


def pages_for(tokens: int, size: int) -> int:
    return -(-tokens // size)


class Pages:
    """A page is free, held (by one sequence or several), or idle: held by none and remembered by its key, so that it is
    found again until space is needed; the longest unused goes first."""

    def __init__(self, count: int, size: int) -> None:
        self.count, self.size = count, size
        self.free = list(range(count - 1, -1, -1))
        self.holders = [0] * count
        self.idle: OrderedDict[int, None] = OrderedDict()
        self.key_of: dict[int, bytes] = {}
        self.page_of: dict[bytes, int] = {}

    @property
    def available(self) -> int:
        return len(self.free) + len(self.idle)

    @property
    def held(self) -> int:
        return self.count - self.available

    def take(self) -> int:
        """A page of one's own, whatever it held is forgotten; some must be available."""
        if self.free:
            page = self.free.pop()
        else:
            page, _ = self.idle.popitem(last=False)
            del self.page_of[self.key_of.pop(page)]
        self.holders[page] = 1
        return page

    def find(self, keys: Sequence[bytes]) -> list[int]:
        """The pages of as many first keys as are known, held from now on."""
        found = list[int]()
        for key in keys:
            page = self.page_of.get(key)
            if page is None:
                break
            self.idle.pop(page, None)
            self.holders[page] += 1
            found.append(page)
        return found

    def known(self, keys: Sequence[bytes]) -> tuple[int, int]:
        """How many first keys are known, and how many of their pages are idle now."""
        idle = 0
        for number, key in enumerate(keys):
            page = self.page_of.get(key)
            if page is None:
                return number, idle
            idle += page in self.idle
        return len(keys), idle

    def remember(self, page: int, key: bytes) -> None:
        """What a held page holds; the first page of a key is the one that is found."""
        if key not in self.page_of and page not in self.key_of:
            self.key_of[page], self.page_of[key] = key, page

    def release(self, pages: Sequence[int]) -> None:
        """The last pages become idle first, so that a beginning outlives what follows it."""
        for page in reversed(pages):
            assert self.holders[page] > 0, "released more often than held"
            self.holders[page] -= 1
            if self.holders[page] == 0:
                if page in self.key_of:
                    self.idle[page] = None
                else:
                    self.free.append(page)
