# SPDX-License-Identifier: Apache-2.0
"""Pairs of a source and a target: dates as CLDR writes them with their ISO form, and paragraphs of the LibreOffice help
in English with their German ones.

A fifth is held out by a hash: of the dates by the day, so that no held-out day occurs in training; of the help by the
words of the English paragraph, digits and signs aside, so that no paragraph has a twin on the other side.
"""

from __future__ import annotations

import datetime
import functools
import re
from collections.abc import Iterable, Sequence
from html.parser import HTMLParser
from pathlib import Path

import torch

from benchmarks.datasets import is_test
from benchmarks.fetch import fetch
from foundling.contracts.data import Batch
from foundling.decode.prompts import pad_prompts
from foundling.errors import DataError
from foundling.runtime.files import read_json
from foundling.runtime.rng import generator

START, END = 0, 1
"""ids of the decoder's first input and of what ends a text"""
LOCALES = ("da", "de", "en", "es", "fr", "it", "nl", "pl")
FORMATS = ("yMMMd", "yMMMEd")
"""of the short ones; besides them `full` and `long`"""
WEEKDAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
FIRST, LAST = datetime.date(1900, 1, 1), datetime.date(2099, 12, 31)

Pair = tuple[str, str]
Ids = tuple[list[int], list[int]]


# --------------------------------------------------------------------------------------------------------------- dates


class Calendar:
    """How one language writes a date: names and patterns of the Gregorian calendar."""

    def __init__(self, file: Path) -> None:
        (main,) = read_json(file)["main"].values()
        gregorian = main["dates"]["calendars"]["gregorian"]
        self.months, self.days = gregorian["months"]["format"], gregorian["days"]["format"]
        short = gregorian["dateTimeFormats"]["availableFormats"]
        self.patterns = [gregorian["dateFormats"][name] for name in ("full", "long")] + [short[n] for n in FORMATS]

    def write(self, day: datetime.date, pattern: str) -> str:
        """By a pattern of Unicode Technical Standard 35, part 4, section 8: 'quoted' text, letters for fields."""
        parts = re.findall(r"'([^']*)'|(([A-Za-z])\3*)|([^A-Za-z']+)", pattern)
        return "".join(self.field(day, field) if field else quoted + sign for quoted, field, _, sign in parts)

    def field(self, day: datetime.date, field: str) -> str:
        width = "wide" if len(field) == 4 else "abbreviated"
        if field == "y":
            return str(day.year)
        if field in ("d", "dd"):
            return f"{day.day:0{len(field)}}"
        if field in ("MMM", "MMMM"):
            return self.months[width][str(day.month)]
        if field in ("E", "EEE", "EEEE", "ccc", "cccc"):
            return self.days[width][WEEKDAYS[day.weekday()]]
        raise DataError(f"the field '{field}' of a date's pattern is not known; known are y, d, MMM, MMMM, E and EEEE")


def words_of(text: str) -> list[str]:
    """Words in lower case, single digits and signs."""
    return re.findall(r"\d|[^\W\d]+|[^\w\s]", text.lower())


class Dates:
    """Lines of dates. The source is `n` dates, each in a language and format of its own; the target is eight digits for
    each."""

    def __init__(self, folder: Path | None = None, locales: Sequence[str] = LOCALES) -> None:
        """`folder` holds LOCALE/ca-gregorian.json, by default as fetched."""
        folder = folder or fetch("cldr-dates-full") / "package" / "main"
        self.calendars = [Calendar(folder / locale / "ca-gregorian.json") for locale in locales]
        days = [FIRST + datetime.timedelta(n) for n in range((LAST - FIRST).days + 1)]
        self.parts = [[d for d in days if is_test(d.isoformat()) is held_out] for held_out in (False, True)]
        year = [datetime.date(2023, 1, 1) + datetime.timedelta(n) for n in range(365)]
        texts = (c.write(day, pattern) for c in self.calendars for pattern in c.patterns for day in year)
        words = {word for text in texts for word in words_of(text)}
        self.ids = {word: END + 1 + n for n, word in enumerate(sorted(words | {*"0123456789", ";"}))}
        self.names = {number: word for word, number in self.ids.items()}

    @property
    def vocab_size(self) -> int:
        return END + 1 + len(self.ids)

    def line(self, n: int, draw: torch.Generator, *, held_out: bool = False) -> Pair:
        days = self.parts[held_out]
        calendars = self.calendars
        texts, answers = [], []
        for _ in range(n):
            d, c, p = (int(torch.randint(high, (), generator=draw)) for high in (len(days), len(calendars), 4))
            texts.append(calendars[c].write(days[d], calendars[c].patterns[p]))
            answers.append(days[d].strftime("%Y%m%d"))
        return "; ".join(texts), "".join(answers)

    def encode(self, pair: Pair) -> Ids:
        return [self.ids[word] for word in words_of(pair[0])], [self.ids[digit] for digit in pair[1]]

    def decode(self, tokens: Sequence[int]) -> str:
        return "".join(self.names.get(token, "?") for token in tokens)


