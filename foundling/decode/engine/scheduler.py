# SPDX-License-Identifier: Apache-2.0
"""Which sequence reads how much in the next step. No tensors, no clock: first come, first served.

Sequences under way go on first; a long prompt is read in pieces beside them, so that nobody waits for it; who came last
gives up its memory when there is too little, and reads again later what it had read.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from foundling.decode.engine.pages import Pages, keys_of, pages_for


@dataclass(eq=False)
class Running:
    """One answer as the scheduler sees it."""

    number: int
    tokens: list[int]
    """prompt and answer"""
    before: bytes = b""
    """what else the memory depends on (an adapter): only sequences alike in it share pages"""
    read: int = 0
    """how many tokens the memory holds"""
    pages: list[int] = field(default_factory=list)
    keys: list[bytes] = field(default_factory=list)
    """of whole pages, as far as known"""
    guesses: int = 0
    """how many of the last tokens are guesses: read like the others, and given up where memory is short"""
    found: int = 0
    """tokens that need not be read, since another sequence had"""

    @property
    def unread(self) -> int:
        return len(self.tokens) - self.read


class Work(NamedTuple):
    """tokens[start : start + count] of a sequence are to be read; `last`: nothing is unread afterwards."""

    sequence: Running
    start: int
    count: int  # pyright: ignore[reportIncompatibleMethodOverride]
    last: bool


class Scheduler:
    def __init__(
        self,
        pages: Pages,
        most_rows: int,
        most_tokens: int,
        *,
        share: bool = True,
        resume: Callable[[Sequence[bytes]], int] | None = None,
    ) -> None:
        """`most_rows` sequences under way, `most_tokens` read in a step; `share` finds common beginnings. `resume` says
        after how many of the first pages, given by their keys, a reader can go on: one with a recurrent state knows it
        at some places only. Prompts are then read up to a page's end, where the state may be kept."""
        assert most_tokens >= most_rows >= 1
        self.pages, self.most_rows, self.most_tokens, self.share = pages, most_rows, most_tokens, share
        self.resume = resume if share else None
        self.waiting: deque[Running] = deque()
        self.running: list[Running] = []
        self.preemptions = 0

    def add(self, sequence: Running) -> None:
        self.waiting.append(sequence)

    def plan(self) -> list[Work]:
        """What the next step reads, every page it needs held; [] when nobody is there."""
        plan, pressed = dict[Running, Work](), self.preemptions
        left = self.most_tokens
        # those who answer before those who still read their prompts
        for sequence in sorted(self.running, key=lambda s: s.unread - s.guesses > 1):
            count = self._piece(sequence, left)
            while count and sequence in self.running:
                if self._hold(sequence, count):
                    plan[sequence] = self._work(sequence, count)
                    left -= count
                    break
                victim = self.running[-1]
                self._preempt(victim)
                if victim in plan:
                    left += plan.pop(victim).count
        if self.preemptions == pressed:
            for sequence in list(self.waiting):
                if left == 0 or len(self.running) == self.most_rows:
                    break
                keys = self._keys(sequence)
                if self._coming(keys):
                    continue
                if not self._admit(sequence, keys):
                    break
                count = self._piece(sequence, left)
                held = self._hold(sequence, count)
                assert held
                plan[sequence] = self._work(sequence, count)
                left -= count
        return list(plan.values())

    def _piece(self, sequence: Running, left: int) -> int:
        count, size = min(sequence.unread, left), self.pages.size
        if self.resume and count > 1:
            end = (sequence.read + min(count, sequence.unread - 1)) // size * size
            return end - sequence.read if end > sequence.read else count
        return count

    def _work(self, sequence: Running, count: int) -> Work:
        return Work(sequence, sequence.read, count, sequence.read + count == len(sequence.tokens))

    def _hold(self, sequence: Running, count: int) -> bool:
        needed = pages_for(sequence.read + count, self.pages.size) - len(sequence.pages)
        if needed > self.pages.available:
            return False
        sequence.pages += [self.pages.take() for _ in range(needed)]
        return True

    def _keys(self, sequence: Running) -> list[bytes]:
        """Of the pages that might be found: the last token is always read, since what follows it is wanted."""
        if not self.share:
            return []
        size = self.pages.size
        return keys_of(sequence.tokens[: (len(sequence.tokens) - 1) // size * size], size, sequence.before)

    def _coming(self, keys: list[bytes]) -> bool:
        """Whether the next page that is not known is one that another sequence is about to read."""
        known, _ = self.pages.known(keys)
        return known < len(keys) and any(
            keys[known] in other.keys[other.read // self.pages.size :] for other in self.running
        )

    def _admit(self, sequence: Running, keys: list[bytes]) -> bool:
        """A waiting sequence joins with what is known of its beginning, if there is memory for all its tokens and one
        page more for each of those under way, or somebody would be pre-empted at once."""
        known, idle = self.pages.known(keys)
        if self.resume:
            keys_known = keys[: self.resume(keys[:known])]
            known, idle = self.pages.known(keys_known)
        needed = pages_for(len(sequence.tokens), self.pages.size) - known
        if needed + len(self.running) > self.pages.available - idle:
            return False
        sequence.keys, sequence.pages = keys, self.pages.find(keys[:known])
        sequence.read = sequence.found = known * self.pages.size
        self.waiting.remove(sequence)
        self.running.append(sequence)
        return True

    def _preempt(self, sequence: Running) -> None:
        self.preemptions += 1
        self.running.remove(sequence)
        self._let_go(sequence)
        del sequence.tokens[len(sequence.tokens) - sequence.guesses :]
        sequence.guesses = 0
        self.waiting.appendleft(sequence)

    def _let_go(self, sequence: Running) -> None:
        self.pages.release(sequence.pages)
        sequence.pages, sequence.keys, sequence.read = [], [], 0

    def has_read(self, sequence: Running, count: int) -> None:
        """`count` more of its tokens are in memory; whole pages may be found by others from now on."""
        size, whole = self.pages.size, sequence.read // self.pages.size
        sequence.read += count
        assert sequence.read <= len(sequence.tokens)
        if not self.share or sequence.read // size == whole:
            return
        if len(sequence.keys) < sequence.read // size:
            known = len(sequence.keys)
            before = sequence.keys[-1] if known else sequence.before
            sequence.keys += keys_of(sequence.tokens[known * size : sequence.read // size * size], size, before)
        for number in range(whole, sequence.read // size):
            self.pages.remember(sequence.pages[number], sequence.keys[number])

    def finish(self, sequence: Running) -> None:
        """It has ended or was cancelled, wherever it stands: its pages are let go."""
        if sequence in self.running:
            self.running.remove(sequence)
            self._let_go(sequence)
        elif sequence in self.waiting:
            self.waiting.remove(sequence)

    @property
    def utilisation(self) -> float:
        """The share of the places in held pages that hold a token; a shared page counts once."""
        places = {page: 0 for s in self.running for page in s.pages}
        for s in self.running:
            for number, page in enumerate(s.pages):
                places[page] = max(places[page], min(self.pages.size, s.read - number * self.pages.size))
        return sum(places.values()) / max(1, len(places) * self.pages.size)
