# SPDX-License-Identifier: Apache-2.0
"""Values of expressions without variables, as sums of fractions times square roots and powers of pi: exact, without
SymPy. Such sums are equal exactly where their terms are: roots of different numbers without square factors are
independent over the fractions (Besicovitch 1940), and pi is transcendental."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction

from foundling.verify.calculator import MAX_BITS
from foundling.verify.expressions import Tree

MAX_RADICAND = 10**10
"""of which square factors are sought"""
MAX_TERMS = 64
MAX_FACTORIAL = 500

Terms = dict[tuple[int, int], Fraction]
"""(number under the root, power of pi) -> coefficient"""


class Inexact(Exception):
    """The value is no such sum, or too large."""


def value_of(tree: Tree) -> Terms | None:
    """The terms of an expression, none of them 0; None where it has variables or is no such sum.

    >>> from foundling.verify.expressions import parse
    >>> value_of(parse(r"\\\\sqrt{12} / 4"))
    {(3, 0): Fraction(1, 2)}
    """
    try:
        return _evaluate(tree)
    except Inexact:
        return None


def rational(terms: Terms | None) -> Fraction | None:
    """The value, where it is a fraction."""
    if terms is None or any(key != (1, 0) for key in terms):
        return None
    return terms.get((1, 0), Fraction(0))


def _evaluate(tree: Tree) -> Terms:
    name, *parts = tree
    if name == "number":
        return _terms({(1, 0): Fraction(parts[0])})
    if name == "constant" and parts[0] == "pi":
        return {(1, 1): Fraction(1)}
    if name not in _OPERATIONS:
        raise Inexact
    return _OPERATIONS[name](*[_evaluate(part) for part in parts])


def _terms(terms: Terms) -> Terms:
    result = {key: value for key, value in terms.items() if value}
    sizes = [max(v.numerator.bit_length(), v.denominator.bit_length()) for v in result.values()]
    if len(result) > MAX_TERMS or max(sizes, default=0) > MAX_BITS:
        raise Inexact
    return result


def _add(*parts: Terms) -> Terms:
    result: Terms = {}
    for part in parts:
        for key, value in part.items():
            result[key] = result.get(key, Fraction(0)) + value
    return _terms(result)


def _multiply(a: Terms, b: Terms) -> Terms:
    result: Terms = {}
    for (root, pi), value in a.items():
        for (other, power), factor in b.items():
            common = math.gcd(root, other)
            key = (root * other // common**2, pi + power)
            result[key] = result.get(key, Fraction(0)) + value * factor * common
    return _terms(result)


def _divide(a: Terms, b: Terms) -> Terms:
    if len(b) != 1:
        raise Inexact
    (((root, pi), value),) = b.items()
    return _multiply(a, {(root, -pi): 1 / (value * root)})


def _power(base: Terms, exponent: Terms) -> Terms:
    power = rational(exponent)
    if power is None:
        raise Inexact
    if power.denominator == 2:
        return _power(_root(base, {(1, 0): Fraction(2)}), {(1, 0): Fraction(power.numerator)})
    size = max((max(v.numerator.bit_length(), v.denominator.bit_length()) for v in base.values()), default=1)
    if power.denominator != 1 or abs(power) * size > MAX_BITS or (not base and power <= 0):
        raise Inexact
    if len(base) > 1 and abs(power) > 32:
        raise Inexact
    if power < 0:
        return _divide({(1, 0): Fraction(1)}, _power(base, {(1, 0): -power}))
    result, square, n = {(1, 0): Fraction(1)}, base, power.numerator
    while n:
        if n & 1:
            result = _multiply(result, square)
        n >>= 1
        if n:
            square = _multiply(square, square)
    return result


def _root(base: Terms, index: Terms) -> Terms:
    value, n = rational(base), rational(index)
    if value is None or n is None or n.denominator != 1 or not 2 <= n <= 64 or (value < 0 and n % 2 == 0):
        raise Inexact
    degree = n.numerator
    top, bottom = _whole_root(abs(value.numerator), degree), _whole_root(value.denominator, degree)
    if top is not None and bottom is not None:
        return _terms({(1, 0): Fraction(top if value >= 0 else -top, bottom)})
    radicand = value.numerator * value.denominator
    if degree != 2 or radicand > MAX_RADICAND:
        raise Inexact
    outside, divisor = 1, 2
    while divisor * divisor <= radicand:
        while radicand % (divisor * divisor) == 0:
            radicand //= divisor * divisor
            outside *= divisor
        divisor += 1
    return {(radicand, 0): Fraction(outside, value.denominator)}


def _whole_root(value: int, degree: int) -> int | None:
    if value.bit_length() > MAX_BITS:
        raise Inexact
    low, high = 0, 1 << (value.bit_length() // degree + 1)
    while low < high:
        middle = (low + high) // 2
        low, high = (middle + 1, high) if middle**degree < value else (low, middle)
    return low if low**degree == value else None


def _factorial(terms: Terms) -> Terms:
    value = rational(terms)
    if value is None or value.denominator != 1 or not 0 <= value <= MAX_FACTORIAL:
        raise Inexact
    return {(1, 0): Fraction(math.factorial(value.numerator))}


def _binomial(a: Terms, b: Terms) -> Terms:
    n, k = rational(a), rational(b)
    if n is None or k is None or n.denominator != 1 or k.denominator != 1 or not 0 <= k <= n <= MAX_FACTORIAL:
        raise Inexact
    return {(1, 0): Fraction(math.comb(n.numerator, k.numerator))}


def _fraction_only(function: Callable[[Fraction], Fraction | int]) -> Callable[[Terms], Terms]:
    def apply(terms: Terms) -> Terms:
        value = rational(terms)
        if value is None:
            raise Inexact
        return _terms({(1, 0): Fraction(function(value))})

    return apply


_OPERATIONS = {
    "add": _add, "multiply": _multiply, "divide": _divide, "power": _power, "root": _root, "factorial": _factorial,
    "binomial": _binomial, "negative": lambda terms: {key: -value for key, value in terms.items()},
    "abs": _fraction_only(abs), "floor": _fraction_only(math.floor), "ceiling": _fraction_only(math.ceil),
}  # fmt: skip
