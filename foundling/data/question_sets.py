# SPDX-License-Identifier: Apache-2.0
"""From questions with answers, or chats of one's own, to what a model is aligned by: demonstrations, and comparisons
made by rule. Four files of JSON lines, of which two are of items that are held out.

The worse answer of a comparison is another question's answer, the right answer that goes on with another question, or
the right answer in another format. All choices are by hash: equal items give equal files.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from foundling.data.examples import LEAST_EXAMPLES
from foundling.data.kinds import Kind
from foundling.data.layouts import detect
from foundling.data.questions import MEMORY, Item, digest
from foundling.data.rows import SUFFIXES, read_rows
from foundling.data.streams import Skip, suffix
from foundling.errors import DataError
from foundling.limits import QUESTIONS
from foundling.runtime.files import write_directory

LEAST_ITEMS, LEAST_CHATS = 200, 20
"""questions of a corpus, and chats of one's own, below which nothing is learnt that could be measured"""
HELD_OUT_SHARE = 5
"""one key in so many is held out"""
N_DEMONSTRATIONS, N_COMPARISONS, N_HELD_OUT = 3000, 800, 200
"""made from a text, at most; all chats of one's own are learnt from, and as many of these are held out at most"""
OWN = "chats"
"""the kind of chats of one's own"""
DEMONSTRATIONS, HELD_OUT, COMPARISONS, HELD_OUT_COMPARISONS = FILES = (
    "demonstrations.jsonl", "held_out.jsonl", "comparisons.jsonl", "held_out_comparisons.jsonl",
)  # fmt: skip
COMPARES = ("chosen", "preferred", "ranked")
"""columns of which one makes a row a comparison"""


class Chat(NamedTuple):
    """A conversation and its answer; `worse` are answers that its writer ranks below, the best of them first."""

    key: str
    kind: str
    group: str
    messages: list[dict[str, Any]]
    answer: str
    worse: tuple[str, ...] = ()
    fields: dict[str, Any] = {}
    """of one's own demonstration: its messages as they are, and tools"""


def chats_of(items: Iterable[Item], name: str) -> list[Chat]:
    """One a question. DataError where they are too few; `name`: of the corpus. A question with two answers is none."""
    items = list(dict.fromkeys(items))
    answers = Counter(item.question for item in items)
    clear = [item for item in items if answers[item.question] == 1]
    if len(clear) < LEAST_ITEMS:
        raise DataError(
            f"{name!r} holds {len(clear)} questions with answers, too few to align a model by ({LEAST_ITEMS}): give "
            "chats of your own with --align CHATS.jsonl, or more text"
        )
    return [Chat(i.key, i.kind, i.group, [{"role": "user", "content": i.question}], i.answer) for i in clear]


def read_chats(path: str) -> tuple[list[Chat], Counter[str]]:
    """Demonstrations and comparisons of a file of rows, as `foundling align` reads them; both may stand in one file.
    And the rows that are skipped, by reason. DataError for a file of none or of too few."""
    if suffix(Path(path)) not in SUFFIXES or not Path(path).is_file():
        raise DataError(f"--align {path!r} is no file of chats ({', '.join(SUFFIXES)}); DATA stands before --align")
    parts: dict[tuple[Kind, frozenset[str]], list[dict[str, Any]]] = {}  # rows with the same columns
    skipped = Counter[str]()
    for row in read_rows(Path(path)):
        if not isinstance(row, Skip):
            kind = "preference" if row.fields.keys() & COMPARES else "chat"
            parts.setdefault((kind, frozenset(row.fields)), []).append(row.fields)
        elif row.rest:
            raise DataError(f"--align {path!r} cannot be read ({row.reason}): {row.detail}")
        else:
            skipped[row.reason] += 1
        QUESTIONS.check(1 + sum(map(len, parts.values())), f"the number of chats of {path}", DataError)
    chats = list[Chat]()
    for (kind, _), rows in parts.items():
        layout = detect(rows, kind)
        for row in rows:
            fields = layout.convert(row)
            if isinstance(fields, Skip):
                skipped[fields.reason] += 1
                continue
            *before, last = fields["messages"]
            messages = fields["messages"] if kind == "preference" else before
            answer, *worse = fields["completions"] if kind == "preference" else [last["content"]]
            if messages and messages[-1]["role"] == "user" and (worse or last["role"] == "assistant"):
                key = json.dumps(messages, sort_keys=True)
                own = {} if kind == "preference" else fields
                chats.append(Chat(key, OWN, MEMORY, messages, answer, tuple(worse), own))
            else:
                skipped["a chat that no answer to a user ends"] += 1
    if len({chat.key for chat in chats}) < LEAST_CHATS:
        raise DataError(
            f"--align {path!r} holds {len({chat.key for chat in chats})} chats that an answer ends, too few to learn "
            f"from and hold some out: give {LEAST_CHATS} or more"
        )
    return chats, skipped


