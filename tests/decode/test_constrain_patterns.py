# SPDX-License-Identifier: Apache-2.0
"""Patterns of JSON Schema in the form that Rust and Python read alike, against Python's own reading of the original."""

import random
import re

import pytest
from llguidance import LLMatcher, LLTokenizer

from foundling.decode.constrain.constraint import regex
from foundling.decode.constrain.formats import FORMATS
from foundling.decode.constrain.patterns import translate_pattern
from foundling.errors import GenerationError

BYTES = LLTokenizer("byte")
ALPHABET = ["a", "b", "c", "1", "_", " ", "-", "\n", "é", "🙂", "/", '"', "\\", "A"]
PATTERNS = [
    "a",
    "^a",
    "b$",
    "^ab*$",
    "a|b",
    "^a|b$",
    "^(a|b)+$",
    "(^a$|^b$)",
    "^(?:ab){1,2}c?$",
    "^[abc]{2}$",
    "^[^ab]+$",
    r"^[\w-]+$",
    r"^\D+$",
    r"^a\.b$",
    r"^\u00e9+$",
    r"^[\u0061-c]$",
    r"^(?<x>a)b$",
    "^a{0}b$",
    "^$",
    "",
    "|a",
    "^a+?b$",
    r"[/\"]",
    r"^\x61\t?$",
    r"^[\]\-a]$",
    "^.{2}$",
    r"^\S$",
    "^[a-]$",
    r"\\",
]


def rust_matches(pattern: str, text: str) -> bool:
    matcher = LLMatcher(BYTES, LLMatcher.grammar_from_regex(pattern), log_level=0)
    assert not matcher.is_error(), matcher.get_error()
    data = list(text.encode())
    return matcher.try_consume_tokens(data) == len(data) and matcher.is_accepting()


def texts_of(seed: int) -> list[str]:
    draw = random.Random(seed)
    return ["", *ALPHABET, *("".join(draw.choices(ALPHABET, k=draw.randrange(1, 5))) for _ in range(120))]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_both_engines_read_the_translation_as_python_reads_the_pattern(pattern: str) -> None:
    original = re.compile(pattern.replace("(?<", "(?P<").replace("$", r"\Z"), re.ASCII)
    translated = translate_pattern(pattern, "here")
    for text in texts_of(len(pattern)):
        expected = original.search(text) is not None
        assert (re.fullmatch(translated, text) is not None) == expected, (pattern, translated, text)
    for text in texts_of(1)[:40]:
        assert rust_matches(translated, text) == (original.search(text) is not None), (pattern, translated, text)


def test_classes_are_those_of_ecma_262() -> None:
    for pattern, inside, outside in [
        (r"\d", "09", "٣a"),
        (r"\w", "aZ_9", "é-"),
        (r"\s", " \t\n\u00a0\ufeff\u2028\u3000", "a\u200b"),
        (".", "a🙂\x85", "\n\r\u2028\u2029"),
        (r"\D", "٣a", "0"),
        (r"\W", "é-", "a"),
        (r"[^\d]", "a\n", "5"),
        (r"\cJ", "\n", "J"),
        (r"\0", "\0", "0"),
        (r"[\b]", "\b", "b"),
        (r"\u{1F642}", "🙂", "u"),
        (r"\ud83d\ude42", "🙂", "x"),
    ]:
        translated = translate_pattern(pattern, "here", whole=True)
        for char in inside + outside:
            assert (re.fullmatch(translated, char) is not None) == (char in inside), (pattern, char)
            assert rust_matches(translated, char) == (char in inside), (pattern, char)


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("(?=a)", "look-around"),
        ("(?!a)", "look-around"),
        ("(?<=a)", "look-around"),
        (r"\1", r"back-reference \1"),
        (r"\k<x>", "back-reference"),
        (r"\ud83d\u0041", "names no character"),
        (r"\ud83d\ud83d", "names no character"),
        (r"\ude42", "names no character"),
        (r"\bx", "word boundary"),
        (r"\p{L}", "property"),
        ("(?i)a", "is not supported"),
        ("a**", "repeats a repetition"),
        ("*a", "repeats nothing"),
        ("a{2,1}", "ends before it begins"),
        ("(a", "not closed"),
        ("a)", "closes no group"),
        ("[a", "the pattern ends"),
        ("[b-a]", "ends before it begins"),
        ("[]", "matches nothing"),
        ("a^b", "anchor ^"),
        ("(?:a$)b", "anchor $"),
        ("^*", "anchor ^ is repeated"),
        ("a{", "no repetition"),
        (r"\x4", "hexadecimal"),
        (r"\ud800", "no character"),
        (r"\q", "escape"),
        ("a{99999999999}", "of more than"),
        ("\\", "the pattern ends"),
        ("(" * 70 + ")" * 70, "inside each other"),
        (r"[\d-z]", "end of a range"),
    ],
)
def test_what_no_mask_can_enforce_is_refused_by_name(pattern: str, words: str) -> None:
    for make in (lambda: translate_pattern(pattern, "pattern at $.a"), lambda: regex(pattern)):
        with pytest.raises(GenerationError) as caught:
            make()
        assert words in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "valid", "invalid"),
    [
        (
            "date-time",
            ["2024-02-29T23:59:59Z", "0001-01-01T00:00:00.123+05:30"],
            ["2024-02-30T00:00:00Z", "2024-02-29 00:00:00Z"],
        ),
        ("duration", ["P1Y2M3DT4H5M6S", "PT5M", "P3W", "P1D"], ["P", "PT", "P1S", "1D", "P1W2D"]),
        ("hostname", ["a.example.org", "localhost", "x-1.y"], ["-a.b", "a..b", "a_b", ""]),
        ("ipv6", ["::", "::1", "1:2:3:4:5:6:7:8", "fe80::1"], ["1:2", ":::", "1:2:3:4:5:6:7:8:9", "g::"]),
        ("uri", ["https://example.org/a?b=c#d", "ftp://x:80/"], ["//x", "example.org", "http:/x", "http://a b"]),
        ("json-pointer", ["", "/a/b~0c~1", "/"], ["a", "/~2", "/~"]),
    ],
)
def test_formats(name: str, valid: list[str], invalid: list[str]) -> None:
    translated = translate_pattern(FORMATS[name], name, whole=True)
    assert [t for t in valid if not re.fullmatch(translated, t)] == []
    assert [t for t in invalid if re.fullmatch(translated, t)] == []


def test_the_dates_are_those_of_the_calendar() -> None:
    import calendar

    date = re.compile(translate_pattern(FORMATS["date"], "date", whole=True))
    for year in (1, 4, 100, 400, 1600, 1700, 1900, 2000, 2023, 2024, 2100, 9996, 9999):
        for month in range(14):
            for day in range(33):
                real = 1 <= month <= 12 and 1 <= day <= calendar.monthrange(year, month)[1]
                assert (date.fullmatch(f"{year:04}-{month:02}-{day:02}") is not None) == real, (year, month, day)
