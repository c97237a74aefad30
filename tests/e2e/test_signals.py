# SPDX-License-Identifier: Apache-2.0
"""SIGKILL, SIGTERM, SIGINT and SIGHUP at chosen moments of a raise and of an import: what was begun is continued
bitwise or refused with what to do, and nothing of the user's is lost.

A moment is the k-th time that the process opens a file to write, or makes, renames, links or removes one below a
folder (counted by an audit hook), or the call of a function, within the computing; so it is the same in each run.
"""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from foundling.runtime.files import temporary, write_directory
from foundling.weights.manifest import check
from tests.e2e.tools import TINY, corpus, environment, files, foundling, weights
from tests.processes import Forked

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
WRITES = ("open", "os.mkdir", "os.rename", "os.link", "os.remove", "os.rmdir")
PHASES = (
    "data/datasets/__init__:open_data", "data/tokens:train_tokenizer", "plan/probe:choose_precision",
    "plan/probe:proxy_run", "plan/plan:make_plan", "data/tokens:tokenize_corpus", "train/update:update",
    "evaluate/perplexity:score", "evaluate/baselines/__init__:measure_baselines", "recipes/pretrain:draw_samples",
    "weights/directory:weights_hash", "report/__init__:write_report",
)  # fmt: skip
"""functions of the phases of a raise, in their order"""
PLANNED = PHASES.index("data/tokens:tokenize_corpus")
IMPORTING = ("weights/configs:read_config", "weights/directory:weights_hash", "runtime/files:sha256")
NEVER = 1 << 30
MINE = b"years of work"


def strike(root: str, at: int | str, numbers: tuple[int, ...]) -> None:
    """In the child: sends it these signals at the at-th change below `root`, or at the first call of the function `at`.
    ROOT.count lists the changes. The user, meanwhile, puts a file of his own into the output and into run/."""
    seen, log = [0], os.open(f"{root}.count", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def hook(event: str, args: tuple) -> None:
        if event not in WRITES or not str(args[0]).startswith(f"{root}/") or str(args[0]).endswith("/thesis.txt"):
            return  # what the user puts there is no change of ours
        if event == "open" and not (isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR)):
            return
        seen[0] += 1
        os.write(log, f"{event} {args[0]}\n".encode())
        if str(args[0]).endswith("run/checkpoints"):
            for folder in (Path(root, "out"), Path(root, "out", "run")):
                if not (folder / "thesis.txt").exists():
                    (folder / "thesis.txt").write_bytes(MINE)
        if seen[0] == at:
            send()

    def profile(frame, event: str, _: object) -> None:
        code = frame.f_code
        if event == "call" and code.co_name == name and code.co_filename.endswith(f"foundling/{module}.py"):
            sys.setprofile(None)
            send()

    def send() -> None:
        for number in numbers:
            os.kill(os.getpid(), number)

    if isinstance(at, str):
        module, _, name = at.partition(":")
        sys.setprofile(profile)
    sys.addaudithook(hook)


