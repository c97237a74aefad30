# SPDX-License-Identifier: Apache-2.0
"""Ranked answers as rows of a file that `foundling align` reads, which is whole or absent."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from foundling.data.convert import TURN
from foundling.errors import OutputError
from foundling.evaluate.answers import PromptRow
from foundling.evaluate.ranking import rank
from foundling.runtime.files import read_json, require_name, sha256, write_bytes, write_json

Form = Literal["ranked", "pairs", "best"]
NO_ANSWER = "a prompt without an answer that can be used"
EQUAL = "a prompt whose answers are all equal"


def row_of(
    prompt: PromptRow, texts: Sequence[str], values: Sequence[float], form: Form, at_least: float | None = None
) -> dict[str, Any] | str:
    """A comparison of the texts by their rewards, of equal ones the first, or with form "best" a demonstration of the
    best one, where its reward is `at_least` that. Else why there is none."""
    if not texts:
        return NO_ANSWER
    order = rank(values)
    best = order[0]
    if at_least is not None and values[best] < at_least:
        return f"a prompt whose best answer has a reward below {at_least:g}"
    if form == "best" and prompt.is_text:
        return {"prompt": prompt.text, "completion": texts[best]}
    if form == "best":
        return {"messages": [*prompt.messages, {"role": "assistant", "content": texts[best]}]}
    if len(order) < 2:
        return EQUAL
    head = {"prompt": prompt.text if prompt.is_text else prompt.messages}
    if form == "pairs":
        return head | {"chosen": _plain(texts[best]), "rejected": _plain(texts[order[-1]])}
    return head | {"ranked": [_plain(texts[i]) for i in order]}


def _plain(text: str) -> Any:
    """As the reader of comparisons takes it for one answer: what looks like a transcript is a message."""
    return {"role": "assistant", "content": text} if TURN.match(text) else text


def make_rows(
    groups: Sequence[tuple[PromptRow, Sequence[str]]], values: Sequence[Sequence[float]], form: Form,
    at_least: float | None = None,
) -> tuple[list[dict[str, Any]], Counter[str]]:  # fmt: skip
    """The rows, and how many prompts gave none, by reason."""
    rows, skipped = list[dict[str, Any]](), Counter[str]()
    for (prompt, texts), numbers in zip(groups, values, strict=True):
        row = row_of(prompt, texts, numbers, form, at_least)
        if isinstance(row, str):
            skipped[row] += 1
        else:
            rows.append(row)
    return rows, skipped


# --- the file ---------------------------------------------------------------------------------------------------------


def check_free(out: Path, work: Path) -> None:
    """OutputError for a file that was not written by `write_rows` with this `work`, or was changed since: it would be
    replaced."""
    require_name(out)
    if out.exists() and not (out.is_file() and sha256(out) in _written(work)):
        raise OutputError(f"{out}: exists and is not as this command wrote it; move it away, or choose another --out")


def write_rows(rows: Sequence[dict[str, Any]], out: Path, work: Path) -> None:
    """The hash is in the directory `work` before the file is there."""
    data = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode("utf-8", "replace")
    write_json(work / HASHES, {"sha256": [*_written(work)[-8:], hashlib.sha256(data).hexdigest()]})
    write_bytes(out, data)


HASHES = "written.json"


def _written(work: Path) -> list[str]:
    return list(read_json(work / HASHES)["sha256"]) if (work / HASHES).exists() else []
