# SPDX-License-Identifier: Apache-2.0
"""English number words: two hundred and five, 2.5 million, three quarters, two and a half, a dozen."""

from __future__ import annotations

import re
from fractions import Fraction

SMALL = {
    "zero": 0, "one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9,
    "ten": 10, "eleven": 11, "twelve": 12, "thirteen": 13, "fourteen": 14, "fifteen": 15, "sixteen": 16,
    "seventeen": 17, "eighteen": 18, "nineteen": 19,
}  # fmt: skip
TENS = {
    "twenty": 20, "thirty": 30, "forty": 40, "fifty": 50, "sixty": 60, "seventy": 70, "eighty": 80, "ninety": 90,
}  # fmt: skip
LARGE = {"thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
SCALES = {"dozen": 12, "hundred": 100, **LARGE}
"""what a number in words may stand before: two dozen"""
DIGIT_SCALES = {name: size for name, size in SCALES.items() if name != "dozen"}
"""what a number in digits may stand before: 5 million. In "3 dozen" and "18 quarters", dozens and coins are counted."""
_ONE_PART = {
    "half": 2, "third": 3, "quarter": 4, "fourth": 4, "fifth": 5, "sixth": 6, "seventh": 7, "eighth": 8, "ninth": 9,
    "tenth": 10, "twelfth": 12, "hundredth": 100, "thousandth": 1000,
}  # fmt: skip
_PARTS = {"halves": 2} | {f"{name}s": size for name, size in _ONE_PART.items() if name != "half"}

_NUMBER = "|".join([*SMALL, *TENS, *DIGIT_SCALES, *(f"{name}s" for name in DIGIT_SCALES), "half", "infinity"])
_OPERATORS = (
    "or|than|plus|minus|squared|cubed|pi|sqrt|factorial|choose|divided|multiplied|mod|modulo|ln|sin|cos|tan|exp|"
    "percent|infinite|infty|infinitely"
)
_NOUNS = "root|roots|power|powers|exponent|log|sum|product|ratio"
"""operators that are nouns elsewhere: root beers, power tools, log cabins"""
_NO_UNIT = re.compile(
    rf"\b(?:(?:{_NUMBER})\b(?!-(?!(?:{_NUMBER})\b)[a-z])|(?:{_OPERATORS}|[iknxyzπ])\b|"  # no six-packs
    rf"(?:{_NOUNS})\b(?=\s*(?:of\b|\d|[a-z]\b|[^\w\s'-]|$))|and\s+an?\s+(?:{'|'.join(_ONE_PART)})\b)"
)
_DIVIDED = re.compile(r"\b(?:over|times)\s+(?!an?\b|the\b|per\b|each\b)\w")
_WORD = re.compile(r"[\s-]*([a-z]+)")
MAX_WORDS = 24


def has_number_words(text: str) -> bool:
    """Whether words behind a number change it, or may: "or six", "squared", "divided by four", "less than x"."""
    return bool(_NO_UNIT.search(text.lower()) or _DIVIDED.search(text.lower()))


def begins_with_number_word(text: str) -> bool:
    """Whether the first word behind a number changes it, or may; the words behind that one only tell which it is."""
    match, first = _NO_UNIT.search(text.lower()), re.match(r"\s*\S*", text)
    return bool(match and first and match.start() < first.end())


def read_words(text: str) -> tuple[Fraction, int] | None:
    """The number in words that a text begins with, and where it ends; None for another text.

    >>> read_words("one hundred and five apples"), read_words("two thirds"), read_words("apples")
    ((Fraction(105, 1), 20), (Fraction(2, 3), 10), None)
    """
    words = _words(text)
    start = 1 if len(words) > 1 and words[0][0] in ("a", "an") and words[1][0] in {**SCALES, **_ONE_PART} else 0
    if words and words[0][0] == "half":
        if len(words) > 2 and words[1][0] in ("a", "an") and (size := SCALES.get(words[2][0])):
            return Fraction(size, 2), words[2][1]
        return Fraction(1, 2), words[0][1]
    total, group, at, last = 0, 1 if start else None, start, 10**15
    while at < len(words):
        word = words[at][0]
        if word == "and" and at + 1 < len(words) and (group is None or group % 100 == 0) and at:
            word = words[at + 1][0] if words[at + 1][0] in {**SMALL, **TENS} else ""
            at += bool(word)
        value = SMALL.get(word, TENS.get(word))
        if value is not None and (group is None or _fits(group, value)):
            group = (group or 0) + value
        elif word == "hundred" and group and group < 100:
            group *= 100
        elif word == "dozen" and group and not total:
            group *= 12
        elif word in LARGE and group and LARGE[word] < last:
            total, group, last = total + group * LARGE[word], None, LARGE[word]
        else:
            break
        at += 1
    if group is None and not total:
        return None
    number, end = Fraction(total + (group or 0)), words[at - 1][1]
    part = part_behind(text[end:], number)
    if part and not start:
        return part[0], end + part[1]
    if start and at == start:  # a half
        return (part[0], end + part[1]) if part else None
    return number, end


def part_behind(text: str, number: Fraction) -> tuple[Fraction, int] | None:
    """`number`, which is in words, with what stands behind it: thirds of it, or "and a half" more; where that ends."""
    words = _words(text)
    if words and number.denominator == 1 and (size := (_ONE_PART if number == 1 else _PARTS).get(words[0][0])):
        return number / size, words[0][1]
    return more_behind(text, number)


def more_behind(text: str, number: Fraction) -> tuple[Fraction, int] | None:
    """`number`, in words or digits, and the "and a half" or "and three quarters" behind it; where that ends."""
    words = _words(text)
    names = [word for word, _ in words]
    if names[:1] == ["and"] and len(names) > 2 and (names[1] in ("a", "an") or names[1] in SMALL):
        top = SMALL.get(names[1], 1)
        if size := (_ONE_PART if top == 1 else _PARTS).get(names[2]):
            return number + Fraction(top, size), words[2][1]
    return None


def scale_behind(text: str) -> tuple[int, int] | None:
    """What the words behind a number in digits multiply it with, and where they end: "hundred thousand"."""
    scale, end = 1, 0
    for word, stop in _words(text)[:2]:
        if word not in DIGIT_SCALES or re.match("-[a-z]", text[stop:].lower()):  # 5 hundred-dollar bills
            break
        scale, end = scale * DIGIT_SCALES[word], stop
    return (scale, end) if end else None


def _fits(group: int, value: int) -> bool:
    """twenty + one, one hundred + twenty-one"""
    one = group % 100 >= 20 and group % 10 == 0 and 0 < value < 10
    return one or (group >= 100 and group % 100 == 0 and value > 0)


def _words(text: str) -> list[tuple[str, int]]:
    """The lower-case words that a text begins with, with nothing but spaces and hyphens between, and their ends."""
    words, at, text = list[tuple[str, int]](), 0, text.lower()
    while len(words) < MAX_WORDS and (match := _WORD.match(text, at)):
        words.append((match[1], match.end()))
        at = match.end()
    return words
