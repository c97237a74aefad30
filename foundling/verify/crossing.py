# SPDX-License-Identifier: Apache-2.0
"""Calls between two processes of which one runs code that is not trusted: values travel as JSON through a pipe, and
what is no plain value as a handle. Beside judge.py in its sandbox; it imports nothing of the package."""

from __future__ import annotations

import builtins
import collections
import decimal
import fractions
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

MAX_ITEMS = 1_000_000
"""of an iterator that a function returns"""


class SampleError(Exception):
    """What the sample raised and is no exception of Python's own or of the task."""


class UnsupportedError(ValueError):
    """A value that does not cross."""


class CrashError(BaseException):
    """The sample's process has ended, or sends what is no answer. No test can catch it by `except Exception`."""


class Shared:
    """The mutable containers of one call, in the order in which they were met. Each crosses once, so that two names
    for one list stay two names for one list, and what a function does to it can be done to the caller's."""

    def __init__(self) -> None:
        self.items: list[Any] = []
        self.numbers: dict[int, int] = {}

    def number(self, item: Any) -> int:
        if id(item) not in self.numbers:
            self.numbers[id(item)] = len(self.items)
            self.items.append(item)  # it keeps the item alive, and so its id
        return self.numbers[id(item)]


class Peer:
    """One end of the pipe. Either side may call the other while it waits for its own answer: a test may hand over a
    function."""

    def __init__(self, read: int, write: int) -> None:
        self.source, self.sink = open(read, "rb"), open(write, "wb")  # noqa: SIM115
        self.objects: list[Any] = []
        self.numbers: dict[int, int] = {}
        self.handles: dict[int, Handle] = {}
        self.names: Mapping[str, Any] = vars(builtins)
        self.unsupported = ""
        self.raised: BaseException | None = None

    # --- values ------------------------------------------------------------------------------------------------------

    def encode(self, value: Any, shared: Shared) -> Any:
        """JSON for a value; a number for a mutable container, whose contents `states` gives; a handle for an object."""
        if value is None or value is True or value is False:
            return value
        for kind, name, write, _ in _SCALARS:
            if isinstance(value, kind):
                return [name, write(value)]
        if isinstance(value, Handle):
            return ["mine", value.number]
        if _container(value):
            return ["at", shared.number(value)]
        for kind, name in _FROZEN.items():
            if isinstance(value, kind):
                return [name, [self.encode(item, shared) for item in value]]
        if isinstance(value, range):
            return ["range", [value.start, value.stop, value.step]]
        if isinstance(value, _VIEWS):
            return ["at", shared.number(list(value))]
        if hasattr(value, "__next__"):
            items = list(itertools.islice(value, MAX_ITEMS + 1))
            if len(items) > MAX_ITEMS:
                raise UnsupportedError(f"an iterator of more than {MAX_ITEMS:,} items")
            return ["iterator", [self.encode(item, shared) for item in items]]
        if id(value) not in self.numbers:
            self.numbers[id(value)] = len(self.objects)
            self.objects.append(value)
        return ["object", self.numbers[id(value)], type(value).__name__]

    def states(self, shared: Shared) -> list[Any]:
        """[type, contents] of each container, those among the contents included: the list grows while it is read."""
        return [self._state(item, shared) for item in shared.items]

    def _state(self, item: Any, shared: Shared) -> list[Any]:
        if isinstance(item, bytearray):
            return ["bytearray", item.hex()]
        if isinstance(item, dict):
            pairs = [[self.encode(key, shared), self.encode(value, shared)] for key, value in item.items()]
            return [_container(item), pairs]
        return [_container(item), [self.encode(value, shared) for value in item]]

    def decode(self, value: Any, shared: Shared) -> Any:
        """The value of JSON from the other side: of a type named here and no other, whatever was sent."""
        if value is None or value is True or value is False:
            return value
        name, content = value[:2]
        if name in _READ:
            return _READ[name](content)
        if name == "at":
            return shared.items[_index(content)]
        if name == "range":
            return range(*map(int, content))
        if name == "object":
            kind = str(value[2])
            if kind in _COMPARED_BY_IS:
                self.unsupported = kind
            return self.handles.setdefault(_index(content), Handle(self, content, kind))
        if name == "mine":
            return self.target(content)
        return _MADE[name](self.decode(item, shared) for item in content)

    def restore(self, states: list[Any], shared: Shared, sent: Sequence[Any] = ()) -> None:
        """Makes the containers that are new here and gives each the contents that it has on the other side. What is
        there as it was `sent` stays untouched."""
        for name, _ in states[len(shared.items) :]:
            shared.number(_EMPTY[name]())
        for number, item in enumerate(shared.items):
            if number >= len(sent) or states[number] != sent[number]:
                name, content = states[number]
                self._fill(item, name, content, shared)

    def _fill(self, item: Any, name: str, content: Any, shared: Shared) -> None:
        if _container(item) != name:
            raise TypeError(name)
        if isinstance(item, bytearray):
            item[:] = bytes.fromhex(content)
            return
        if isinstance(item, dict):
            pairs = [(self.decode(key, shared), self.decode(value, shared)) for key, value in content]
            item.clear()
            for key, value in pairs:
                item[key] = value
            return
        values = [self.decode(value, shared) for value in content]
        item.clear()
        item.update(values) if isinstance(item, set) else item.extend(values)

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
        except BROKEN as error:
            raise CrashError(f"{type(error).__name__}: {error}") from None

    def serve(self, message: list[Any]) -> None:
        """Answers one call of the other side."""
        action, reference, words, named, states = message
        shared = Shared()
        self.restore(states, shared)
        arguments = [self.decode(item, shared) for item in words]
        options = {str(name): self.decode(item, shared) for name, item in named.items()}
        try:
            try:
                if action == "call":
                    value = self.target(reference)(*arguments, **options)
                else:
                    value = self.attribute(reference, *arguments)
                answer = ["answer", "value", self.encode(value, shared)]
            except BaseException as error:
                answer = ["answer", "raised", [type(error).__name__, text_of(error)]]
            self.send([*answer, self.states(shared)])
        except Exception as error:  # the sample's own classes may raise anything
            self.send(["answer", "raised", ["UnsupportedError", f"the value cannot be told: {text_of(error)}"], None])

    def target(self, reference: Any) -> Any:
        """An object that was handed over, by its number. The sample's side also has names of the sample."""
        return self.objects[_index(reference)]

    def attribute(self, reference: Any, name: str, *value: Any) -> Any:
        """Gets it, or sets it to `value`. The tests' side does neither: the globals of a function would lead to
        everything in its process."""
        raise AttributeError(name)

    def call(self, reference: Any, arguments: tuple[Any, ...], named: dict[str, Any], action: str = "call") -> Any:
        shared = Shared()
        words = [self.encode(item, shared) for item in arguments]
        options = {name: self.encode(item, shared) for name, item in named.items()}
        sent = self.states(shared)
        return self.read(self.request([action, reference, words, options, sent]), shared, sent)

    def read(self, answer: list[Any], shared: Shared, sent: list[Any]) -> Any:
        try:
            _, how, content, states = answer
            if states is not None:
                self.restore(states, shared, sent)
            if how != "raised":
                return self.decode(content, shared)
            name, text = map(str, content)
        except BROKEN as error:
            raise CrashError(f"{type(error).__name__}: {error}") from None
        if name == "UnsupportedError":
            self.unsupported = text
        self.raised = _exception(self.names.get(name), text) or SampleError(f"{name}: {text}")
        raise self.raised


