# SPDX-License-Identifier: Apache-2.0
"""What a kind of instruction is, and which arguments it takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from foundling.limits import INSTRUCTION_CHARS, INSTRUCTION_COUNT

Argument = Literal["count", "percentage", "text", "texts", "relation", "letter"]
RELATIONS = ("less than", "at least")


@dataclass(frozen=True)
class Kind:
    """`check(text, prompt, **arguments)` says whether an answer follows the instruction. It is pure and linear in the
    length of the text. `arguments`: name -> what it is; `needs`: a library that the check imports."""

    check: Callable[..., bool]
    arguments: dict[str, Argument]
    needs: str = ""


def compare(number: int, relation: str, threshold: int) -> bool:
    return number < threshold if relation == "less than" else number >= threshold


def problem(value: Any, argument: Argument) -> str:
    """What is wrong with an argument; "" where nothing is. Data sets write whole numbers as 5.0 as well."""
    if argument in ("count", "percentage"):
        most = 100 if argument == "percentage" else INSTRUCTION_COUNT.high
        right = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= most
        return "" if right and value == int(value) else f"expected a whole number from 0 to {most:,}"
    if argument == "texts":
        right = isinstance(value, list) and all(isinstance(item, str) and item.strip() for item in value)
        return "" if right and len(value) <= 1_000 else "expected a list of at most 1,000 texts, none of them empty"
    if argument == "relation":
        return "" if value in RELATIONS else f"expected one of {', '.join(RELATIONS)}"
    if argument == "letter":
        return "" if isinstance(value, str) and len(value.strip()) == 1 else "expected one character"
    right = isinstance(value, str) and value.strip() and len(value) <= INSTRUCTION_CHARS.high
    return "" if right else f"expected a text of at most {INSTRUCTION_CHARS.high:,} characters that is not empty"
