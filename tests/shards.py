# SPDX-License-Identifier: Apache-2.0
"""The slow tests in shards of some eight minutes of two workers: the hash of a commit chooses the one that it runs.

tests/durations.json holds seconds a test, recorded by `make test-slow ARGS=--record-durations` on a quiet machine. The
longest test is placed first, each into the shard that has the least so far (Graham 1969, LPT).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path

import pytest

FILE = Path(__file__).with_name("durations.json")
SECONDS = 12 * 60
"""of one process; two workers need half to two thirds of it, a machine of half the speed a quarter of an hour"""
UNKNOWN = 5.0
"""seconds of a test that has never been timed"""


def read() -> dict[str, float]:
    return json.loads(FILE.read_text(encoding="utf-8")) if FILE.exists() else {}


def count() -> int:
    """How many shards there are."""
    return max(1, math.ceil(sum(read().values()) / SECONDS))


def assign(durations: dict[str, float], n_shards: int) -> dict[str, int]:
    """test -> its shard; depends on the names and durations alone."""
    loads, found = [0.0] * n_shards, {}
    for name in sorted(durations, key=lambda name: (-durations[name], name)):
        found[name] = min(range(n_shards), key=lambda shard: (loads[shard], shard))
        loads[found[name]] += durations[name]
    return found


def select(names: Iterable[str], number: int) -> set[str]:
    """The tests of the shard `number` modulo the number of shards."""
    known = read()
    shards = assign({name: known.get(name, UNKNOWN) for name in names}, count())
    return {name for name, shard in shards.items() if shard == number % count()}


class Durations:
    """Hears of every test, those in other workers too; reports seconds by directory with --durations."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.seconds: dict[str, float] = {}
        self.failed: set[str] = set()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.seconds[report.nodeid] = self.seconds.get(report.nodeid, 0.0) + report.duration
        if not report.passed:
            self.failed.add(report.nodeid)

    def pytest_sessionfinish(self) -> None:
        if hasattr(self.config, "workerinput") or not self.config.option.record_durations:
            return
        new = {name: round(s, 1) for name, s in self.seconds.items() if name not in self.failed}
        table = dict(sorted((read() | new).items()))
        FILE.write_text(json.dumps(table, indent=0) + "\n", encoding="utf-8")

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if (number := self.config.option.shard) is not None:
            terminalreporter.write_line(f"shard {number % count() + 1} of {count()}")
        if self.config.option.durations is None:
            return
        directories: dict[str, float] = {}
        for name, seconds in self.seconds.items():
            directory = "/".join(name.partition("::")[0].split("/")[:2])
            directories[directory] = directories.get(directory, 0.0) + seconds
        terminalreporter.write_sep("=", f"{sum(directories.values()):.0f} seconds, by directory")
        for directory, seconds in sorted(directories.items(), key=lambda item: -item[1]):
            terminalreporter.write_line(f"{seconds:8.1f} {directory}")
