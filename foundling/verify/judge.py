# SPDX-License-Identifier: Apache-2.0
"""Runs the tests of a task on the code of a sample, inside a sandbox and in two processes: this one has the tests and
says the verdict, the other one, its child, has the sample. The tests call the sample's functions through a pipe on
which plain values travel, so that no code of the sample runs where the verdict is made: it can print, exit, patch and
compare as it likes, and can only answer calls or not answer.

The first process runs task.py, then removes it, then starts the second one, which imports sample.py. It runs by its
path; nothing of the package is inside.
"""

from __future__ import annotations

import builtins
import importlib.util
import json
import os
import subprocess
import sys
from typing import Any, NoReturn

from crossing import BROKEN, CrashError, Handle, Peer, text_of  # pyright: ignore[reportMissingImports]

# --- the sample's side -----------------------------------------------------------------------------------------------


class SamplePeer(Peer):
    module: Any = None

    def target(self, reference: Any) -> Any:
        return getattr(self.module, reference) if isinstance(reference, str) else self.objects[reference]

    def attribute(self, reference: Any, name: str, *value: Any) -> Any:
        return (setattr if value else getattr)(self.target(reference), name, *value)


def answer_calls(read: int, write: int) -> NoReturn:
    peer = SamplePeer(read, write)
    try:
        peer.module = importlib.import_module("sample")
        peer.send(["ready"])
    except BaseException as error:
        peer.send(["failed", type(error).__name__, text_of(error)])
        os._exit(1)
    while line := peer.source.readline():
        peer.serve(json.loads(line))
    os._exit(0)


# --- the tests' side -------------------------------------------------------------------------------------------------


def judge(entry: str, names: list[str]) -> list[str]:
    """[reason, detail]: "passed", or why not; "tests" where those of the task cannot be loaded. `entry` is what is
    tested, in the place of the task's own of that name; `names` are the sample's where the task has none."""
    # Before any code of the sample runs. A module that the tests import later, or that the library does, is Python's,
    # and none that the sample has written into the folder of this script, which Python puts on the path.
    here = os.path.realpath(os.getcwd())
    sys.path[:] = [path for path in sys.path if path and os.path.realpath(path) != here]
    spec = importlib.util.spec_from_file_location("task", os.path.join(here, "task.py"))
    assert spec and spec.loader
    task = sys.modules["task"] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(task)
    except BaseException as error:
        return ["tests", f"{type(error).__name__}: {text_of(error)}"[:300]]
    os.unlink("task.py")
    down, up = os.pipe(), os.pipe()
    child = subprocess.Popen(
        [sys.executable, *sys.orig_argv[1:-1], "main.py", str(down[0]), str(up[1])],
        pass_fds=(down[0], up[1]), stdin=subprocess.DEVNULL, stdout=2,
    )  # fmt: skip
    os.close(down[0])
    os.close(up[1])
    peer = Peer(up[0], down[1])
    peer.names = {**vars(builtins), **vars(task)}
    try:
        return _failed_start(peer) or _tested(peer, task, entry, names)
    finally:
        child.kill()


def _failed_start(peer: Peer) -> list[str]:
    """Why the sample cannot be loaded; [] where it is."""
    try:
        first = json.loads(peer.source.readline() or '["failed", "", "the process ended"]')
        if first[0] == "ready":
            return []
        kind, text = str(first[1]), f"{first[1]}: {first[2]}"[:300]
    except BROKEN as error:
        return ["crash", text_of(error)]
    reasons = {"SyntaxError": "syntax", "IndentationError": "syntax", "TabError": "syntax", "MemoryError": "memory"}
    return [reasons.get(kind, "exception" if kind else "crash"), text]


def _tested(peer: Peer, task: Any, entry: str, names: list[str]) -> list[str]:
    for name in names:
        if not hasattr(task, name):
            setattr(task, name, Handle(peer, name))
    if entry:
        setattr(task, entry, Handle(peer, entry))
    try:
        task.check(getattr(task, entry, None))
        return ["passed", ""]
    except AssertionError as error:
        if peer.unsupported:
            return ["unsupported value", f"{peer.unsupported}: {text_of(error)}"[:300]]
        return ["wrong", text_of(error)]
    except CrashError as error:
        return ["crash", text_of(error)]
    except MemoryError:
        return ["memory", ""]
    except BaseException as error:
        text = f"{type(error).__name__}: {text_of(error)}"[:300]
        # such as len() of an object of the sample, or a field of a named tuple
        lacks = error is not peer.raised and any(part in text for part in _LACKS)
        return ["unsupported value" if lacks or peer.unsupported else "exception", text]


_LACKS = ("Handle", "'tuple' object has no attribute")
TOKEN = 32
"""bytes before the order"""


def main() -> None:
    if len(sys.argv) > 1:
        answer_calls(*map(int, sys.argv[1:]))
    os.lseek(0, TOKEN, os.SEEK_SET)
    with open(0, "rb", closefd=False) as file:  # a pipe must not take its number
        order = json.loads(file.read())
    verdict = judge(order["entry"], order["names"])
    # the token, which makes the verdict one, is in no variable while tests run
    os.write(1, json.dumps([os.pread(0, TOKEN, 0).decode(), *verdict]).encode() + b"\n")
    os._exit(0)


if __name__ == "__main__":
    main()