def struck(command: list, root: Path, at: int | str, *numbers: int) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of the command, hit at the moment `at`."""
    root.mkdir(parents=True, exist_ok=True)
    process = Forked(
        ["foundling", *map(str, command)], env=environment(), before=partial(strike, str(root), at, numbers)
    )
    out, error = process.communicate(300)
    assert process.returncode is not None
    return process.returncode, out, error


def changes(root: Path) -> list[str]:
    return Path(f"{root}.count").read_text().splitlines()


def first(root: Path, event: str, ending: str) -> int:
    """The moment of an event on a file, by how its path ends."""
    return next(n for n, s in enumerate(changes(root), 1) if s.startswith(event) and re.search(ending, s))


@dataclass
class Begun:
    """A raise: how it is asked for, a copy of its directory once it was planned, and what it comes to."""

    root: Path
    command: list
    planned: Path
    whole: Path
    resumed: Path
    """whose .count lists the changes from `planned` to `whole`"""


@pytest.fixture(scope="module")
def begun(tmp_path_factory) -> Begun:
    root = tmp_path_factory.mktemp("signals")
    command = ["raise", corpus(root / "data"), "--tokens", "3072", *TINY, "--total-steps", "6", "--json"]
    code, _, error = struck([*command, "--out", root / "planned" / "out"], root / "planned", PHASES[PLANNED], 9)
    found = root / "planned" / "out"
    assert code == -9 and (found / "run" / "recipe.yaml").exists(), error
    shutil.copytree(root / "planned", root / "resumed")
    whole = root / "resumed" / "out"
    code, _, error = struck(["raise", "--resume", "--json", "--out", whole], root / "resumed", NEVER)
    assert code == 0, error
    assert (whole / "run" / "thesis.txt").read_bytes() == MINE and "holds files" not in error
    return Begun(root, command, root / "planned", whole, root / "resumed")


def said(code: int, out: str, error: str, number: int, ways: tuple[int, ...]) -> None:
    """The exit code is right; one line, and one object, say what to do."""
    if number == signal.SIGKILL:
        assert code in (-signal.SIGKILL, 0)
        return
    assert code in (*ways, 0) and "Traceback" not in error, (code, error)
    found = json.loads(out)
    if code:
        way = "/out --resume" if code == 75 else "run it again"
        assert found["exit_code"] == code and way in found["error"] and way in error, (found, error)


def strike_raise(begun: Begun, name: str, at: int | str, number: int, *, planned: bool = True) -> int:
    """Strikes a raise from its beginning, or from where it was planned, and continues it. Returns its exit code."""
    root = begun.root / f"{name}-{number}" / str(at).rpartition(":")[2]
    out = root / "out"
    if planned:
        shutil.copytree(begun.planned, root)
    command = ["raise", "--resume", "--json"] if planned else begun.command
    code, stdout, error = struck([*command, "--out", out], root, at, number)
    print(f"at {at}: exit code {code}, after {changes(root)[-1:]}")
    said(code, stdout, error, number, (75, 128 + number))
    assert not (out / "config.json").exists() or (out / "foundling.json").exists()  # no weights without their manifest
    mine = [path for path in (out / "thesis.txt", out / "run" / "thesis.txt") if path.exists()]
    started = (out / "run" / "journal.json").exists() or (out / "foundling.json").exists()
    done = foundling(*(["raise", "--resume", "--json"] if started else begun.command), "--out", out)
    assert done.returncode == 0, done.stderr
    assert weights(out) == weights(begun.whole) and check(out)["ok"]
    assert all(path.read_bytes() == MINE for path in mine) and not list(out.rglob("*.tmp"))
    left = files(out / "run") if (out / "run").exists() else {}
    assert set(left) <= {"thesis.txt"}
    return code


def strike_import(begun: Begun, name: str, at: int | str, number: int) -> int:
    root = begun.root / f"{name}-{number}" / str(at).rpartition(":")[2]
    root.mkdir(parents=True)
    (root / "theirs").write_bytes(MINE)
    command = ["import", begun.whole, root / "out", "--json"]
    code, stdout, error = struck(command, root, at, number)
    said(code, stdout, error, number, (128 + number,))
    if not (root / "out").exists():
        done = foundling(*command)
        assert done.returncode == 0, done.stderr
    assert weights(root / "out") == weights(begun.whole) and check(root / "out")["ok"]
    assert {path.name for path in root.iterdir()} == {"out", "theirs"}
    return code


def test_a_raise_is_struck_before_its_plan(begun: Begun) -> None:
    assert strike_raise(begun, "fresh", PHASES[0], signal.SIGTERM, planned=False) == 75


def test_a_raise_is_struck_before_anything_is_begun(begun: Begun) -> None:
    root = begun.root / "lock"
    code, out, error = struck([*begun.command, "--out", root / "out"], root, 1, signal.SIGHUP)
    said(code, out, error, signal.SIGHUP, (129,))
    assert code == 129 and not files(root / "out")


@pytest.mark.parametrize(
    ("number", "event", "ending"),
    [
        (signal.SIGKILL, "os.rename", r"/\.step-00000002\.\d+\.foundling\.tmp$"),  # saving
        (signal.SIGKILL, "os.remove", r"staging/model\.safetensors$"),  # publishing
        (signal.SIGTERM, "os.link", r"staging/foundling\.json$"),
    ],
)
def test_a_raise_is_struck(begun: Begun, number: int, event: str, ending: str) -> None:
    code = strike_raise(begun, "one", first(begun.resumed, event, ending), number)
    assert code == (-9 if number == signal.SIGKILL else 75)


@pytest.mark.slow
def test_a_raise_is_struck_while_it_is_measured(begun: Begun) -> None:
    assert strike_raise(begun, "one", "evaluate/baselines/__init__:measure_baselines", signal.SIGINT) == 75


@pytest.mark.parametrize(("number", "at"), [(signal.SIGKILL, "os.rename"), (signal.SIGTERM, 4)])
def test_an_import_is_struck(begun: Begun, number: int, at: int | str) -> None:
    if isinstance(at, str):  # before the one rename that publishes
        probe = begun.root / "probe"
        struck(["import", begun.whole, probe / "out", "--json"], probe, NEVER)
        at = first(probe, at, r"probe/\.out\.\d+\.foundling\.tmp$")
    assert strike_import(begun, "one", at, number) == (-9 if number == signal.SIGKILL else 128 + number)


def test_a_second_signal_ends_at_once(begun: Begun) -> None:
    root = begun.root / "twice"
    shutil.copytree(begun.planned, root)
    code, *_ = struck(
        ["raise", "--resume", "--out", root / "out"], root, "train/update:update", signal.SIGTERM, signal.SIGHUP
    )
    assert code == -signal.SIGHUP


def ignore_and_strike(root: str, at: str, number: int) -> None:
    signal.signal(number, signal.SIG_IGN)  # as nohup does
    strike(root, at, (number,))


def test_what_was_ignored_stays_ignored(begun: Begun) -> None:
    root = begun.root / "ignored"
    before = partial(ignore_and_strike, str(root), "weights/configs:read_config", signal.SIGHUP)
    root.mkdir()
    process = Forked(["foundling", "import", str(begun.whole), f"{root}/out"], env=environment(), before=before)
    process.communicate(60)
    assert process.returncode == 0 and check(root / "out")["ok"]


def test_a_temporary_is_removed_only_if_its_process_is_gone(tmp_path: Path) -> None:
    """By its lock: the number may be another process's now, and another container has numbers of its own."""
    theirs, dead = tmp_path / f".notes.{os.getpid()}.tmp", tmp_path / f".model.{os.getpid()}.foundling.tmp"
    theirs.write_bytes(MINE)
    dead.mkdir()
    (dead / "half").write_bytes(b"x")
    with temporary(tmp_path / "other") as alive:
        write_directory(tmp_path / "new", lambda folder: None)
        assert alive.exists() and theirs.exists() and not dead.exists()
    assert not alive.exists()


