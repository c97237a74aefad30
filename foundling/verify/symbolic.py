# SPDX-License-Identifier: Apache-2.0
"""Are two expressions with variables or functions equal? math-verify compares them, in a process of bounded memory and
time.

SymPy's `sympify` and `parse_expr` evaluate strings as Python, and `math_verify.parse` calls `parse_expr`. Neither is
used: SymPy objects are built here from trees (foundling/verify/expressions.py), and `math_verify.verify` compares
objects. So no untrusted text is evaluated. The process is the second wall: an expression that takes too long to
simplify ends it, and the comparison is undecided.
"""

from __future__ import annotations

from functools import cache
from importlib import metadata
from importlib.util import find_spec
from typing import Any

from foundling.runtime.limited import LimitedProcess, LimitError
from foundling.verify.expressions import Tree

MEMORY = 1 << 29
"""bytes that a comparison may take"""
SECONDS = 2
"""of processor time for one comparison; most take milliseconds"""
MAX_POWER = 2_000
"""a number's exponent, beyond which nothing is computed"""

_process = LimitedProcess(
    "foundling.verify.symbolic:decide_here", memory=MEMORY, seconds=SECONDS, answer=100, modules=("math_verify",)
)


@cache
def available() -> bool:
    """Whether math-verify is installed: `pip install foundling[verify]`."""
    return find_spec("math_verify") is not None


@cache
def version() -> str:
    """Of math-verify and SymPy, which verdicts depend on; "" without math-verify."""
    if not available():
        return ""
    return " ".join(f"{name} {metadata.version(name)}" for name in ("math-verify", "sympy"))


def decide(a: Tree, b: Tree) -> bool | None:
    """Whether two trees are equal for all values of their variables. None where that takes too long, where SymPy has
    no such value, or without math-verify."""
    if not available():
        return None
    try:
        return _process.call([a, b])
    except LimitError:
        return None


def decide_here(trees: list[Tree]) -> bool | None:
    """`decide` without bounds: what the process runs."""
    from math_verify import verify

    try:
        a, b = (_build(tree) for tree in trees)
        # in both directions, since verify takes its first argument for the reference
        return bool(verify(a, b, timeout_seconds=None) or verify(b, a, timeout_seconds=None))
    except (_NoValueError, RecursionError, MemoryError, ArithmeticError, ValueError, TypeError, AttributeError):
        return None


_SAME_NAMES = (
    "sin", "cos", "tan", "cot", "sec", "csc", "sinh", "cosh", "tanh", "exp", "log", "floor", "ceiling", "binomial",
    "factorial",
)  # fmt: skip


class _NoValueError(Exception):
    """The tree has no value that SymPy should compute."""


@cache
def _functions() -> dict[str, Any]:
    import sympy

    functions = {name: getattr(sympy, name) for name in _SAME_NAMES}
    functions |= {"arcsin": sympy.asin, "arccos": sympy.acos, "arctan": sympy.atan, "abs": sympy.Abs, "ln": sympy.log}
    functions |= {"log_base": sympy.log, "add": sympy.Add, "multiply": sympy.Mul, "negative": lambda x: -x}
    return functions | {"divide": lambda x, y: x / y, "root": lambda x, n: x ** (1 / n), "power": _power}


def _power(base: Any, exponent: Any) -> Any:
    import sympy

    if not exponent.free_symbols and not base.free_symbols and abs(sympy.N(exponent, 5)) > MAX_POWER:
        raise _NoValueError
    if exponent.is_Integer and abs(exponent) > MAX_POWER:
        raise _NoValueError
    return base**exponent


def _build(tree: Tree) -> Any:
    import sympy

    name, *parts = tree
    if name == "number":
        top, _, bottom = parts[0].partition("/")
        return sympy.Rational(int(top), int(bottom or 1))
    if name == "symbol":
        return {"e": sympy.E, "i": sympy.I}.get(parts[0]) or sympy.Symbol(parts[0])
    if name == "constant":
        return {"pi": sympy.pi, "infinity": sympy.oo}[parts[0]]
    function = _functions().get(name)
    if function is None:
        raise _NoValueError
    values = [_build(part) for part in parts]
    if name in ("factorial", "binomial") and any(value.is_number and abs(value) > MAX_POWER for value in values):
        raise _NoValueError
    return function(*values)
