# SPDX-License-Identifier: Apache-2.0
"""Schemas and grammars from files."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

from foundling.errors import GenerationError, WeightsError
from foundling.limits import PATTERN_CHARS
from foundling.runtime.files import is_shallow, parse_json


def read_grammar(path: str | Path) -> str:
    """GenerationError for a file that cannot be read, is too large, or is no text."""
    file = Path(path)
    try:
        status = file.stat()
        if not stat.S_ISREG(status.st_mode):  # a pipe would be waited for
            raise GenerationError(f"{file}: not a file")
        if status.st_size > 4 * PATTERN_CHARS.high:  # bytes of a character
            raise GenerationError(
                f"{file}: {status.st_size:,} bytes; a schema or grammar has at most {PATTERN_CHARS.high:,} characters"
            )
        return file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise GenerationError(f"{file}: cannot be read ({error.strerror})") from None
    except ValueError as error:
        if isinstance(error, GenerationError):
            raise
        raise GenerationError(f"{file}: not a text in UTF-8") from None


def read_schema(path: str | Path) -> Any:
    """The JSON value of a file. GenerationError as `read_grammar`, and for invalid JSON."""
    text = read_grammar(path)
    if not is_shallow(text.encode()):
        raise GenerationError(f"{path}: nested too deeply for a JSON Schema")
    try:
        return parse_json(text, Path(path))
    except WeightsError as error:
        raise GenerationError(str(error)) from None
    except ValueError as error:
        raise GenerationError(f"{path}: not JSON ({error})") from None
