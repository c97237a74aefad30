# SPDX-License-Identifier: Apache-2.0
"""Overlap of documents: the rule that keeps held-out text out of the training text.

Two documents are near duplicates if they share more than half of one's long lines: distinct lines of LONG_LINE or more
characters once stripped. Shorter lines ("    return self") are common to many documents.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping

LONG_LINE = 40

_BLANK = re.compile(r"\n[^\S\n]*\n\s*")


def lines(text: str) -> set[str]:
    """The distinct lines, stripped, without blank ones."""
    return {stripped for line in text.splitlines() if (stripped := line.strip())}


def long_lines(text: str) -> set[str]:
    return {stripped for line in text.splitlines() if len(stripped := line.strip()) >= LONG_LINE}


def near_another(candidates: Mapping[int, str], documents: Iterable[tuple[int, str]]) -> set[int]:
    """Return the keys of those candidates that share more than half of their long lines with any one other document.

    `documents` are (key, text) and may include the candidates. Memory is bounded by the candidates. A document that
    shares over half of n lines shares one of any n - n//2 of them, so only the rarest lines of a candidate are looked
    up, and a licence header in every document costs nothing (prefix filter: Chaudhuri, Ganti & Kaushik 2006, "A
    Primitive Operator for Similarity Joins in Data Cleaning", section 4).
    """
    candidate_lines = {key: long_lines(text) for key, text in candidates.items()}
    frequency = Counter(line for long in candidate_lines.values() for line in long)
    holders: dict[str, set[int]] = defaultdict(set)
    for key, long in candidate_lines.items():
        for line in sorted(long, key=frequency.__getitem__)[: len(long) - len(long) // 2]:
            holders[line].add(key)
    near: set[int] = set()
    for key, text in documents:
        other = long_lines(text)
        suspects = {suspect for line in holders.keys() & other for suspect in holders[line]} - {key}
        for suspect in suspects:
            if 2 * len(candidate_lines[suspect] & other) > len(candidate_lines[suspect]):
                near.add(suspect)
                for line in candidate_lines[suspect] & holders.keys():  # it need not be compared again
                    holders[line].discard(suspect)
    return near


def without_repeats(tail: str, training: Iterable[str]) -> tuple[str, Counter[str]]:
    """Return `tail` without the text that `training` also contains, and the numbers of removed blocks and lines.

    Blocks (separated by blank lines) that occur verbatim in training are removed first. If more than half of the
    remaining long lines occur there too, those lines are removed. A tail without long lines is removed if all of
    its lines occur in training. Memory is bounded by the tail and the largest training text.
    """
    tail_blocks = {block.strip() for block in _blocks(tail)}
    tail_lines = lines(tail)
    repeated_blocks: set[str] = set()
    repeated_lines: set[str] = set()
    for text in training:
        repeated_blocks |= {stripped for block in _blocks(text) if (stripped := block.strip()) in tail_blocks}
        repeated_lines |= tail_lines & lines(text)
    removed: Counter[str] = Counter()
    blocks = _blocks(tail)
    new_blocks = [block for block in blocks if block.strip() not in repeated_blocks]
    if len(new_blocks) < len(blocks):
        removed["repeated block"] = len(blocks) - len(new_blocks)
    text = "".join(new_blocks)
    long = long_lines(text)
    if 2 * len(long & repeated_lines) > len(long):
        repeated = long & repeated_lines
    elif not long and lines(text) <= repeated_lines:
        repeated = repeated_lines
    else:
        return text, removed
    rows = text.splitlines(keepends=True)
    new_rows = [row for row in rows if row.strip() not in repeated]
    if len(new_rows) < len(rows):
        removed["repeated line"] = len(rows) - len(new_rows)
    return "".join(new_rows), removed


def repeats_one_word(text: str) -> bool:
    """True for text that repeats one word, or one character."""
    words = text.split()
    return len(set(words)) == 1 and (len(words) > 1 or len(set(words[0])) == 1)


def _blocks(text: str) -> list[str]:
    """Split after blank lines; the joined blocks are the text."""
    ends = [match.end() for match in _BLANK.finditer(text)]
    return [block for start, end in zip([0, *ends], [*ends, len(text)]) if (block := text[start:end])]
