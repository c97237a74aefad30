# SPDX-License-Identifier: Apache-2.0
"""IFBench's kinds that ask for one certain answer (Pyatkin et al. 2025, "Generalizing Verifiable Instruction
Following")."""

from __future__ import annotations

import csv
import io
import re
import unicodedata
from datetime import date
from itertools import pairwise

from foundling.verify.instruction_kinds.kind import Kind
from foundling.verify.instruction_kinds.wording import PUNCTUATION, sentences, tokens

CAPITALS = [
    "Reykjavik", "Helsinki", "Oslo", "Tallinn", "Stockholm", "Riga", "Moscow", "Copenhagen", "Vilnius", "Minsk",
    "Dublin", "Berlin", "Amsterdam", "Warsaw", "London", "Brussels", "Prague", "Luxembourg", "Paris", "Vienna",
    "Bratislava", "Budapest", "Vaduz", "Chisinau", "Bern", "Ljubljana", "Zagreb",
]  # fmt: skip
"""of Europe, north of 45 degrees, from north to south, as the data set's authors list them (without Kyiv)"""
AFRICAN_COUNTRIES = 52
"""lines that a list of Africa's countries has at least"""
NAPOLEON = (1769, 1821)
"""the years of his life"""


def _ascii(text: str) -> str:
    return unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()


def multiples(text: str, prompt: str) -> bool:
    """The multiples of 7 between 10 and 50, and no other number."""
    return re.findall(r"\d+", text) == [str(n) for n in range(14, 51, 7)]


def mcq_count_length(text: str, prompt: str) -> bool:
    """Four blocks that begin with "Question 1" and so on, each with five options and a longer question than before."""
    if not text.startswith("Question"):
        return False
    blocks = [block.strip() for block in re.split(r"\n*Question \d+[.|):;]?\s*", text) if block.strip()]
    lengths = []
    for block in blocks:
        lines = [line.strip() for line in block.split("\n")]
        is_option = [bool(re.match(r"[A-Ea-e][.|)]\s*\w", line)) for line in lines]
        first = is_option.index(True) if True in is_option else len(lines)
        if sum(is_option) != 5:
            return False
        lengths.append(len(" ".join(lines[:first]).strip()))
    return len(blocks) == 4 and all(a < b for a, b in pairwise(lengths))


def reverse_newline(text: str, prompt: str) -> bool:
    """Lines in reverse alphabetical order from Zimbabwe on, at least 52 of them; accents do not count."""
    lines = [_ascii(line.strip(PUNCTUATION + " ")) for line in text.split("\n") if line.strip(PUNCTUATION + " ")]
    start = next((n for n, line in enumerate(lines) if "Zimbabwe" in line), len(lines))
    lines = lines[start:]
    return len(lines) >= AFRICAN_COUNTRIES and lines == sorted(lines, reverse=True)


def word_reverse(text: str, prompt: str) -> bool:
    """The words from behind say "bald eagle"."""
    return ("eagle", "bald") in set(pairwise(tokens(text)))


def character_reverse(text: str, prompt: str) -> bool:
    return "bald eagle"[::-1] in text.lower()


def sentence_alphabet(text: str, prompt: str) -> bool:
    """26 sentences that begin with the letters from a to z."""
    parts = sentences(text)
    return [part.lstrip(PUNCTUATION + "“”‘’ ")[:1].lower() for part in parts] == [chr(97 + n) for n in range(26)]


def european_capitals_sort(text: str, prompt: str) -> bool:
    return [part.strip() for part in _ascii(text).split(",") if part.strip()] == CAPITALS


def _rows(text: str, delimiter: str = ",") -> list[list[str]]:
    """The records of CSV; none where it is no CSV."""
    try:
        return list(csv.reader(io.StringIO(text.strip()), delimiter=delimiter, skipinitialspace=True, strict=True))
    except csv.Error:
        return []


def _is_table(rows: list[list[str]], header: list[str], n: int) -> bool:
    return len(rows) == n + 1 and rows[0] == header and all(len(row) == len(header) for row in rows)


def csv_city(text: str, prompt: str) -> bool:
    return _is_table(_rows(text), ["ID", "Country", "City", "Year", "Count"], 7)


def csv_special_character(text: str, prompt: str) -> bool:
    """14 rows, with a field in double quotes that has a special character."""
    quoted = re.search(r'(?:^|,)[ \t]*"[^"\n]*[^\w\s"][^"\n]*"[ \t]*(?=,|$)', text, re.MULTILINE)
    return _is_table(_rows(text), ["ProductID", "Category", "Brand", "Price", "Stock"], 14) and bool(quoted)


def csv_quotes(text: str, prompt: str) -> bool:
    """Three rows delimited by tabs, each field of theirs in double quotes."""
    fields = [field.strip() for line in text.strip().split("\n")[1:] for field in line.split("\t")]
    quoted = all(len(field) > 1 and field[0] == field[-1] == '"' for field in fields)
    return quoted and _is_table(_rows(text, "\t"), ["StudentID", "Subject", "Grade", "Semester", "Score"], 3)


def date_format_list(text: str, prompt: str) -> bool:
    """Dates of the calendar as YYYY-MM-DD within Napoleon's life, separated by commas."""
    for part in text.strip().split(","):
        if not re.fullmatch(r"\d{4}-\d{2}-\d{2}", part.strip(), re.ASCII):
            return False
        try:
            day = date.fromisoformat(part.strip())
        except ValueError:
            return False
        if not NAPOLEON[0] <= day.year <= NAPOLEON[1]:
            return False
    return True


KINDS = {
    "custom:multiples": Kind(multiples, {}),
    "custom:mcq_count_length": Kind(mcq_count_length, {}),
    "custom:reverse_newline": Kind(reverse_newline, {}),
    "custom:word_reverse": Kind(word_reverse, {}),
    "custom:character_reverse": Kind(character_reverse, {}),
    "custom:sentence_alphabet": Kind(sentence_alphabet, {}),
    "custom:european_capitals_sort": Kind(european_capitals_sort, {}),
    "custom:csv_city": Kind(csv_city, {}),
    "custom:csv_special_character": Kind(csv_special_character, {}),
    "custom:csv_quotes": Kind(csv_quotes, {}),
    "custom:date_format_list": Kind(date_format_list, {}),
}