class DateBatches:
    """`rows` lines a batch, all of one number of dates, which changes from batch to batch."""

    def __init__(self, dates: Dates, most: int, rows: int, seed: int) -> None:
        self.dates, self.most, self.rows, self.seed = dates, most, rows, seed

    def __getitem__(self, n: int) -> Batch:
        draw = generator("dates", self.seed, n)
        count = 1 + int(torch.randint(self.most, (), generator=draw))
        return pair_batch([self.dates.encode(self.dates.line(count, draw)) for _ in range(self.rows)])


# ---------------------------------------------------------------------------------------------------------------- help


class Paragraphs(HTMLParser):
    """id -> text, of the paragraphs of a help page that have one."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: dict[str, str] = {}
        self.current: str | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "p":
            self.current = dict(attrs).get("id")

    def handle_endtag(self, tag: str) -> None:
        if tag == "p":
            self.current = None

    def handle_data(self, data: str) -> None:
        if self.current is not None:
            self.texts[self.current] = self.texts.get(self.current, "") + data


def paragraphs(file: Path) -> dict[str, str]:
    parser = Paragraphs()
    parser.feed(file.read_text(encoding="utf-8"))
    return {name: " ".join(text.split()) for name, text in parser.texts.items()}


def group_of(text: str) -> str:
    return " ".join(re.findall(r"[^\W\d_]+", text.lower()))


def is_prose(source: str, target: str, shortest: int, longest: int) -> bool:
    """A translated paragraph of a length that is asked for, which ends as a sentence does."""
    n = len(source.split())
    return shortest <= n <= longest and source[-1] in ".?!" and source != target and len(target.split()) <= 2 * longest


def aligned(english: Path, german: Path, shortest: int = 3, longest: int = 20) -> tuple[list[Pair], list[Pair]]:
    """Pairs for training and held-out pairs, in the order of file names; of paragraphs that share their English words
    the first one."""
    parts: tuple[list[Pair], list[Pair]] = ([], [])
    groups: set[str] = set()
    for file in sorted(english.rglob("*.html")):
        twin = german / file.relative_to(english)
        if not twin.is_file():
            continue
        sources, targets = paragraphs(file), paragraphs(twin)
        for name, source in sources.items():
            target = targets.get(name, "")
            group = group_of(source)
            if not group or not target or group in groups or not is_prose(source, target, shortest, longest):
                continue
            groups.add(group)
            parts[is_test(group)].append((source, target))
    if not parts[0] or not parts[1]:
        raise DataError(f"{english} and {german} hold no aligned sentences; both are folders of help pages in HTML")
    return sorted(parts[0]), sorted(parts[1])


class PairBatches:
    """Batches of pairs of alike length, `rows` each, every pair once an epoch, in an order that changes."""

    def __init__(self, pairs: Sequence[Ids], rows: int, seed: int) -> None:
        self.pairs, self.rows, self.seed = pairs, rows, seed
        self.per_epoch = len(pairs) // rows
        if not self.per_epoch:
            raise DataError(f"{len(pairs)} pairs are less than a batch of {rows}; give more pairs or a smaller batch")

    @functools.lru_cache(maxsize=2)  # noqa: B019 - lives as long as the training that reads it
    def epoch(self, number: int) -> list[list[int]]:
        draw = generator("epoch", self.seed, number)
        order = torch.randperm(len(self.pairs), generator=draw).tolist()[: self.per_epoch * self.rows]
        order.sort(key=lambda i: len(self.pairs[i][0]) + len(self.pairs[i][1]))
        batches = [order[at : at + self.rows] for at in range(0, len(order), self.rows)]
        return [batches[i] for i in torch.randperm(len(batches), generator=draw).tolist()]

    def __getitem__(self, n: int) -> Batch:
        number, place = divmod(n, self.per_epoch)
        return pair_batch([self.pairs[i] for i in self.epoch(number)[place]])


def pair_batch(pairs: Iterable[Ids]) -> Batch:
    """Sources, and targets shifted by one token: START is read first, END is predicted last."""
    sources, targets = zip(*pairs, strict=True)
    source, source_documents = pad_prompts(sources, "cpu")
    tokens, documents = pad_prompts([[START, *target] for target in targets], "cpu")
    ends, _ = pad_prompts([[*target, END] for target in targets], "cpu")
    return {
        "source": source, "source_documents": source_documents, "tokens": tokens, "documents": documents,
        "targets": ends, "loss_mask": documents >= 0, "sample_ids": torch.arange(len(sources)),
    }  # fmt: skip
