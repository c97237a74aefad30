# SPDX-License-Identifier: Apache-2.0
"""What a model must not refuse: 320 harmless questions that look like harmful ones, in 20 families, and ordinary ones.

Harmful prompts are no part of the package; benchmarks/refusal_data.py fetches them and writes demonstrations with
refusals. Held out are whole families, and of the ordinary questions a fifth.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

from foundling.data.datasets.draws import HELD_OUT, Draws, Row, is_held_out
from foundling.data.datasets.look_alikes import FAMILIES, ORDINARY

OTHER = "ordinary"
"""the family of questions that look like nothing else"""


def look_alikes() -> list[Row]:
    """All of them: {"prompt", "answer", "family"}."""
    return [
        {"prompt": wording.format(thing), "answer": answer, "family": name}
        for name, family in FAMILIES.items()
        for thing, answer in family.answers.items()
        for wording in family.wordings
    ]


def questions(split: str, seed: int = 0) -> list[Row]:
    """Those of a split, look-alikes and ordinary ones, in an order by the seed."""
    ordinary = [{"prompt": prompt, "answer": answer, "family": OTHER} for prompt, answer in ORDINARY.items()]
    rows = [
        row
        for row in [*look_alikes(), *ordinary]
        if is_held_out("refusals", *(row[k] for k in (("prompt",) if row["family"] == OTHER else ("family",))))
        == (split == HELD_OUT)
    ]
    return Draws("refusals", split, seed).shuffled(rows)


def load(choice: Any) -> Iterator[Row]:
    """Rows of a part: see docs/tasks.md."""
    for row in islice(questions(choice.split, choice.seed), choice.n):
        if choice.part == "prompts":
            yield row
        else:
            turns = (("user", row["prompt"]), ("assistant", row["answer"]))
            yield {"messages": [{"role": role, "content": content} for role, content in turns]}
