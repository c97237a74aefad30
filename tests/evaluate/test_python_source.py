# SPDX-License-Identifier: Apache-2.0
"""What counts as a sample that Python's tokenizer reads."""

import pytest

from foundling.evaluate.tasks.python_source import tokenizes


@pytest.mark.parametrize(
    ("text", "cut", "expected"),
    [
        ("x = 1\n", False, (True, True)),
        ("def f(a,\n      b", True, (True, False)),
        ('"""open\nlines\nhal', True, (True, False)),
        ('"""open\nlines\n', False, (False, False)),
        ("if x:\n        y\n    z\n", True, (False, False)),
        ("x = 1\ny = 'half", True, (True, True)),
        ("x = 1\n  y = 2\n z = 3\nw", True, (False, False)),
    ],
)
def test_by_hand(text: str, cut: bool, expected: tuple[bool, bool]) -> None:
    assert tokenizes(text, cut=cut) == expected
