# SPDX-License-Identifier: Apache-2.0
"""Every slow test is in one shard, and no shard is long."""

import json

from tests import shards


def test_each_test_is_in_one_shard_and_shards_are_even(monkeypatch, tmp_path) -> None:
    durations = {f"tests/a.py::test_{n}": float(n % 60) for n in range(100)} | {"tests/b.py::test_long": 700.0}
    file = tmp_path / "durations.json"
    file.write_text(json.dumps(durations))
    monkeypatch.setattr(shards, "FILE", file)
    names = [*durations, "tests/new.py::test_never_timed"]
    assert shards.count() == 5  # 3,250 seconds in parts of at most 720
    parts = [shards.select(names, 40 + n) for n in range(5)]
    assert sorted(name for part in parts for name in part) == sorted(names)
    loads = [sum(durations.get(name, shards.UNKNOWN) for name in part) for part in parts]
    assert max(loads) <= shards.SECONDS and sum(loads) == sum(durations.values()) + shards.UNKNOWN
    assert parts[0] == shards.select(reversed(names), 5 * 8)


def test_the_committed_file_names_slow_tests_that_exist(collected) -> None:
    missing = sorted(shards.read().keys() - collected.keys())
    assert not missing, f"rename or remove them in {shards.FILE.name}: {missing}"
