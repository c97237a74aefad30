# SPDX-License-Identifier: Apache-2.0
"""Questions and answers that a corpus holds itself, by patterns of its sentences, headings, definitions and rows; no
model is asked.

Two groups. "in a text": the question quotes the passage that answers it, which a small model can learn to copy from.
"from memory": only what was read in training answers it. Patterns are few and strict: a corpus yields fewer questions
rather than wrong ones, and a question that has two answers is dropped.
"""

from __future__ import annotations

import csv
import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from foundling.data.datasets import BUILTIN
from foundling.data.files import Files
from foundling.data.rows import SUFFIXES, TABLES, read_rows
from foundling.data.sources import Document
from foundling.data.streams import Skip, suffix
from foundling.limits import QUESTION_TEXT_BYTES

TEXT, MEMORY = "in a text", "from memory"
"""groups of questions"""
SENTENCE_CHARS, WORDS = (40, 200), 7
"""of a sentence that is asked about, and its least words"""
SENTENCES, CHARS_A_SENTENCE = 40, 1000
"""of one document at most so many, or one in so many characters, so that a few long documents do not count for all"""
ANSWER_CHARS = 80
NAMES = ("name", "title", "headword", "word", "term", "id")
"""columns that name a row, the first that there is"""


class Item(NamedTuple):
    """One question. Items of one `key` are about one thing, and are held out or learnt from together."""

    key: str
    kind: str
    group: str
    question: str
    answer: str


def digest(text: str) -> int:
    """By which items are chosen: the same on any machine, and of no order."""
    return int.from_bytes(hashlib.sha256(text.encode(errors="replace")).digest()[:8], "big")


def questions_of(documents: Iterable[Document]) -> Iterator[Item]:
    """The questions of the first QUESTION_TEXT_BYTES of the documents, in their order."""
    n_bytes = 0
    for document in documents:
        n_bytes += len(document.text)
        if n_bytes > QUESTION_TEXT_BYTES.high:
            return
        path = Path(re.split(r"[#@]\d", document.name)[0])
        if path.suffix == ".py":
            yield from of_python(document.text, path.with_suffix("").as_posix().replace("/", "."))
        elif path.suffix in TABLES:
            yield from of_rows(_table(document.text, "\t" if path.suffix == ".tsv" else ","))
        else:
            yield from of_headings(document.text)
            yield from of_prose(document.text)


# --- Python source ---------------------------------------------------------------------------------------------------

_DEF = re.compile(
    r"^( *)def (\w+)\(([^()]{0,160})\)[^:\n]{0,60}:[ \t]*\n(?:[ \t]+[rRuU]?\"\"\"[ \t]*([A-Z][^\n\"]{8,110}))?", re.M
)
_CLASS = re.compile(r"^class (\w+)\(([\w.]{1,60})\):", re.M)


def of_python(text: str, module: str) -> Iterator[Item]:
    """By patterns, not by a parser: the source may be anybody's, and is only read."""
    for indent, name, inside, doc in _DEF.findall(text):
        parameters = " ".join(inside.split()).rstrip(",")
        signature = f"def {name}({parameters}):"
        if parameters and len(parameters) <= ANSWER_CHARS and not name.startswith("__"):
            ask = f"In the code “{signature}”, what are the parameters?"
            yield Item(name, "parameters in code", TEXT, ask, parameters)
            yield Item(name, "name in code", TEXT, f"In the code “{signature}”, which function is defined?", name)
            if not indent:
                ask = f"What are the parameters of the function {name} of {module}?"
                yield Item(name, "parameters", MEMORY, ask, parameters)
        if indent or name.startswith("_"):
            continue
        yield Item(name, "module", MEMORY, f"Which module defines the function {name}?", module)
        if doc:
            yield Item(name, "purpose", MEMORY, f"What does the function {name} of {module} do?", doc.strip())
    for name, base in _CLASS.findall(text):
        yield Item(name, "base in code", TEXT, f"In the code “class {name}({base}):”, what is the base class?", base)
        yield Item(name, "base class", MEMORY, f"What is the base class of {name} of {module}?", base)


# --- headings and prose ----------------------------------------------------------------------------------------------

_HEADING = re.compile(r"^#{1,4} +(\S[^\n#]{2,70}?)[ #]*\n\s*\n?([^\n|<#>`*\-][^\n]{40,}(?:\n[^\n]+)*)", re.M)
_FENCE = re.compile(r"^(```|~~~).*?^\1", re.M | re.S)
_NO_PROSE = re.compile(r"^(\s{4,}|[#|<>`*+=\-]|\d+[.)] )")
_END = re.compile(r"(?<=[a-z0-9)\"”][.!?])\s+(?=[A-Z\"“])")
_ARTICLE = r"(?:The|An?)"
_NAME = rf"(?:{_ARTICLE} )?[A-Z][\w’'-]*(?: (?:of |the )?[A-Z][\w’'-]*){{0,3}}|{_ARTICLE} [a-z-]+(?: [a-z-]+)?"
_IS = re.compile(rf"^({_NAME}) (is|was|are|were) ((?:an?|the|one of) [^.,;:?!]{{4,70}})")
_BORN = re.compile(
    rf"^({_NAME}),? (?:was|were) (born|founded|built|held|published) ((?:in|on|at|by|near) [\w ]{{3,40}})"
)
_DID = re.compile(rf"^({_NAME}) ((?!indeed|need)[a-z]{{3,}}ed) ((?:an?|the|his|her|its|their) [^.,;:?!]{{5,60}})")
_NO_NAMES = {
    "It", "This", "That", "He", "She", "They", "There", "These", "Those", "We", "You", "I", "What", "Who", "And",
    "But", "Or", "Nor", "So", "Yet", "If", "When", "While", "Where", "Here", "Now", "Then", "Thus", "As", "At", "By",
    "For", "From", "In", "On", "Of", "To", "With", "Each", "Both", "Some", "Any", "All", "None", "Not", "No", "Such",
    "One", "Opposite", "His", "Her", "Its", "Their", "Our", "My", "Your", "Only", "Even", "Also", "Still", "Once",
    "Perhaps",
}  # fmt: skip
"""words that begin a sentence and name nothing"""


