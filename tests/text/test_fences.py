# SPDX-License-Identifier: Apache-2.0
"""Fenced blocks: languages, marks, ends, and texts that a pattern with backtracking would take minutes for."""

import pytest

from foundling.text.fences import Fence, fences


@pytest.mark.parametrize(
    ("text", "blocks"),
    [
        ("none", []),
        ("```json\n{}\n```", [Fence("json", "{}\n", True)]),
        (" ~~~SQL\nSELECT 1\n ~~~ \n", [Fence("sql", "SELECT 1\n", True)]),
        ("So:\n```py\na\n```\nand\n```\nb", [Fence("py", "a\n", False), Fence("", "b", False)]),
        ("````\n```\n````", [Fence("", "```\n", True)]),
        ("```\na\n````", [Fence("", "a\n", True)]),
        ("```c++ title=a\na\n```", [Fence("c++", "a\n", False)]),
        ("```\na\n~~~\n```", [Fence("", "a\n~~~\n", True)]),
        ("```\n```", [Fence("", "", True)]),
        ("```", []),
    ],
)
def test_blocks(text: str, blocks: list[Fence]) -> None:
    assert fences(text) == blocks


@pytest.mark.parametrize("unit", ["`", "~", "```\n", " ", "a `", "```a", "\n", "` "])
def test_long_texts_end(unit: str) -> None:
    assert isinstance(fences(unit * (300_000 // len(unit))), list)
