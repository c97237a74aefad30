# SPDX-License-Identifier: Apache-2.0
"""The fenced code blocks of a Markdown text (CommonMark 0.31, section 4.5), as models write them around an answer."""

from __future__ import annotations

import re
from typing import NamedTuple

_FENCE = re.compile(
    r"^[ \t]*+(`{3,}+|~{3,}+)[ \t]*+([\w+-]*+)([^\n]*+)\n(.*?)(?:^[ \t]*+\1[`~]*+[ \t]*+$|\Z)",
    re.DOTALL | re.MULTILINE,
)


class Fence(NamedTuple):
    """`language` in lower case, "" where none is named. `body`: the lines between. `whole`: whether the text is this
    block and nothing else, from its opening to its closing line."""

    language: str
    body: str
    whole: bool


def fences(text: str) -> list[Fence]:
    """The blocks in their order. One without a closing line ends with the text."""
    text, blocks = text.strip(), list[Fence]()
    for match in _FENCE.finditer(text):
        mark, language, info, body = match.groups()
        closed = match.end() > match.end(4) and match[0].rstrip().endswith(mark)
        whole = closed and not info.strip() and match.span() == (0, len(text))
        blocks.append(Fence(language.lower(), body, whole))
    return blocks
