# SPDX-License-Identifier: Apache-2.0
"""Which tasks judge the free samples of a run: those of its data's language."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from foundling.evaluate.task import Task
from foundling.evaluate.tasks import python_source

N_SAMPLES = 50
"""texts that a run draws and judges"""
BY_LANGUAGE: dict[str, Callable[[int], list[Task[Any]]]] = {"python": python_source.tasks}
LANGUAGE_OF = {"stdlib": "python"}
"""of data sets, by name"""
SUFFIXES = {".py": "python"}


def tasks_for(data: str | None, names: Iterable[str] = (), n: int = N_SAMPLES) -> list[Task[Any]]:
    """The tasks for n samples of a model of this data; [] where none applies.

    `data` is a language or the name of a data set, with or without "builtin:". For other data the documents' `names`
    decide: the language is that of at least half of them, by suffix.
    """
    name = (data or "").removeprefix("builtin:")
    language = LANGUAGE_OF.get(name, name)
    if language not in BY_LANGUAGE:
        language = _language(list(names))
    return BY_LANGUAGE[language](n) if language in BY_LANGUAGE else []


def _language(names: list[str]) -> str | None:
    for suffix, language in SUFFIXES.items():
        if names and sum(name.endswith(suffix) for name in names) >= len(names) / 2:
            return language
    return None
