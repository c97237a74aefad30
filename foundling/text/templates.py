# SPDX-License-Identifier: Apache-2.0
"""Templates with fields in braces: "Question: {question}". Nothing in a template is executed.

A field is looked up by its whole name; a list becomes lettered lines ("A. first"); {{ and }} are braces."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from foundling.errors import DataError, render

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_PART = re.compile(r"\{\{|\}\}|\{([^{}\n]{1,100})\}|[{}]")


def fill(template: str, fields: Mapping[str, Any]) -> str:
    """The template with its fields. DataError for a field that is not there, or a brace alone."""

    def part(match: re.Match[str]) -> str:
        if match[0] in ("{{", "}}"):
            return match[0][0]
        if match[1] is None:
            raise DataError(f"{match[0]!r} alone in the template {render.message(template)!r}; write it twice")
        if match[1] not in fields:
            names = ", ".join(sorted(map(str, fields))[:20]) or "none"
            raise DataError(f"the template asks for {{{match[1]}}}, which is no field here; there are: {names}")
        return as_text(fields[match[1]])

    return _PART.sub(part, template)


def fields_of(template: str) -> list[str]:
    """The names in braces."""
    return [match[1] for match in _PART.finditer(template) if match[1] is not None]


def as_text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, Sequence):
        return "\n".join(f"{letter_of(i)}. {as_text(one)}" for i, one in enumerate(value))
    return "" if value is None else str(value)


def letter_of(index: int) -> str:
    """A, B, …, Z, AA, AB, …"""
    head, last = divmod(index, 26)
    return (letter_of(head - 1) if head else "") + LETTERS[last]