IMPORTS = """
import os, signal, sys
seen = 0
def hook(event, args):
    global seen
    seen += event == "import"
    if event == "import" and seen == {at}:
        os.kill(os.getpid(), signal.SIGTERM)
from foundling.cli import main
sys.addaudithook(hook)
main(["plan", "memory", "--preset", "gpt2", "--seq-len", "32", "--batch-size", "1", "--json"])
"""


@pytest.mark.slow
def test_signals_are_heard_during_the_imports() -> None:
    for at in (1, 3, 30, 100, 300, 600, 900, 1200, 1500, 1800):
        command = [sys.executable, "-c", IMPORTS.format(at=at)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment())
        assert done.returncode == 143, (at, done.stderr)
        said(done.returncode, done.stdout, done.stderr, signal.SIGTERM, (143,))


@pytest.mark.slow
@pytest.mark.parametrize("number", SIGNALS)
def test_a_raise_is_struck_all_along(begun: Begun, number: int) -> None:
    chance, codes = random.Random(number), []
    early, late = len(changes(begun.planned)), len(changes(begun.resumed))
    for k in sorted(chance.sample(range(1, early + 1), 4)):
        codes.append(strike_raise(begun, "early", k, number, planned=False))
    for n in range(12):
        at = int((n + chance.random()) / 12 * late)
        codes.append(strike_raise(begun, f"late-{n}", 1 + at, number))
    for n, name in enumerate(PHASES):
        codes.append(strike_raise(begun, f"phase{n}", name, number, planned=n >= PLANNED))
    print(f"{len(codes)} moments, exit codes {codes}")
    assert sum(code != 0 for code in codes) >= 26


@pytest.mark.slow
@pytest.mark.parametrize("number", SIGNALS)
def test_an_import_is_struck_at_each_moment(begun: Begun, number: int) -> None:
    codes = [strike_import(begun, "phase", name, number) for name in IMPORTING]
    while codes[-1] != 0:  # until it has ended before the moment comes
        codes.append(strike_import(begun, "each", len(codes) + 1 - len(IMPORTING), number))
    print(f"{len(codes)} moments, exit codes {codes}")
    assert len(codes) >= 15
