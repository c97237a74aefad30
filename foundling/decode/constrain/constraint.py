# SPDX-License-Identifier: Apache-2.0
"""What an answer must follow: a JSON Schema, a regular expression, a grammar, one of several texts, calls of tools.

A constraint knows no model; `Constrainer` compiles it for one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from foundling.decode.constrain.patterns import translate_pattern
from foundling.decode.constrain.schema_keywords import normalize_schema
from foundling.errors import GenerationError
from foundling.limits import CHOICES, PATTERN_CHARS, shown

Kind = Literal["json_schema", "json_object", "regex", "grammar", "choice", "tools"]
NAMES = {
    "json_schema": "the JSON Schema", "json_object": "a JSON object", "regex": "the regular expression",
    "grammar": "the grammar", "choice": "the choice", "tools": "the tools' constraint",
}  # fmt: skip
JSON_FORM = {
    "whitespace_flexible": False, "item_separator": ", ", "key_separator": ": ", "json_allowed_escapes": '"\\bfnrt',
}  # fmt: skip
"""JSON is written as Python's json.dumps writes it: one form of each value, so that what a schema fixes is forced, and
no answer fills itself with white space. Without \\u no key can be written twice in two forms."""
MARK = "\N{OBJECT REPLACEMENT CHARACTER}%d\N{OBJECT REPLACEMENT CHARACTER}"
"""where a frame has a mark, by its number"""
GAP = r"\n{0,2}"
FREE_TEXT = "until_mark\n"
"""at the end of a frame: the rules `until_mark`, free text up to the first mark and the mark, and TEXT, free text"""


@dataclass(frozen=True)
class Constraint:
    """`grammar`: Lark in llguidance's dialect. `source`: what it was made from, as JSON or as it is. `frame`: the rules
    above those of `grammar`, of calls of tools, with placeholders for `marks`: texts that are special tokens in some
    tokenizers and plain text in others. Nothing of a user is in a frame, and `grammar` has no placeholders."""

    grammar: str
    kind: Kind
    source: str
    frame: str = ""
    marks: tuple[str, ...] = ()
    style: str | None = None
    """of calls of tools"""
    reasoning: tuple[str, str] | None = None
    """what opens and closes the free text before what is constrained"""

    @property
    def name(self) -> str:
        return NAMES[self.kind]

    def resolve(self, write_mark: Callable[[str], str | None]) -> str:
        """The grammar, with each mark as `write_mark` writes a special token, or as text where that is None."""
        inner = _write_frame(self.frame, self.marks, write_mark) + self.grammar
        if self.reasoning is None:
            return inner
        opening, closing = self.reasoning
        first = f"[{special}] " if (special := write_mark(opening)) else ""  # as text it is a part of the free text
        frame = f"start: {first}until_mark GAP @answer\nGAP: /{GAP}/\n{FREE_TEXT}"
        outer = _write_frame(frame, (closing,), write_mark)
        return json.dumps({"grammars": [
            {"name": "reasoning", "lark_grammar": outer}, {"name": "answer", "lark_grammar": inner},
        ]}, ensure_ascii=False)  # fmt: skip


def _write_frame(frame: str, marks: Sequence[str], write_mark: Callable[[str], str | None]) -> str:
    """The frame with its marks and, where it ends with FREE_TEXT, the rules of that."""
    tokens = [write_mark(mark) for mark in marks]
    written = [token or quote(mark) for token, mark in zip(tokens, marks, strict=True)]
    frame = re.sub(MARK.replace("%d", "([0-9]+)"), lambda match: written[int(match[1])], frame)
    if not frame.endswith(FREE_TEXT):
        return frame
    rule, text = "until_mark[lazy]", r"/(?s:.)*/"
    if tokens[0]:  # the same characters as plain text would be taken for the token when the answer is read
        rule, text = "until_mark", rf"{text} & ~/(?s:.)*{_escape(marks[0])}(?s:.)*/"
    return f"{frame.removesuffix(FREE_TEXT)}{rule}: TEXT {written[0]}\nTEXT: {text}\n"


def _escape(text: str) -> str:
    """As an expression between slashes."""
    return "".join(c if c.isalnum() else f"\\u{{{ord(c):x}}}" for c in text)


def after_reasoning(constraint: Constraint, opening: str = "<think>", closing: str = "</think>") -> Constraint:
    """Free text up to `closing`, at most two line breaks, then what is constrained. The answer may begin with `opening`
    or not: many chat templates put it before the answer. `opening` "": they have put it there."""
    if not closing:
        raise GenerationError("the mark that closes the reasoning is empty; give its text")
    return replace(constraint, reasoning=(opening, closing))


def json_schema(schema: dict[str, Any] | bool) -> Constraint:
    """JSON that a schema accepts (drafts 6, 7, 2019-09 and 2020-12). GenerationError, naming the keyword and its place,
    for one that cannot be enforced: none is ever ignored (docs/structured.md)."""
    normal = normalize_schema(schema)
    return Constraint(f"start: {json_rule(normal)}\n", "json_schema", json.dumps(schema, ensure_ascii=False))


def json_rule(normal: dict[str, Any]) -> str:
    """A normalized schema inside a grammar."""
    return "%json " + json.dumps({**normal, "x-guidance": JSON_FORM}, ensure_ascii=False)


def json_object() -> Constraint:
    """Any JSON object."""
    return replace(json_schema({"type": "object"}), kind="json_object")


def regex(pattern: str) -> Constraint:
    """A text that the whole pattern matches, in the syntax of JavaScript and JSON Schema, without look-around,
    back-references and word boundaries. GenerationError for an invalid pattern."""
    PATTERN_CHARS.check(len(pattern) if isinstance(pattern, str) else None, "the pattern's length", GenerationError)
    translated = translate_pattern(pattern, "the regular expression", whole=True)
    return Constraint(f"start: /{translated}/\n", "regex", pattern)


def grammar(lark: str) -> Constraint:
    """A text derived from the rule `start` of a grammar in llguidance's dialect of Lark."""
    if not isinstance(lark, str) or not lark.strip():
        raise GenerationError(f"the grammar is {shown(lark)}; expected a text with a rule `start:`")
    PATTERN_CHARS.check(len(lark), "the grammar's length", GenerationError)
    _check_text(lark)
    return Constraint(lark, "grammar", lark)


def choice(texts: Sequence[str]) -> Constraint:
    """One of the texts."""
    if isinstance(texts, str) or not isinstance(texts, Sequence) or not all(isinstance(t, str) and t for t in texts):
        raise GenerationError(f"the choice is {shown(texts)}; expected a list of texts that are not empty")
    CHOICES.check(len(texts), "the number of texts to choose from", GenerationError)
    PATTERN_CHARS.check(sum(map(len, texts)), "the length of the texts to choose from", GenerationError)
    unique = list(dict.fromkeys(texts))
    return Constraint(f"start: {' | '.join(map(quote, unique))}\n", "choice", json.dumps(unique, ensure_ascii=False))


def quote(text: str) -> str:
    """A text as a literal of a grammar."""
    _check_text(text)
    return json.dumps(text, ensure_ascii=False)


def _check_text(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise GenerationError(f"the text {shown(text)} is not valid Unicode: it has an unpaired surrogate") from None
