# SPDX-License-Identifier: Apache-2.0
"""SIGKILL, SIGTERM, SIGINT and SIGHUP at chosen moments of a raise and of an import: what was begun is continued bitwise
or refused with what to do, and nothing of the user's is lost.

A moment is the k-th time that the process opens a file to write, or makes, renames, links or removes one below a
folder: an audit hook counts, so that a moment is the same in each run. A few more, within the computing, are by time.
"""

import json
import os
import random
import signal
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from foundling.weights.directory import check
from tests.e2e.tools import TINY, corpus, environment, files, foundling, raised, weights
from tests.processes import Forked

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
WRITES = ("open", "os.mkdir", "os.rename", "os.link", "os.remove", "os.rmdir")
NEVER = 1 << 30
MINE = b"years of work"


def strike(root: str, at: int, number: int, count: str) -> None:
    """In the child: sends `number` to it at the at-th change below `root`, and appends each to the file `count`. The
    user, meanwhile, puts a file of his own into the output and into run/."""
    seen, log = [0], os.open(count, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def hook(event: str, args: tuple) -> None:
        if event not in WRITES or not str(args[0]).startswith(root):
            return
        if event == "open" and not (isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR)):
            return
        seen[0] += 1
        os.write(log, f"{event} {args[0]}\n".encode())
        if str(args[0]).endswith("run/checkpoints"):
            for folder in (Path(root, "out"), Path(root, "out", "run")):
                if not (folder / "thesis.txt").exists():
                    (folder / "thesis.txt").write_bytes(MINE)
        if seen[0] == at:
            os.kill(os.getpid(), number)

    sys.addaudithook(hook)


def struck(command: list, root: Path, at: int, number: int) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of the command, hit at moment `at`."""
    root.mkdir(exist_ok=True)
    before = partial(strike, f"{root}/", at, number, f"{root}.count")
    process = Forked(["foundling", *map(str, command)], env=environment(), before=before)
    out, error = process.communicate(120)
    assert process.returncode is not None
    return process.returncode, out, error


def moments(root: Path) -> int:
    return len(Path(f"{root}.count").read_text().splitlines())


@dataclass
class Case:
    """A command, the directory `out` that it writes below a root of its own, and the weights that it must give."""

    root: Path
    command: list
    expected: str
    n_moments: int
    seconds: float


@pytest.fixture(scope="module")
def a_raise(tmp_path_factory) -> Case:
    root = tmp_path_factory.mktemp("signals")
    command = ["raise", corpus(root / "data"), "--tokens", "3072", *TINY, "--total-steps", "6", "--json"]
    begin = time.monotonic()
    code, _, error = struck([*command, "--out", root / "whole" / "out"], root / "whole", NEVER, 0)
    assert code == 0, error
    assert (root / "whole" / "out" / "run" / "thesis.txt").read_bytes() == MINE
    return Case(root, command, weights(root / "whole" / "out"), moments(root / "whole"), time.monotonic() - begin)


@pytest.fixture(scope="module")
def an_import(a_raise: Case) -> Case:
    command = ["import", a_raise.root / "whole" / "out", "--json"]
    root, begin = a_raise.root / "imported", time.monotonic()
    code, _, error = struck([*command[:2], root / "out", "--json"], root, NEVER, 0)
    assert code == 0, error
    return Case(a_raise.root, command, weights(root / "out"), moments(root), time.monotonic() - begin)


def said(code: int, out: str, error: str, number: int, ways: tuple[int, ...]) -> None:
    """The exit code is right, and one line and one object say what to do."""
    if number == signal.SIGKILL:
        assert code in (-signal.SIGKILL, 0)
        return
    assert code in (*ways, 0), (code, error)
    assert "Traceback" not in error, error
    found = json.loads(out)  # one object
    if code:
        way = "--resume" if code == 75 else "run it again"
        assert found["exit_code"] == code and way in found["error"] and way in error, (found, error)


def finish_raise(case: Case, root: Path, number: int) -> None:
    out = root / "out"
    assert not (out / "config.json").exists() or (out / "foundling.json").exists()  # never weights without a manifest
    mine = {path: path.read_bytes() for path in (out / "thesis.txt", out / "run" / "thesis.txt") if path.exists()}
    begun = (out / "run" / "journal.json").exists() or (out / "foundling.json").exists()
    command = ["raise", "--resume", "--json"] if begun else case.command
    done = foundling(*command, "--out", out)
    assert done.returncode == 0, done.stderr
    assert weights(out) == case.expected and check(out)["ok"]
    assert all(path.read_bytes() == MINE for path in mine)
    left = files(out / "run") if (out / "run").exists() else {}
    assert left == ({"thesis.txt": MINE} if left else {}) and not list(out.rglob("*.tmp"))
    assert foundling("raise", "--resume", "--out", out).returncode == 0


def finish_import(case: Case, root: Path, number: int) -> None:
    out = root / "out"
    if not out.exists():
        done = foundling(*case.command[:2], out, "--json")
        assert done.returncode == 0, done.stderr
    assert weights(out) == case.expected and check(out)["ok"]
    assert {path.name for path in root.iterdir()} == {"out", "theirs"}


def strike_raise(case: Case, name: str, at: int, number: int) -> int:
    root = case.root / name
    code, out, error = struck([*case.command, "--out", root / "out"], root, at, number)
    said(code, out, error, number, (75, 128 + number))
    finish_raise(case, root, number)
    return code


def strike_import(case: Case, name: str, at: int, number: int) -> int:
    root = case.root / name
    root.mkdir()
    (root / "theirs").write_bytes(MINE)
    code, out, error = struck([*case.command[:2], root / "out", "--json"], root, at, number)
    said(code, out, error, number, (128 + number,))
    finish_import(case, root, number)
    return code


def test_moments_of_a_raise(a_raise: Case) -> None:
    print(a_raise.n_moments, a_raise.seconds, open(f"{a_raise.root}/whole.count").read())


def test_moments_of_an_import(an_import: Case) -> None:
    print(an_import.n_moments, an_import.seconds, open(f"{an_import.root}/imported.count").read())
