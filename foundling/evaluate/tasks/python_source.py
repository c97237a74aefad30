# SPDX-License-Identifier: Apache-2.0
"""Python source: does Python's own tokenizer read what was written?"""

from __future__ import annotations

import io
import tokenize
from typing import Any

from foundling.evaluate.task import GeneratedText, Task

UP_TO_THE_CUT = "passes Python's tokenize up to the cut"
NOTHING_OPEN = "passes it with nothing left open either"


def tasks(n: int) -> list[Task[int]]:
    """Two tasks of n texts that are written without a prompt: one lets a text that reached its length end inside a
    string or bracket, the other does not."""
    return [
        Task(UP_TO_THE_CUT, range(n), _no_prompt, _up_to_the_cut, metric="share"),
        Task(NOTHING_OPEN, range(n), _no_prompt, _nothing_open, metric="share"),
    ]


def tokenizes(text: str, *, cut: bool) -> tuple[bool, bool]:
    """Whether Python's tokenizer meets no error (before the end, at all) in the text, without a last line cut short.

    A text that was `cut` may end inside a string or bracket: so do the beginnings of correct programs, which is why
    that is told apart from an error before the end.
    """
    whole = (text[: text.rfind("\n") + 1] or text) if cut else text
    try:
        for _ in tokenize.generate_tokens(io.StringIO(whole).readline):
            pass
    except tokenize.TokenError as error:  # 3.11 and 3.12 word it differently
        at_the_end = "EOF in multi-line" in str(error) or "unterminated triple-quoted" in str(error)
        return cut and at_the_end, False
    except (SyntaxError, ValueError):
        return False, False
    return True, True


def _no_prompt(_: Any) -> str:
    return ""


def _up_to_the_cut(_: Any, answer: GeneratedText) -> float:
    return float(tokenizes(answer.text, cut=answer.cut)[0])


def _nothing_open(_: Any, answer: GeneratedText) -> float:
    return float(tokenizes(answer.text, cut=answer.cut)[1])
