# SPDX-License-Identifier: Apache-2.0
"""Runs the tests of a task on the code of a sample, inside a sandbox and in two processes: this one has the tests and
says the verdict, the other one, its child, has the sample. The tests call the sample's functions through a pipe on
which plain values travel, so that no code of the sample runs where the verdict is made: it can print, exit, patch and
compare as it likes, and can only answer calls or not answer.

The first process imports task.py, then removes it, then starts the second one, which imports sample.py. It runs by its
path; nothing of the package is inside.
"""

from __future__ import annotations

import builtins
import collections
import decimal
import fractions
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

MAX_ITEMS = 1_000_000
"""of an iterator that a function returns"""


class SampleError(Exception):
    """What the sample raised and is no exception of Python's own."""


class CrashError(BaseException):
    """The sample's process has ended, or says what is no answer. No test can catch it by `except Exception`."""


class Peer:
    """One end of the pipe. Either side may call the other while it waits for its own answer: a test may hand over a
    function."""

    def __init__(self, read: int, write: int) -> None:
        self.source, self.sink = open(read, "rb"), open(write, "wb")  # noqa: SIM115
        self.objects: list[Any] = []
        self.handles: dict[int, Handle] = {}

    # --- values ------------------------------------------------------------------------------------------------------

    def encode(self, value: Any) -> Any:
        """JSON for a value; a handle for what has none."""
        if value is None or value is True or value is False:
            return value
        for kind, name in _SCALARS.items():
            if isinstance(value, kind):
                return [name, _SCALAR_TEXT[name](value)]
        if isinstance(value, Handle):
            return ["mine" if value.peer is self else "other", value.number]
        for kind, name in _SEQUENCES.items():
            if isinstance(value, kind):
                return [name, [self.encode(item) for item in value]]
        if isinstance(value, dict):
            name = "counter" if isinstance(value, collections.Counter) else "dict"
            return [name, [[self.encode(key), self.encode(item)] for key, item in value.items()]]
        if isinstance(value, range):
            return ["range", [value.start, value.stop, value.step]]
        if hasattr(value, "__next__") or isinstance(value, _VIEWS):
            items = list(_first(value))
            return ["list" if isinstance(value, _VIEWS) else "iterator", [self.encode(item) for item in items]]
        self.objects.append(value)
        return ["object", len(self.objects) - 1]

    def decode(self, value: Any) -> Any:
        """The value of JSON from the other side: of a type named here and no other, whatever was sent."""
        if value is None or value is True or value is False:
            return value
        name, content = value
        if name in _READ:
            return _READ[name](content)
        if name in ("dict", "counter"):
            pairs = {self.decode(key): self.decode(item) for key, item in content}
            return collections.Counter(pairs) if name == "counter" else pairs
        if name == "range":
            return range(*map(int, content))
        if name == "object":
            return self.handles.setdefault(int(content), Handle(self, int(content)))
        if name == "mine":
            return self.objects[content]
        items = [self.decode(item) for item in content]
        return _MADE[name](items)

    # --- calls -------------------------------------------------------------------------------------------------------

    def send(self, message: Any) -> None:
        self.sink.write(json.dumps(message).encode() + b"\n")
        self.sink.flush()

    def request(self, message: list[Any]) -> Any:
        """Sends a call and serves the other side's until the answer is there."""
        try:
            self.send(message)
            while True:
                answer = json.loads(self.source.readline())
                if answer[0] == "answer":
                    return answer
                self.serve(answer)
        except (OSError, ValueError, TypeError, LookupError, RecursionError, AttributeError) as error:
            raise CrashError(f"{type(error).__name__}: {error}") from None

    def serve(self, message: list[Any]) -> None:
        """Answers one call of the other side."""
        arguments = [self.decode(item) for item in message[2:]]
        try:
            if message[0] == "get":
                value = self.attribute(message[1], *arguments)
            else:
                value = self.target(message[1])(*arguments[0], **arguments[1])
            changed = [item if isinstance(item, list | dict | set) else None for item in _positional(arguments)]
            answer = ["answer", "value", self.encode(value), self.encode(changed)]
        except BaseException as error:
            answer = ["answer", "raised", type(error).__name__, _text(error)]
        try:
            self.send(answer)
        except (ValueError, TypeError, RecursionError) as error:
            self.send(["answer", "raised", "TypeError", f"the value cannot be told: {_text(error)}"])

    def target(self, reference: Any) -> Any:
        """An object that was handed over, by its number. The sample's side also knows names of the sample."""
        return self.objects[reference]

    def attribute(self, reference: Any, name: str) -> Any:
        """The tests' side tells none: the globals of a function would lead to everything in its process."""
        raise AttributeError(name)

    def call(self, reference: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
        answer = self.request(["call", reference, self.encode(list(arguments)), self.encode(named)])
        value = self.read(answer)
        try:
            for own, changed in zip(arguments, self.decode(answer[3]), strict=True):
                _put_back(own, changed)
        except (ValueError, TypeError, LookupError, RecursionError) as error:
            raise CrashError(f"{type(error).__name__}: {error}") from None
        return value

    def read(self, answer: list[Any]) -> Any:
        try:
            if answer[1] != "raised":
                return self.decode(answer[2])
            kind, text = getattr(builtins, str(answer[2]), None), str(answer[3])
        except (ValueError, TypeError, LookupError, RecursionError, ArithmeticError) as error:
            raise CrashError(f"{type(error).__name__}: {error}") from None
        # an exception of Python's own; an assertion is the tests' alone
        if isinstance(kind, type) and issubclass(kind, Exception) and not issubclass(kind, AssertionError):
            try:
                raise kind(text)
            except TypeError:  # UnicodeDecodeError takes five arguments
                pass
        raise SampleError(f"{answer[2]}: {text}")


class Handle:
    """An object of the other side: it can be called and handed back, and its attributes be read. It equals itself
    alone: the sample does not compare for the tests."""

    def __init__(self, peer: Peer, number: Any) -> None:
        self.peer, self.number = peer, number

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        return self.peer.call(self.number, arguments, named)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self.peer.read(self.peer.request(["get", self.number, self.peer.encode(name)]))


def _positional(arguments: list[Any]) -> list[Any]:
    return arguments[0] if arguments and isinstance(arguments[0], list) else []


def _put_back(own: Any, changed: Any) -> None:
    """What a function did to its argument, for tests that look at that."""
    if type(own) is not type(changed) or own == changed:
        return
    if isinstance(own, list):
        own[:] = changed
    elif isinstance(own, dict | set):
        own.clear()
        own.update(changed)


def _first(items: Any) -> Iterator[Any]:
    for number, item in enumerate(items):
        if number == MAX_ITEMS:
            raise ValueError(f"an iterator of more than {MAX_ITEMS:,} items")
        yield item


def _text(error: BaseException) -> str:
    try:
        return str(error)[:300]
    except BaseException:
        return ""


_VIEWS = (type({}.keys()), type({}.values()), type({}.items()))
_SCALARS: dict[type, str] = {
    int: "int", float: "float", str: "str", bytes: "bytes", bytearray: "bytearray", complex: "complex",
    decimal.Decimal: "decimal", fractions.Fraction: "fraction",
}  # fmt: skip
_SCALAR_TEXT: dict[str, Callable[[Any], Any]] = {
    "int": lambda value: hex(int(value)), "float": lambda value: float(value).hex(),
    "str": lambda value: str.__str__(value), "bytes": lambda value: value.hex(), "bytearray": lambda value: value.hex(),
    "complex": lambda value: [value.real.hex(), value.imag.hex()],
    "decimal": str, "fraction": lambda value: [hex(value.numerator), hex(value.denominator)],
}  # fmt: skip
_READ: dict[str, Callable[[Any], Any]] = {
    "int": lambda text: int(text, 16), "float": float.fromhex, "str": lambda text: text + "",
    "bytes": bytes.fromhex, "bytearray": bytearray.fromhex,
    "complex": lambda parts: complex(*map(float.fromhex, parts)), "decimal": decimal.Decimal,
    "fraction": lambda parts: fractions.Fraction(*(int(part, 16) for part in parts)),
}  # fmt: skip
_SEQUENCES: dict[type, str] = {
    list: "list", tuple: "tuple", set: "set", frozenset: "frozenset", collections.deque: "deque",
}  # fmt: skip
_MADE: dict[str, Callable[[list[Any]], Any]] = {
    "list": list, "tuple": tuple, "set": set, "frozenset": frozenset, "deque": collections.deque, "iterator": iter,
}  # fmt: skip


# --- the sample's side -----------------------------------------------------------------------------------------------


class SamplePeer(Peer):
    module: Any = None

    def target(self, reference: Any) -> Any:
        return getattr(self.module, reference) if isinstance(reference, str) else self.objects[reference]

    def attribute(self, reference: Any, name: str) -> Any:
        return getattr(self.target(reference), name)


def answer_calls(read: int, write: int) -> NoReturn:
    import importlib

    peer = SamplePeer(read, write)
    try:
        peer.module = importlib.import_module("sample")
        peer.send(["ready"])
    except BaseException as error:
        peer.send(["failed", type(error).__name__, _text(error)])
        os._exit(1)
    while line := peer.source.readline():
        peer.serve(json.loads(line))
    os._exit(0)


# --- the tests' side -------------------------------------------------------------------------------------------------


def judge(entry: str, names: list[str]) -> list[str]:
    """[reason, detail]: "passed", or why not. `entry` is what is tested, in the place of the task's own of that name;
    `names` are the sample's where the task has none."""
    sys.path.insert(0, os.getcwd())
    import task  # pyright: ignore[reportMissingImports]

    os.unlink("task.py")
    sys.path.pop(0)  # a module that is imported later is Python's, and none that the sample has written
    down, up = os.pipe(), os.pipe()
    child = subprocess.Popen(
        [sys.executable, *sys.orig_argv[1:-1], "main.py", str(down[0]), str(up[1])],
        pass_fds=(down[0], up[1]), stdin=subprocess.DEVNULL, stdout=2,
    )  # fmt: skip
    os.close(down[0])
    os.close(up[1])
    peer = Peer(up[0], down[1])
    try:
        first = json.loads(peer.source.readline() or '["failed", "", "the process ended"]')
        if first[0] != "ready":
            kind = str(first[1])
            reason = {
                "SyntaxError": "syntax",
                "IndentationError": "syntax",
                "TabError": "syntax",
                "MemoryError": "memory",
            }
            return [reason.get(kind, "exception" if kind else "crash"), f"{kind}: {first[2]}"[:300]]
        for name in names:
            if not hasattr(task, name):
                setattr(task, name, Handle(peer, name))
        if entry:
            setattr(task, entry, Handle(peer, entry))
        task.check(getattr(task, entry, None))
        return ["passed", ""]
    except AssertionError as error:
        return ["wrong", _text(error)]
    except CrashError as error:
        return ["crash", _text(error)]
    except MemoryError:
        return ["memory", ""]
    except BaseException as error:
        return ["exception", f"{type(error).__name__}: {_text(error)}"[:300]]
    finally:
        child.kill()


def main() -> None:
    if len(sys.argv) > 1:
        answer_calls(*map(int, sys.argv[1:]))
    with open(0, "rb", closefd=False) as orders:  # a pipe must not take its number
        given = json.loads(orders.readline())
    text = json.dumps([given["token"], *judge(given["entry"], given["names"])]).encode() + b"\n"
    os.write(1, text)
    os._exit(0)


if __name__ == "__main__":
    main()
