# SPDX-License-Identifier: Apache-2.0
"""What the pages with a script share: the renderer of untrusted text on every expression, one script by its hash, one
sheet of styles."""

from __future__ import annotations

import base64
import hashlib
from importlib.resources import files
from os import PathLike
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from foundling.errors import OutputError, render
from foundling.report import units

MAX_TEXT = 1_600
"""characters of a prompt or an answer on a page; of a longer one its end, which is what was asked last"""


def page(template: str, script: str, **values: Any) -> str:
    """The page of a template in this package. It loads nothing and runs one script, which the page's policy names by
    its hash."""
    source = files("foundling.report").joinpath(script).read_text("utf-8")
    digest = base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()
    return styled_page(template, script=Markup(source), digest=digest, **values)


def styled_page(template: str, **values: Any) -> str:
    """The page of a template, in the styles that the pages share."""
    folder = files("foundling.report")
    # every expression of the template passes through the one renderer of untrusted text
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
                              finalize=_shown)  # fmt: skip
    environment.filters |= {"count": units.count, "duration": units.duration, "block": block, "head": head}
    style = Markup(folder.joinpath("viewer.css").read_text("utf-8"))
    return environment.from_string(folder.joinpath(template).read_text("utf-8")).render(style=style, **values)


def write_page(text: str, path: str | PathLike[str]) -> None:
    """OutputError if it cannot be written."""
    try:
        Path(path).write_text(text, encoding="utf-8")
    except OSError as error:
        where = render.terminal(repr(str(path)))
        raise OutputError(f"the page {where} cannot be written: {error.strerror}; name another path") from error


def block(text: str) -> Markup:
    """A text of several lines, of a long one its end."""
    cut = len(text) - MAX_TEXT
    before = f"({cut:,} characters before) …" if cut > 0 else ""
    return Markup(render.html(before + text[max(0, cut) :], lines=True, limit=2 * MAX_TEXT))


def head(text: str) -> Markup:
    """The end of a text on one line: of a prompt with examples, the question."""
    line = " ".join(text[-400:].split())
    return Markup(render.html(line if len(line) <= 110 else "…" + line[-110:]))


def _shown(value: Any) -> Markup:
    return value if isinstance(value, Markup) else Markup(render.html(value))
