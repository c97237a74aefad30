# SPDX-License-Identifier: Apache-2.0
"""A GGUF file by the library that defines the format: imported late, since it is optional."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from foundling.errors import WeightsError


def library() -> Any:
    try:
        import gguf
    except ImportError:
        raise WeightsError("GGUF needs the package gguf; install foundling[export]") from None
    return gguf


def open_gguf(file: Path, prefixes: tuple[str, ...]) -> tuple[Any, dict[str, Any]]:
    """(the library's reader, the values of all keys that begin with one of `prefixes`); WeightsError for a file that is
    truncated or not GGUF."""
    gguf = library()
    if not file.is_file():
        raise WeightsError(f"{file}: no such file")
    try:
        reader = gguf.GGUFReader(file)
        return reader, {n: field.contents() for n, field in reader.fields.items() if n.startswith(prefixes)}
    except Exception as error:  # the library raises errors of many types
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise WeightsError(f"{file}: not a whole GGUF file ({reason})") from None
