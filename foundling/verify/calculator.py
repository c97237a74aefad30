# SPDX-License-Identifier: Apache-2.0
"""Arithmetic in exact fractions, and the calculator annotations of GSM8K: `<<48/2=24>>` (Cobbe et al. 2021,
"Training Verifiers to Solve Math Word Problems", section 2 and appendix C)."""

from __future__ import annotations as _  # a function here has the name

import re
from dataclasses import dataclass
from fractions import Fraction

from foundling.verify.numbers import normalise, read_decimal, read_quantity

MAX_CHARS = 1_000
"""characters of an expression"""
MAX_DEPTH = 50
"""parentheses and signs inside each other"""
MAX_BITS = 20_000
"""of a numerator or denominator; a power beyond it is not computed"""

_TOKEN = re.compile(r"\s*(?:(\d+(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d*)?|\.\d+)|(\*\*|[-+*/^()%]))")
_ANNOTATION = re.compile(r"<<([^<>=]{0,1000})=([^<>=]{0,100})>>")


class _Undefined(Exception):
    """No arithmetic, a division by zero, or too large a number."""


class _Parser:
    """expression = term {(+|-) term}; term = factor {(*|/) factor}; factor = sign factor | atom [^ factor]"""

    def __init__(self, text: str) -> None:
        self.tokens, at = list[str](), 0
        text = text.rstrip()
        while at < len(text):
            match = _TOKEN.match(text, at)
            if not match:
                raise _Undefined
            self.tokens.append(match[1] or match[2])
            at = match.end()
        self.at = self.depth = 0

    def peek(self) -> str:
        return self.tokens[self.at] if self.at < len(self.tokens) else ""

    def take(self) -> str:
        self.at += 1
        return self.tokens[self.at - 1] if self.at <= len(self.tokens) else ""

    def expression(self) -> Fraction:
        value = self.term()
        while self.peek() in ("+", "-"):
            value = value + self.term() if self.take() == "+" else value - self.term()
        return check_size(value)

    def term(self) -> Fraction:
        value = self.factor()
        while self.peek() in ("*", "/"):
            if self.take() == "*":
                value *= self.factor()
            else:
                divisor = self.factor()
                if not divisor:
                    raise _Undefined
                value /= divisor
            check_size(value)
        return value

    def factor(self) -> Fraction:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise _Undefined
        if self.peek() in ("+", "-"):
            value = self.factor() if self.take() == "+" else -self.factor()
        else:
            value = self.atom()
            if self.peek() in ("^", "**"):
                self.take()
                value = power(value, self.factor())
        self.depth -= 1
        return value

    def atom(self) -> Fraction:
        token = self.take()
        if token == "(":
            value = self.expression()
            if self.take() != ")":
                raise _Undefined
        else:
            number = read_decimal(token) if re.match(r"[\d.]", token) else None
            if number is None:
                raise _Undefined
            value = number
        while self.peek() == "%":
            self.take()
            value /= 100
        return value


def check_size(value: Fraction) -> Fraction:
    if max(value.numerator.bit_length(), value.denominator.bit_length()) > MAX_BITS:
        raise _Undefined
    return value


def power(base: Fraction, exponent: Fraction) -> Fraction:
    """Of a whole exponent; raises _Undefined for others, for 0 to a negative power, and beyond MAX_BITS."""
    bits = max(base.numerator.bit_length(), base.denominator.bit_length())
    if exponent.denominator != 1 or (not base and exponent < 0) or bits * abs(exponent) > MAX_BITS:
        raise _Undefined
    return base**exponent.numerator


def evaluate(expression: str) -> Fraction | None:
    """The exact value of + - * / ^ % and parentheses over decimal numbers; None for anything else, a division by zero,
    a power that is no fraction, or more than MAX_CHARS characters.

    >>> evaluate("(1 + 2) * 0.5 / 3")
    Fraction(1, 2)
    """
    text = re.sub(r"[$€£]|(?<=\d)\s*x\s*(?=[\d(.$])", lambda m: "*" if "x" in m[0] else "", normalise(expression))
    if len(text) > MAX_CHARS:
        return None
    try:
        parser = _Parser(text)
        value = parser.expression()
    except _Undefined:
        return None
    return value if parser.at == len(parser.tokens) else None


@dataclass(frozen=True)
class Annotation:
    """`<<expression=stated>>` at `span` (start, end). `right`: whether the statement is exact, or the value rounded to
    the decimals stated; None where either side is no arithmetic."""

    expression: str
    stated: str
    right: bool | None
    span: tuple[int, int]


def annotations(text: str) -> list[Annotation]:
    """The calculator annotations of a solution, in their order."""
    result = []
    for match in _ANNOTATION.finditer(text):
        value, stated = evaluate(match[1]), evaluate(match[2])
        if stated is None and (quantity := read_quantity(match[2])):
            stated = quantity.value
        right = None if value is None or stated is None else value == stated or _is_rounded(value, stated, match[2])
        result.append(Annotation(match[1], match[2], right, match.span()))
    return result


def _is_rounded(value: Fraction, stated: Fraction, text: str) -> bool:
    decimals = re.search(r"\.(\d+)", text)
    return bool(decimals) and abs(value - stated) <= Fraction(1, 2 * 10 ** len(decimals[1]))


def without_annotations(text: str) -> str:
    """The text as people read it: `48/2 = <<48/2=24>>24` becomes `48/2 = 24`."""
    return _ANNOTATION.sub("", text)
