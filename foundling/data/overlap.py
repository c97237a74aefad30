# SPDX-License-Identifier: Apache-2.0
"""What two documents have in common: the rule that keeps held-out text from being known in advance.

Two documents are near when they share more than half of one's long lines: distinct lines of LONG_LINE or more
characters once stripped. Shorter ones ("    return self") are the language's, not the document's.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping

LONG_LINE = 40

_BLANK = re.compile(r"\n[^\S\n]*\n\s*")


def lines(text: str) -> set[str]:
    """The distinct lines, stripped, blank ones left out."""
    return {stripped for line in text.splitlines() if (stripped := line.strip())}


def long_lines(text: str) -> set[str]:
    return {stripped for line in text.splitlines() if len(stripped := line.strip()) >= LONG_LINE}


def near_another(candidates: Mapping[int, str], documents: Iterable[tuple[int, str]]) -> set[int]:
    """Return the keys of those candidates that share more than half of their long lines with any one other document.

    `documents` are (key, text) and may include the candidates. Memory is bound by the candidates. Who shares over
    half of n lines shares one of any n - n//2 of them, so only a candidate's rarest ones are looked up: a licence
    header in every document costs nothing (prefix filter: Chaudhuri, Ganti & Kaushik 2006, "A Primitive Operator for
    Similarity Joins in Data Cleaning", section 4).
    """
    own = {key: long_lines(text) for key, text in candidates.items()}
    frequency = Counter(line for held in own.values() for line in held)
    holders: dict[str, set[int]] = defaultdict(set)
    for key, held in own.items():
        for line in sorted(held, key=frequency.__getitem__)[: len(held) - len(held) // 2]:
            holders[line].add(key)
    near: set[int] = set()
    for key, text in documents:
        theirs = long_lines(text)
        suspects = {suspect for line in holders.keys() & theirs for suspect in holders[line]} - {key}
        for suspect in suspects:
            if 2 * len(own[suspect] & theirs) > len(own[suspect]):
                near.add(suspect)
                for line in own[suspect] & holders.keys():  # and is never suspected again
                    holders[line].discard(suspect)
    return near


def without_repeats(tail: str, training: Iterable[str]) -> tuple[str, Counter[str]]:
    """Return `tail` without what `training` holds as well, and how many blocks and lines were taken out.

    First go the blocks (blank lines stand between them) that occur verbatim in training. If more than half of the
    remaining long lines still do, those lines go too. A tail without long lines goes whole if it has no line of its
    own. Memory is bound by the tail and the largest training text.
    """
    own_blocks = {block.strip() for block in _blocks(tail)}
    own_lines = lines(tail)
    known_blocks: set[str] = set()
    known_lines: set[str] = set()
    for text in training:
        known_blocks |= {stripped for block in _blocks(text) if (stripped := block.strip()) in own_blocks}
        known_lines |= own_lines & lines(text)
    removed: Counter[str] = Counter()
    blocks = _blocks(tail)
    kept = [block for block in blocks if block.strip() not in known_blocks]
    if len(kept) < len(blocks):
        removed["repeated block"] = len(blocks) - len(kept)
    text = "".join(kept)
    long = long_lines(text)
    if 2 * len(long & known_lines) > len(long):
        known = long & known_lines
    elif not long and lines(text) <= known_lines:
        known = known_lines
    else:
        return text, removed
    rows = text.splitlines(keepends=True)
    kept = [row for row in rows if row.strip() not in known]
    if len(kept) < len(rows):
        removed["repeated line"] = len(rows) - len(kept)
    return "".join(kept), removed


def repeats_one_word(text: str) -> bool:
    """True for text that is one word over and over, or one character."""
    words = text.split()
    return len(set(words)) == 1 and (len(words) > 1 or len(set(words[0])) == 1)


def _blocks(text: str) -> list[str]:
    """Split after blank lines; the blocks join to the text again."""
    ends = [match.end() for match in _BLANK.finditer(text)]
    return [block for start, end in zip([0, *ends], [*ends, len(text)]) if (block := text[start:end])]
