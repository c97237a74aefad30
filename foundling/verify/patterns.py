# SPDX-License-Identifier: Apache-2.0
"""Is a regular expression found in texts? An expression may take time that grows with the power of a text's length
(`(a|a)*$`), so it runs in a process whose processor time is bounded."""

from __future__ import annotations

import re
import signal
from collections.abc import Sequence
from typing import Any

from foundling.errors import ConfigError, DataError
from foundling.limits import PATTERN_CHARS, shown
from foundling.runtime.limited import LimitedProcess, LimitError

SECONDS = 1.0
"""of processor time, for all texts of one call to the process"""
MEMORY = 1 << 28
CHARS = 1 << 24
"""of the texts of one call, about"""

_process = LimitedProcess(
    "foundling.verify.patterns:search_here", memory=MEMORY, seconds=2 * round(SECONDS), answer=1 << 24
)


def check_pattern(pattern: str) -> None:
    """ConfigError for what is no regular expression."""
    PATTERN_CHARS.check(len(pattern), "the length of a pattern", ConfigError)
    try:
        valid = _process.call([pattern, []])
    except LimitError as error:
        raise ConfigError(f"the pattern {shown(pattern)} cannot be compiled: {error}; use a simpler one") from None
    if isinstance(valid, str):
        raise ConfigError(f"the pattern {shown(pattern)} is no regular expression: {valid}")


def search_all(pattern: str, texts: Sequence[str]) -> list[bool]:
    """Whether each text has it somewhere; ^ and $ are ends of lines. DataError where a text takes too long, with that
    text."""
    results = list[bool]()
    for group in _groups(texts):
        try:
            answer = _process.call([pattern, group])
        except LimitError as error:
            raise DataError(f"the pattern {shown(pattern)} cannot be searched for: {error}") from None
        if isinstance(answer, int):
            raise DataError(
                f"the search for the pattern {shown(pattern)} takes over {SECONDS:g} s at {shown(group[answer])}; use "
                "one without a repetition inside a repetition"
            )
        results += answer
    return results


def _groups(texts: Sequence[str]) -> list[list[str]]:
    groups, chars = list[list[str]](), 0
    for text in texts:
        if not groups or chars + len(text) > CHARS:
            groups.append([])
            chars = 0
        groups[-1].append(text)
        chars += len(text)
    return groups


class _SlowError(Exception):
    """Raised by the timer."""


def search_here(values: list[Any]) -> list[bool] | int | str:
    """In the process: [pattern, texts] -> whether each has it, the place of the text at which time ran out, or why the
    pattern is none. The engine looks for signals while it searches."""

    def stop(*_: object) -> None:
        raise _SlowError

    pattern, texts = values
    try:
        compiled = re.compile(pattern, re.MULTILINE)
    except (re.error, RecursionError, OverflowError) as error:
        return " ".join(str(error).split())
    results = list[bool]()
    signal.signal(signal.SIGVTALRM, stop)
    try:
        signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
        for text in texts:
            results.append(compiled.search(text) is not None)
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    except _SlowError:
        return min(len(results), len(texts) - 1)
    return results