def choose(chats: Iterable[Chat]) -> list[Chat]:
    """In an order of which any beginning has as many of each kind as of the others, while there are any."""
    turn, places = Counter[str](), list[tuple[int, int, Chat]]()
    for chat in sorted(chats, key=_order):
        places.append((turn[chat.kind], len(places), chat))
        turn[chat.kind] += 1
    return [chat for _, _, chat in sorted(places)]


def _order(chat: Chat) -> int:
    return digest(json.dumps([chat.messages, chat.answer], sort_keys=True))


def write_sets(
    folder: Path, chats: Sequence[Chat], fits: Callable[[Sequence[str]], bool] = lambda texts: True
) -> Counter[str]:
    """Writes FILES, whole or not at all, and returns what was left out, by reason. `fits`: whether the model reads a
    conversation of these texts."""
    keys, too_long = sorted({chat.key for chat in chats}, key=digest), "too long for the model"
    held_out = {key for key in keys if digest(key) % HELD_OUT_SHARE == 0}
    if not 0 < len(held_out) < len(keys):  # of a few chats
        held_out = set(keys[::HELD_OUT_SHARE])
    own, left_out = any(chat.kind == OWN for chat in chats), Counter[str]()
    if own:  # what is not asked at the end is learnt from
        held_out = set(sorted(held_out, key=digest)[:N_HELD_OUT])
    apart = [chat for chat in chats if chat.key in held_out]
    learnt = [chat for chat in chats if chat.key not in held_out]
    ranked = any(chat.worse for chat in chats)  # then these are what their writer wants compared
    others: dict[str, list[Chat]] = {}
    for chat in sorted(learnt, key=_order):
        others.setdefault(chat.kind, []).append(chat)

    def counted(texts: Sequence[str]) -> bool:
        left_out[too_long] += not (fit := fits(texts))
        return fit

    def demonstrations(pool: Sequence[Chat], n: int) -> list[dict[str, Any]]:
        rows = map(_demonstration, choose(pool))
        return list(islice((row for row in rows if counted([m["content"] for m in row["messages"]])), n))

    def compared(pool: Sequence[Chat], n: int) -> list[dict[str, Any]]:
        chosen = choose(chat for chat in pool if chat.worse or not ranked)
        rows = (_comparison(chat, others.get(chat.kind, learnt)) for chat in chosen)
        longest = lambda row: [*(m["content"] for m in row["prompt"]), max(row["ranked"], key=len)]  # noqa: E731
        return list(islice((row for row in rows if counted(longest(row))), n))

    rows = {
        DEMONSTRATIONS: demonstrations(learnt, len(chats) if own else N_DEMONSTRATIONS),
        HELD_OUT: demonstrations(apart, N_HELD_OUT),
        COMPARISONS: compared(learnt, len(chats) if own else N_COMPARISONS),
        HELD_OUT_COMPARISONS: compared(apart, N_HELD_OUT),
    }  # fmt: skip
    if min(len(rows[DEMONSTRATIONS]), len(rows[COMPARISONS])) < LEAST_EXAMPLES or not all(rows.values()):
        raise DataError(
            f"of {len(chats):,} questions too few are short enough for the model; give a larger --seq-len, or shorter "
            "chats of your own with --align CHATS.jsonl"
        )

    def fill(aside: Path) -> None:
        for name, lines in rows.items():
            text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in lines)
            (aside / name).write_text(text.encode(errors="replace").decode(), encoding="utf-8")

    write_directory(folder, fill)
    return +left_out


def _demonstration(chat: Chat) -> dict[str, Any]:
    asked = {"messages": [*chat.messages, {"role": "assistant", "content": chat.answer}]}
    return {**(chat.fields or asked), "kind": chat.kind, "group": chat.group}


def _comparison(chat: Chat, others: Sequence[Chat]) -> dict[str, Any]:
    """`others`: where a wrong answer comes from."""
    if chat.worse:
        return {"prompt": chat.messages, "ranked": [chat.answer, *chat.worse], "rule": "ranked by its writer"}
    place, question = _order(chat), str(chat.messages[-1]["content"])
    different = [each for each in (others[(place + i) % len(others)] for i in range(9)) if each.answer != chat.answer]
    other = different[0] if different else others[0]
    ways = [
        ("goes on after the answer", f"{chat.answer}\n{other.messages[-1]['content']}\n{other.answer}"),
        ("in another format", f"Question: {question} Answer: {chat.answer}"),
        *([("another question's answer", other.answer)] if different else []),
    ]
    rule, worse = ways[place % len(ways)]
    return {"prompt": chat.messages, "ranked": [chat.answer, worse], "rule": rule}
