# SPDX-License-Identifier: Apache-2.0
"""SIGKILL anywhere, inside saving too: --resume gives bitwise the weights of the unbroken run."""

import random
import signal
import time
from pathlib import Path

import pytest

from tests.e2e.tools import TINY, corpus, foundling, raised, start, weights
from tests.processes import Forked


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    root = tmp_path_factory.mktemp("kill")
    data = corpus(root / "data")
    begin = time.monotonic()
    raised(data, "--tokens", "3072", *TINY, "--out", root / "unbroken")
    return data, weights(root / "unbroken"), time.monotonic() - begin


def kill_when(process: Forked, condition) -> bool:
    """SIGKILL as soon as the condition holds; False if the process was faster."""
    while process.poll() is None:
        if condition():
            process.send_signal(signal.SIGKILL)
            process.wait()
            return True
        time.sleep(0.0005)
    return False


def saving(out: Path):
    """A checkpoint, or the finished directory, is being written at this moment."""
    return lambda: any((out / "run" / "checkpoints").glob(".step-*.tmp")) or (out / "run" / "staging").exists()


def further(out: Path):
    """A checkpoint is there that was not when the process began."""
    before = set((out / "run" / "checkpoints").glob("step-*"))
    return lambda: bool(set((out / "run" / "checkpoints").glob("step-*")) - before)


def after(seconds: float):
    end = time.monotonic() + seconds
    return lambda: time.monotonic() > end


def broken_off_until_done(data: Path, out: Path, conditions: list) -> int:
    """Kills the run, and each resumption of it, on the given conditions; then lets it end. Returns the kills."""
    kills, first = 0, [data, "--tokens", "3072", *TINY, "--out", out]
    for condition in conditions:
        begun = (out / "run" / "journal.json").exists() or (out / "foundling.json").exists()
        process = start("raise", *(["--out", out, "--resume"] if begun else first), "--json")
        kills += kill_when(process, condition(out) if callable(condition) else after(condition))
    begun = (out / "run" / "journal.json").exists() or (out / "foundling.json").exists()
    done = foundling("raise", *(["--out", out, "--resume"] if begun else first), "--json")
    assert done.returncode == 0, done.stderr
    assert not (out / "run").exists()
    return kills


@pytest.mark.slow  # the fast ones at chosen moments are in test_signals.py
def test_killed_while_saving_and_in_between(unbroken, tmp_path) -> None:
    data, expected, _ = unbroken
    kills = broken_off_until_done(data, tmp_path / "out", [saving, further, saving])
    assert kills >= 2 and weights(tmp_path / "out") == expected


def test_told_to_stop_it_saves_and_says_75(unbroken, tmp_path) -> None:
    data, expected, _ = unbroken
    out = tmp_path / "out"
    process = start("raise", data, "--tokens", "3072", *TINY, "--out", out, "--json")
    checkpoints = out / "run" / "checkpoints"
    while process.poll() is None and not any(checkpoints.glob("step-*")):
        time.sleep(0.001)
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate()
    assert process.returncode == 75 and "--resume" in error
    again = foundling("raise", data, "--minutes", "1", "--out", out)
    assert again.returncode == 2 and "--resume" in again.stderr
    assert foundling("raise", "--out", out, "--resume").returncode == 0
    assert weights(out) == expected


@pytest.mark.slow
def test_killed_at_thirty_points(unbroken, tmp_path) -> None:
    data, expected, seconds = unbroken
    chance, kills = random.Random(0), 0
    for n in range(10):
        out = tmp_path / f"out{n}"
        points = [chance.choice([saving, further, chance.uniform(0.05, 0.4) * seconds]) for _ in range(4)]
        kills += broken_off_until_done(data, out, points)
        assert weights(out) == expected, n
    print(f"{kills} kills")
    assert kills >= 30


@pytest.mark.slow
def test_reproduce_is_bitwise_compiled(tmp_path) -> None:
    data = corpus(tmp_path / "data")
    args = [a if a != "false" else "true" for a in TINY]
    raised(data, "--tokens", "3072", *args, "--threads", "2", "--out", tmp_path / "first", timeout=600, fresh=True)
    for n in range(2):
        done = foundling("reproduce", tmp_path / "first", "--out", tmp_path / f"again{n}", timeout=600, fresh=True)
        assert done.returncode == 0, done.stderr
        assert weights(tmp_path / f"again{n}") == weights(tmp_path / "first")
