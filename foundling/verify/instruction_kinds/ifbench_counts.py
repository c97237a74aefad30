# SPDX-License-Identifier: Apache-2.0
"""IFBench's kinds that count, and its ratios (Pyatkin et al. 2025, "Generalizing Verifiable Instruction Following")."""

from __future__ import annotations

import re

from foundling.verify.instruction_kinds.kind import Kind
from foundling.verify.instruction_kinds.wording import (
    PRONOUNS,
    STOP_WORDS,
    sentence_mark,
    sentences,
    tokens,
    without_punctuation,
    words,
)

CONJUNCTIONS = {"and", "but", "for", "nor", "or", "so", "yet"}
NAMES = {
    "Emma", "Liam", "Sophia", "Jackson", "Olivia", "Noah", "Ava", "Lucas", "Isabella", "Mason", "Mia", "Ethan",
    "Charlotte", "Alexander", "Amelia", "Benjamin", "Harper", "Leo", "Zoe", "Daniel", "Chloe", "Samuel", "Lily",
    "Matthew", "Grace", "Owen", "Abigail", "Gabriel", "Ella", "Jacob", "Scarlett", "Nathan", "Victoria", "Elijah",
    "Layla", "Nicholas", "Audrey", "David", "Hannah", "Christopher", "Penelope", "Thomas", "Nora", "Andrew", "Aria",
    "Joseph", "Claire", "Ryan", "Stella", "Jonathan",
}  # fmt: skip
"""the names that the prompts list"""
MARKS = set(".,!?;:")


def word_count_range(text: str, prompt: str, min_words: int, max_words: int) -> bool:
    return min_words <= len(words(text)) <= max_words


def unique_word_count(text: str, prompt: str, N: int) -> bool:
    return len(set(tokens(text))) >= N


def conjunctions(text: str, prompt: str, small_n: int) -> bool:
    return len(CONJUNCTIONS & set(tokens(text))) >= small_n


def person_names(text: str, prompt: str, N: int) -> bool:
    return len(NAMES & set(words(text))) >= N


def numbers(text: str, prompt: str, N: int) -> bool:
    """Digits with points and commas between them are one number, as in 1,234.5; 10-20 is two."""
    return len(re.findall(r"\d+(?:[.,]\d+)*", text)) == N


def pronouns(text: str, prompt: str, N: int) -> bool:
    return sum(word in PRONOUNS for word in without_punctuation(text.replace("/", " ").lower()).split()) >= N


def punctuation(text: str, prompt: str) -> bool:
    """The six marks . , ! ? ; : beside an interrobang, ?! or !? or ‽."""
    mark = next((mark for mark in ("?!", "!?", "‽") if mark in text), None)
    return mark is not None and set(text.replace(mark, "", 1)) >= MARKS


def keywords_multiple(
    text: str, prompt: str, keyword1: str, keyword2: str, keyword3: str, keyword4: str, keyword5: str
) -> bool:
    """Once, twice, three, five and seven times."""
    keywords, text = (keyword1, keyword2, keyword3, keyword4, keyword5), text.lower()
    return all(text.count(keyword.strip().lower()) == n for keyword, n in zip(keywords, (1, 2, 3, 5, 7)))


def stop_words(text: str, prompt: str, percentage: int) -> bool:
    """At most `percentage` of the words are of a closed class, by the list in wording.py."""
    all_words = words(text.lower())
    return bool(all_words) and 100 * sum(word in STOP_WORDS for word in all_words) <= percentage * len(all_words)


def _marks(text: str) -> dict[str, int]:
    marks = [sentence_mark(sentence) for sentence in sentences(text)]
    return {mark: marks.count(mark) for mark in ".?!"}


def sentence_type(text: str, prompt: str) -> bool:
    """Twice as many statements as questions."""
    marks = _marks(text)
    return marks["."] == 2 * marks["?"]


def sentence_balance(text: str, prompt: str) -> bool:
    """As many statements as questions and exclamations."""
    return len(set(_marks(text).values())) == 1


def overlap(text: str, prompt: str, reference_text: str, percentage: int) -> bool:
    """`percentage` ± 2 of the answer's different trigrams of characters are in the reference text."""
    ours, theirs = ({whole[n : n + 3] for n in range(len(whole) - 2)} for whole in (text, reference_text))
    return bool(ours) and percentage - 2 <= 100 * len(ours & theirs) / len(ours) <= percentage + 2


def sentence_words(text: str, prompt: str) -> bool:
    """Three sentences of one length in characters, without a word in common."""
    parts = sentences(text)
    if len(parts) != 3 or len({len(part) for part in parts}) != 1:
        return False
    every = [set(tokens(part)) for part in parts]
    return not (every[0] & every[1] or every[0] & every[2] or every[1] & every[2])


KINDS = {
    "count:word_count_range": Kind(word_count_range, {"min_words": "count", "max_words": "count"}),
    "count:unique_word_count": Kind(unique_word_count, {"N": "count"}),
    "count:conjunctions": Kind(conjunctions, {"small_n": "count"}),
    "count:person_names": Kind(person_names, {"N": "count"}),
    "count:numbers": Kind(numbers, {"N": "count"}),
    "count:pronouns": Kind(pronouns, {"N": "count"}),
    "count:punctuation": Kind(punctuation, {}),
    "count:keywords_multiple": Kind(
        keywords_multiple,
        {"keyword1": "text", "keyword2": "text", "keyword3": "text", "keyword4": "text", "keyword5": "text"},
    ),
    "ratio:stop_words": Kind(stop_words, {"percentage": "percentage"}),
    "ratio:sentence_type": Kind(sentence_type, {}),
    "ratio:sentence_balance": Kind(sentence_balance, {}),
    "ratio:overlap": Kind(overlap, {"reference_text": "text", "percentage": "percentage"}),
    "ratio:sentence_words": Kind(sentence_words, {}),
}
