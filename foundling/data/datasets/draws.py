# SPDX-License-Identifier: Apache-2.0
"""Random choices of the generated data sets. They come from SHA-256 alone, so that a seed means the same items on every
machine and in every version of Python; `random` promises that for `random()` and not for its choices."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

from foundling.errors import DataError

T = TypeVar("T")
Row = dict[str, Any]
HELD_OUT = "held-out"
HELD_OUT_IN = 5
"""one key of so many is held out"""
MAX_MISSES = 4_000
"""items in a row that are of the other split, or were there before, until a task is thought to have no more"""


class Draws:
    """A stream of choices that `keys` alone decide."""

    def __init__(self, *keys: object) -> None:
        self._key = "\n".join(map(str, keys)).encode()
        self._count, self._block = 0, b""

    def below(self, n: int) -> int:
        """0 to n - 1, each equally often to within n / 2^64."""
        if not self._block:
            self._block = hashlib.sha256(self._key + b"\n%d" % self._count).digest()
            self._count += 1
        word, self._block = self._block[:8], self._block[8:]
        return int.from_bytes(word, "big") % n

    def between(self, low: int, high: int) -> int:
        """Both included."""
        return low + self.below(high - low + 1)

    def chance(self, share: float) -> bool:
        return self.below(1 << 32) < share * (1 << 32)

    def pick(self, values: Sequence[T]) -> T:
        return values[self.below(len(values))]

    def sample(self, values: Sequence[T], n: int) -> list[T]:
        """`n` of different places, in random order."""
        rest = list(values)
        return [rest.pop(self.below(len(rest))) for _ in range(n)]

    def shuffled(self, values: Iterable[T]) -> list[T]:
        return self.sample(values := list(values), len(values))


def is_held_out(*key: object) -> bool:
    """Whether what has this key is for measuring. The seed has no part in it, so that no item is on both sides."""
    digest = hashlib.sha256("\n".join(["held out", *map(str, key)]).encode()).digest()
    return int.from_bytes(digest[:8], "big") % HELD_OUT_IN == 0


def distinct(make: Callable[[int], tuple[str, Callable[[], T]] | None], split: str, n: int, what: str) -> Iterator[T]:
    """The first `n` items of `split` among make(0), make(1), …, none of them twice.

    `make` returns the key of an item, which decides its split, and what builds the item; None where the number makes
    none. Two items are the same where their texts are. DataError where the task has fewer items.
    """
    seen, misses, number = set[str](), 0, 0
    while len(seen) < n:
        made = make(number)
        number += 1
        if made is not None and is_held_out(made[0]) == (split == HELD_OUT):
            item = made[1]()
            if (text := repr(item)) not in seen:
                seen.add(text)
                misses = 0
                yield item
                continue
        misses += 1
        if misses == MAX_MISSES:
            raise DataError(f"{what} has {len(seen):,} items of the split {split!r}, not n={n}: ask for fewer")