def of_headings(text: str) -> Iterator[Item]:
    """What a section of Markdown is about: its first sentence, which is held out, or learnt from, in all questions."""
    for title, body in _HEADING.findall(text):
        first = next(iter(sentences(body)), "")
        if first:
            yield Item(first, "heading", TEXT, f"In the text “{title}. {first}”, what is the heading?", title)
            yield Item(first, "section", MEMORY, f"What does the section “{title}” begin with?", first)


def sentences(text: str) -> Iterator[str]:
    """Those of a length that can be asked about, of plain paragraphs: no code, tables or lists."""
    least, most = SENTENCE_CHARS
    for paragraph in re.split(r"\n\s*\n", _FENCE.sub("", text)):
        if _NO_PROSE.match(paragraph):
            continue
        for sentence in _END.split(" ".join(paragraph.split())):
            letters = sum(c.isalpha() or c == " " for c in sentence)
            if least <= len(sentence) <= most and len(sentence.split()) >= WORDS and letters > 0.8 * len(sentence):
                yield sentence


def of_prose(text: str) -> Iterator[Item]:
    for sentence in islice(sentences(text), max(SENTENCES, len(text) // CHARS_A_SENTENCE)):
        yield from _of_facts(sentence)
        words = sentence.split()
        at = 2 + digest(sentence) % (len(words) - 4)
        before, word = " ".join(words[at - 2 : at]), words[at].strip('.,;:!?"”“()')
        if word and sentence.count(before) == 1:
            ask = f"In the text “{sentence}”, which word comes after “{before}”?"
            yield Item(sentence, "next word", TEXT, ask, word)
        if len(word) > 3:
            gap = " ".join([*words[:at], "___", *words[at + 1 :]])
            yield Item(sentence, "gap", MEMORY, f"Which word is missing in “{gap}”?", word)


def _of_facts(sentence: str) -> Iterator[Item]:
    """Who, what, when and where, of a sentence that begins with a name."""
    for pattern in (_IS, _BORN, _DID):
        match = pattern.match(sentence)
        if match is None or match[1].split()[0] in _NO_NAMES or len(match[3]) > ANSWER_CHARS:
            continue
        name, verb, rest = match.groups()
        thing = name[0].lower() + name[1:] if re.match(_ARTICLE + " ", name) else name
        kind, ask, answer = {
            _IS: ("what is", f"what {verb} {thing}?", rest),
            _BORN: ("when or where", f"when or where was {thing} {verb}?", rest),
            _DID: ("who", f"who {verb} {rest}?", name),
        }[pattern]
        yield Item(sentence, f"{kind} in a text", TEXT, f"In the text “{sentence}”, {ask}", answer)
        yield Item(sentence, kind, MEMORY, ask[0].upper() + ask[1:], answer)


# --- rows ------------------------------------------------------------------------------------------------------------


_TEXT = "\0text"
"""a name that no column has"""


def rows_of(data: str, field: str, exclude: Path) -> Iterator[dict[str, Any]]:
    """The rows of files whose other columns a corpus does not have: JSON lines and Parquet. None of a data set."""
    if data.startswith(BUILTIN):
        return
    files = Files(data, "", exclude)
    for path in files.paths():
        if not isinstance(path, Skip) and suffix(path) in SUFFIXES and suffix(path) not in TABLES:
            for row in read_rows(path):
                if not isinstance(row, Skip) and isinstance(row.fields.get(field), str):
                    others = {column: value for column, value in row.fields.items() if column != field}
                    yield others | {_TEXT: row.fields[field]}


def _table(text: str, delimiter: str) -> Iterator[Mapping[Any, Any]]:
    """The rows up to the first that is none."""
    with suppress(csv.Error):
        yield from csv.DictReader(text.splitlines(), delimiter=delimiter)


def of_rows(rows: Iterable[Mapping[Any, Any]]) -> Iterator[Item]:
    """What the FIELD of NAME is, where the corpus says it: `rows` have their text under _TEXT, or are read as they
    are."""
    for row in rows:
        name_column = next((column for column in NAMES if isinstance(row.get(column), str)), None)
        name = str(row[name_column]).strip() if name_column else ""
        if not 2 <= len(name) <= ANSWER_CHARS:
            continue
        text = row.get(_TEXT)
        for column, value in row.items():
            answer = str(value).strip() if isinstance(value, str | int | float) else ""
            if (
                not isinstance(column, str)
                or column in ("", _TEXT, name_column)
                or not 1 <= len(answer) <= ANSWER_CHARS
            ):
                continue
            if text is None or answer in str(text):
                yield Item(name, f"field {column}", MEMORY, f"What is the {column} of {name}?", answer)
