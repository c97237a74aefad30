# SPDX-License-Identifier: Apache-2.0
"""One labeller at work: which item is next, what was said of each, and how a judgement reaches the file."""

from __future__ import annotations

import statistics
import threading
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from foundling.data.labels import Item, Items, Judgement, LabelFile, State, Task, check_ranking, shown_order
from foundling.errors import ConfigError, DataError
from foundling.limits import LABEL_SECONDS, LABELLER_CHARS, check_number, shown

RECENT = 50
"""judgements of which the pace is the median"""


class Stale(Exception):
    """Another window or process has judged the item since it was shown."""


def check_labeller(name: str) -> str:
    if not name.strip() or not name.isprintable() or len(name) > LABELLER_CHARS.high:
        raise ConfigError(f"--labeller is {shown(name)}; expected a name of 1 to {LABELLER_CHARS.high} characters")
    return name


class LabelBook:
    """Safe to call from several threads."""

    def __init__(self, items: Items, file: LabelFile, labeller: str, seed: int = 0) -> None:
        self.items, self.labeller, self.seed = items.items, check_labeller(labeller), seed
        self.task: Task = items.task
        self._file, self._lock = file, threading.Lock()
        self._places = {item.id: place for place, item in enumerate(self.items)}
        self._lines, self._last, self._done = dict[str, Judgement](), dict[str, Judgement](), list[str]()
        self.counts: Counter[str] = Counter()
        self._seconds = deque[float](maxlen=RECENT)
        with self._lock:
            self._absorb()

    def current(self, item: Item) -> Judgement | None:
        return self._last.get(item.id)

    def order(self, item: Item) -> tuple[int, ...]:
        return shown_order(item, self.labeller, self.seed)

    def place_of(self, judgement: Judgement) -> int:
        return self._places[judgement.item]

    @property
    def pace(self) -> float | None:
        """Seconds an item."""
        return statistics.median(self._seconds) if self._seconds else None

    @property
    def n_left(self) -> int:
        return len(self.items) - sum(self.counts[state] for state in ("judged", "skipped", "flagged"))

    def next_open(self, at: int = 0) -> int | None:
        """The place of the first item from `at` on, and then from the beginning, that nothing was said of."""
        with self._lock:
            self._absorb()
            n = len(self.items)
            places = ((at + step) % n for step in range(n))
            return next((place for place in places if self._is_open(self.items[place])), None)

    def judge(
        self, item: Item, id: str, seen: str | None, state: State, *,
        ranking: Sequence[Sequence[int]] | None = None, text: str | None = None, seconds: float = 0.0,
    ) -> Judgement:  # fmt: skip
        """Writes a judgement to the disk. `ranking`: places on the screen. A second call with one `id` writes nothing
        and returns the first one's line: a client that heard no answer asks again. Stale where the judgement of the
        item is no longer `seen`; DataError for one that does not fit the item."""
        order, check = self.order(item), check_number(seconds, "seconds", 0, LABEL_SECONDS.high, DataError)
        groups = None
        if state == "judged" and self.task == "rank":
            groups = check_ranking(ranking or (), len(order))
            groups = tuple(tuple(sorted(order[place] for place in group)) for group in groups)
        elif state == "judged" and not (text and text.strip()):
            raise DataError("the answer is empty; write one, or skip the item")
        one = Judgement(
            id, item.id, self.labeller, self.task, state, groups, text if state == "judged" else None, order,
            round(check, 2), _now(), seen,
        )  # fmt: skip
        with self._lock, self._file.locked():
            self._absorb()
            if id in self._lines:
                return self._lines[id]
            last = self._last.get(item.id)
            if seen != (last.id if last else None):
                raise Stale
            self._file.append(one)
            self._absorb()
        return one

    def undo(self, id: str) -> Judgement | None:
        """Takes back the last judgement of this labeller that still holds, by a line that repeats the one before it.
        None where there is nothing to undo. `id` as in `judge`."""
        with self._lock, self._file.locked():
            self._absorb()
            if id in self._lines:
                return self._lines[id]
            if not self._done:
                return None
            undone = self._lines[self._done[-1]]
            before, last = self._lines.get(undone.replaces or ""), self._last[undone.item]
            blank = replace(undone, state="open", ranking=None, text=None)
            line = replace(before or blank, id=id, seconds=0.0, time=_now(), replaces=last.id, undoes=undone.id)
            self._file.append(line)
            self._absorb()
        return line

    def _is_open(self, item: Item) -> bool:
        last = self._last.get(item.id)
        return last is None or last.state == "open"

    def _absorb(self) -> None:
        for one in self._file.read_new():
            if one.labeller != self.labeller or one.item not in self._places or one.id in self._lines:
                continue
            self._lines[one.id] = one
            if last := self._last.get(one.item):
                self.counts[last.state] -= 1
            self.counts[one.state] += 1
            self._last[one.item] = one
            if one.undoes is None:
                self._done.append(one.id)
                self._seconds.append(one.seconds)
            elif one.undoes in self._done:
                self._done.remove(one.undoes)

    def progress(self) -> dict[str, Any]:
        return {
            "n": len(self.items), "left": self.n_left, "pace": self.pace,
            **{state: self.counts[state] for state in ("judged", "skipped", "flagged")},
        }  # fmt: skip


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