class Handle:
    """An object of the other side: it can be called and handed back, and its attributes be read and set. It equals
    itself alone: the sample does not compare for the tests."""

    peer: Peer
    number: Any
    kind: str

    def __init__(self, peer: Peer, number: Any, kind: str = "object") -> None:
        vars(self).update(peer=peer, number=number, kind=kind)

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        return self.peer.call(self.number, arguments, named)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self.peer.call(self.number, (name,), {}, "attribute")

    def __setattr__(self, name: str, value: Any) -> None:
        self.peer.call(self.number, (name, value), {}, "attribute")

    def __eq__(self, other: object) -> bool:
        if other is not self:
            self.peer.unsupported = self.kind
        return other is self

    __hash__ = object.__hash__


def _exception(kind: Any, text: str) -> Exception | None:
    """An exception of Python's own or of the task. An assertion is the tests' alone, and what ends an iteration would
    end one of the tests' early, as in all(map(…))."""
    never = (AssertionError, StopIteration, StopAsyncIteration)
    if isinstance(kind, type) and issubclass(kind, Exception) and not issubclass(kind, never):
        try:
            return kind(text)
        except Exception:  # UnicodeDecodeError takes five arguments
            pass
    return None


def _index(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise IndexError(value)
    return value


def _container(value: Any) -> str:
    """The name of a mutable container's type; "" for other values."""
    return next((name for kind, name in _CONTAINERS.items() if isinstance(value, kind)), "")


def text_of(error: BaseException) -> str:
    try:
        return str(error)[:300]
    except BaseException:
        return ""


BROKEN = (OSError, ValueError, TypeError, LookupError, RecursionError, AttributeError, ArithmeticError)
"""what reading a message that is none raises"""
_COMPARED_BY_IS = ("type", "ellipsis", "NotImplementedType")
_VIEWS = (type({}.keys()), type({}.values()), type({}.items()))
_SCALARS: list[tuple[type, str, Callable[[Any], Any], Callable[[Any], Any]]] = [
    (int, "int", lambda value: hex(int(value)), lambda text: int(text, 16)),
    (float, "float", lambda value: float(value).hex(), float.fromhex),
    (str, "str", lambda value: str.__str__(value), lambda text: text + ""),
    (bytes, "bytes", lambda value: value.hex(), bytes.fromhex),
    (complex, "complex", lambda value: [value.real.hex(), value.imag.hex()],
     lambda parts: complex(*map(float.fromhex, parts))),
    (decimal.Decimal, "decimal", str, decimal.Decimal),
    (fractions.Fraction, "fraction", lambda value: [hex(value.numerator), hex(value.denominator)],
     lambda parts: fractions.Fraction(*(int(part, 16) for part in parts))),
]  # fmt: skip
"""(type, name, as JSON, from JSON)"""
_READ = {name: read for _, name, _, read in _SCALARS}
_CONTAINERS: dict[type, str] = {kind: kind.__name__.lower() for kind in (
    list, collections.Counter, dict, set, collections.deque, bytearray
)}  # fmt: skip
_EMPTY: dict[str, Callable[[], Any]] = {name: kind for kind, name in _CONTAINERS.items()}
_FROZEN: dict[type, str] = {tuple: "tuple", frozenset: "frozenset"}
_MADE: dict[str, Callable[[Any], Any]] = {
    "tuple": tuple, "frozenset": frozenset, "iterator": lambda items: iter(list(items)),
}  # fmt: skip
