# SPDX-License-Identifier: Apache-2.0
"""Numbers and fixed values of a JSON Schema, as far as they can be written and read again exactly."""

from __future__ import annotations

import math
from decimal import Decimal
from fractions import Fraction
from typing import Any

from foundling.decode.constrain.schema_references import path_of
from foundling.errors import GenerationError
from foundling.limits import SCHEMA_COUNT, shown

LARGEST = 2**53 - 1
"""of whole numbers that every JSON parser reads exactly (RFC 7493, section 2.2)"""
DECIMALS = 9
WRITABLE = frozenset("\b\f\n\r\t")
BOUNDS = ("minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum")


def count(value: Any, path: tuple[str, ...]) -> int:
    """A number of characters, items or properties; 3.0 is a whole number too."""
    if isinstance(value, bool) or not isinstance(value, int | float) or value < 0 or value != int(value):
        raise GenerationError(f"{path[-1]} at {path_of(path)} is {shown(value)}; expected a whole number, 0 or more")
    return SCHEMA_COUNT.check(int(value), f"{path[-1]} at {path_of(path)}", GenerationError)


def positive_multiple(value: Any, path: tuple[str, ...]) -> int | float:
    if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
        raise GenerationError(f"multipleOf at {path_of(path)} is {shown(value)}; expected a number above 0")
    exact = Fraction(str(value))
    if exact > 10**6 or (exact * 10**6).denominator != 1:
        raise GenerationError(f"multipleOf {shown(value)} at {path_of(path)} is beyond a million or six decimals")
    return value


def check_numbers(node: dict[str, Any], path: tuple[str, ...]) -> None:
    for keyword in BOUNDS:
        if keyword in node and not _is_exact(node[keyword]):
            raise GenerationError(
                f"{keyword} {shown(node[keyword])} at {path_of((*path, keyword))} is beyond ±(2^53 - 1) or "
                f"{DECIMALS} decimals, which not every JSON parser reads exactly"
            )


def _is_exact(value: int | float) -> bool:
    return abs(value) <= LARGEST and (Fraction(repr(value)) * 10**DECIMALS).denominator == 1


def numeric_bounds(node: dict[str, Any], types: list[str]) -> None:
    """Closes what is open: numbers are within ±(2⁵³ − 1), and written without exponents."""
    if "number" in types or "integer" in types:
        if not node.keys() & {"minimum", "exclusiveMinimum"}:
            node["minimum"] = -LARGEST
        if not node.keys() & {"maximum", "exclusiveMaximum"}:
            node["maximum"] = LARGEST


def close_bounds(node: dict[str, Any], types: list[str]) -> None:
    """Turns bounds that are excluded into the next ones that are not, a whole number or a billionth further: llguidance
    1.9 admits 0 for a number above 0 and below 0.5."""
    for excluded, plain, sign in (("exclusiveMinimum", "minimum", 1), ("exclusiveMaximum", "maximum", -1)):
        if excluded not in node:
            continue
        value = Decimal(repr(node.pop(excluded)))
        if types == ["integer"]:
            whole = math.floor(value) if sign > 0 else math.ceil(value)
            bound: int | float = whole + sign
        else:
            steps = (float(value + sign * Decimal(1).scaleb(-n)) for n in range(DECIMALS, -1, -1))
            bound = next(step for step in steps if sign * (Decimal(repr(step)) - value) > 0)
        pick = max if sign > 0 else min
        node[plain] = pick(bound, node[plain]) if plain in node else bound


def check_enumerated(value: Any, path: tuple[str, ...]) -> None:
    """GenerationError for a fixed value that a constrained answer cannot hold exactly."""
    if isinstance(value, dict):
        for key, each in value.items():
            check_enumerated(key, path)
            check_enumerated(each, path)
    elif isinstance(value, list):
        for each in value:
            check_enumerated(each, path)
    elif isinstance(value, str):
        odd = [c for c in value if (ord(c) < 32 and c not in WRITABLE) or ord(c) == 127]
        if odd:
            raise GenerationError(f"{path[-1]} at {path_of(path)} holds the control character {shown(odd[0])}")
    elif isinstance(value, int | float) and not isinstance(value, bool) and not _is_exact(value):
        raise GenerationError(
            f"{path[-1]} at {path_of(path)} holds {shown(value)}, beyond ±(2^53 - 1) or {DECIMALS} decimals"
        )
