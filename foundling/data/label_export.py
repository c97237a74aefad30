# SPDX-License-Identifier: Apache-2.0
"""From judgements to the rows that `foundling align` reads: what the majority prefers, and demonstrations."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from foundling.data.convert import TURN
from foundling.data.labels import Item, Items, Judgement, check_ranking
from foundling.errors import DataError, OutputError, render
from foundling.runtime.files import output_errors, write_bytes


class Export(NamedTuple):
    rows: list[dict[str, Any]]
    counts: Counter[str]
    """items, and judgements, by what became of them"""


def export_rows(items: Items, last: Mapping[tuple[str, str], Judgement]) -> Export:
    """`last`: (item, labeller) -> the judgement that counts. Comparisons of two answers have "chosen" and "rejected";
    where any item has more answers, all rows have "ranked". DataError where no row is left."""
    by_item = dict[str, list[Judgement]]()
    for one in last.values():
        by_item.setdefault(one.item, []).append(one)
    counts, rows = Counter[str](), list[dict[str, Any]]()
    ranked = any(len(item.completions) > 2 for item in items.items)
    for item in items.items:
        judged = by_item.pop(item.id, [])
        made = list(
            _demonstrations(item, judged) if items.task == "write" else _comparisons(item, judged, ranked, counts)
        )
        counts["items without a judgement"] += not judged
        counts["items exported"] += bool(made)
        rows += made
    counts["judgements of items that the data do not have"] += sum(map(len, by_item.values()))
    counts = +counts
    if not rows:
        why = ", ".join(f"{name}: {n:,}" for name, n in counts.items())
        raise DataError(f"there is nothing to export ({why}); label some items first")
    return Export(rows, counts)


def _demonstrations(item: Item, judged: Sequence[Judgement]) -> Iterator[dict[str, Any]]:
    for one in sorted(judged, key=lambda one: one.labeller):
        yield {"messages": [*item.messages, {"role": "assistant", "content": one.text}]}


def _comparisons(
    item: Item, judged: Sequence[Judgement], ranked: bool, counts: Counter[str]
) -> Iterator[dict[str, Any]]:
    """One row where the majorities of all pairs make an order; where some pairs are ties, a row for each other pair."""
    if not judged:
        return
    n = len(item.completions)
    lead = np.zeros((n, n), np.int64)  # judgements that find the row's answer better, less those that find it worse
    for one in judged:
        groups = check_ranking(one.ranking or (), n)
        ranks = {answer: place for place, group in enumerate(groups) for answer in group}
        counts["equal judgements of a pair, which count for neither"] += sum(
            ranks[a] == ranks[b] for a, b in combinations(range(n), 2)
        )
        lead += np.array([[np.sign(ranks[b] - ranks[a]) for b in range(n)] for a in range(n)])
    wins = lead > 0
    order = sorted(range(n), key=lambda answer: -int(wins[answer].sum()))
    if np.tril(wins[np.ix_(order, order)]).any() and _has_cycle(wins):
        counts["items whose majorities go round in a circle, left out"] += 1
        return
    pairs = [(a, b) for a in range(n) for b in range(n) if wins[a, b]]
    n_ties = n * (n - 1) // 2 - len(pairs)
    counts["pairs without a majority, left out"] += n_ties
    for row in [order] if not n_ties else pairs:
        texts = [item.completions[answer] for answer in row]
        yield {"prompt": _prompt(item)} | ({"ranked": texts} if ranked else {"chosen": texts[0], "rejected": texts[1]})


def _has_cycle(wins: Any) -> bool:
    """Whether answers are left once those that beat no other are taken away again and again."""
    left = list(range(len(wins)))
    while last := [answer for answer in left if not wins[answer][left].any()]:
        left = [answer for answer in left if answer not in last]
    return bool(left)


def _prompt(item: Item) -> str | list[dict[str, Any]]:
    first, *more = item.messages
    plain = not more and first["role"] == "user" and set(first) == {"role", "content"}
    return first["content"] if plain and not TURN.match(first["content"]) else list(item.messages)


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """JSON lines, whole or not at all. OutputError where there is a file already."""
    with output_errors(path):
        if os.path.lexists(path):
            raise OutputError(f"{path}: exists; choose another name, or remove it")
        lines = (render.inert_json(json.dumps(row, ensure_ascii=False)) + "\n" for row in rows)
        write_bytes(path, "".join(lines).encode("utf-8", "replace"))
