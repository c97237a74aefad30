# SPDX-License-Identifier: Apache-2.0
"""What the columns of a file hold: detected from their names and the values of the first rows, and put into a
sentence."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from foundling.data import convert
from foundling.data.convert import Convert, Fields
from foundling.data.kinds import PREFERENCE, PROMPT, Columns, Kind
from foundling.data.streams import Skip, shown_names
from foundling.errors import ConfigError

SAMPLE_ROWS = 500
"""rows from which the layout is detected"""
CLASS_ROWS = 3
"""Whole numbers that recur this often on average are classes, else they are measured values."""
FEW_VALUES = 10
"""At most so many fractional numbers are classes (half stars)."""
IDS = ("id", "idx", "index", "uid", "guid", "uuid", "unnamed: 0")
TEXTS = ("text", "sentence", "content", "body", "review", "message", "sms", "document", "comment", "description")
LABELS = (
    "label", "labels", "category", "class", "section", "sentiment", "score", "value", "target", "rating", "stars",
    "intent", "topic",
)  # fmt: skip
ANSWERS = ("completion", "response", "answer", "output", "answers", "solution")
RIGHTS = ("answer", "solution", "target")
"""columns that say by themselves what is right, to a checker; a completion may be any text"""
SYSTEM = {"system": ("system", "system_prompt")}
FLAGS = {
    "messages": "field", "prompt": "field", "asked": "field", "words": "field", "text": "field",
    "translation": "field", "pair": "pair", "label": "label", "tags": "label", "answer": "target", "right": "target",
    "chosen": "target", "rejected": "label", "ranked": "target",
}  # fmt: skip
"""role of a column -> the field of Columns that names it"""


@dataclass(frozen=True)
class Shape:
    """Rows with columns of these names, by role. Of several names that a file has the first of the list counts, else
    they are ambiguous. `kinds`: what it can be read as, the most likely first."""

    what: str
    usable: str
    kinds: dict[Kind, Convert]
    roles: dict[str, tuple[str, ...]]
    optional: dict[str, tuple[str, ...]] = field(default_factory=dict)


PROMPTED: dict[Kind, Convert] = {"chat": convert.chat_of_one_turn, "seq2seq": convert.source_and_target}
SCORED: dict[Kind, Convert] = {"classify": convert.classify, "regress": convert.regress}
WORDS = {PREFERENCE: "dpo, ipo or reward", PROMPT: "ppo or grpo"}
"""kind -> what --as calls it, where that is another word"""
PREFERENCE_CONVERTERS: dict[Kind, Convert] = {PREFERENCE: convert.preference}
PROMPTS = ("prompt", "question", "instruction", "query", "problem", "input", "messages")
LABELLED = Shape("texts with a label", "have a text and a label", SCORED, {"text": TEXTS, "label": LABELS})
SHAPES = (
    Shape(
        "prompts with two completions", "have both, one chosen", PREFERENCE_CONVERTERS,
        {"chosen": ("chosen", "preferred"), "rejected": ("rejected", "dispreferred")},
        {"prompt": PROMPTS, **SYSTEM},
    ),
    Shape(
        "prompts with ranked completions", "have two or more", PREFERENCE_CONVERTERS,
        {"ranked": ("ranked",)}, {"prompt": PROMPTS, **SYSTEM},
    ),
    Shape(
        "chats", "have an assistant answer", {"chat": convert.messages},
        {"messages": ("messages", "conversations", "conversation", "dialogue", "dialog", "chat")},
        {"tools": ("tools", "functions"), **SYSTEM},
    ),
    Shape(
        "instructions with answers", "have both", PROMPTED,
        {"prompt": ("instruction",), "answer": ("output", "response", "answer", "completion")},
        {"input": ("input", "context"), **SYSTEM},
    ),
    Shape(
        "prompts with answers", "have both", PROMPTED,
        {"prompt": ("prompt", "question", "query", "problem"), "answer": ANSWERS}, SYSTEM,
    ),
    Shape(
        "sources with targets", "have both",
        {"seq2seq": convert.source_and_target, "chat": convert.chat_of_one_turn},
        {
            "prompt": ("source", "src", "input", "inputs", "article", "document"),
            "answer": ("target", "tgt", "output", "targets", "summary", "highlights"),
        },
    ),
    Shape(
        "translations", "have two languages", {"seq2seq": convert.translation}, {"translation": ("translation",)}
    ),
    Shape(
        "words with tags", "have a tag for each word", {"tag": convert.tag},
        {"words": ("tokens", "words", "forms"), "tags": ("tags", "ner_tags", "pos_tags", "labels", "upos")},
    ),
    Shape(
        "pairs of texts with a label", "have both texts and a label", SCORED,
        {
            "text": ("sentence1", "premise", "text_a", "text1", "question1"),
            "pair": ("sentence2", "hypothesis", "text_b", "text2", "question2"),
            "label": LABELS,
        },
    ),
    LABELLED,
    Shape("texts", "have a text", {"text": convert.text}, {"text": TEXTS}),
    Shape(
        "prompts", "have one", {PROMPT: convert.prompt},
        {"asked": (*PROMPTS, "conversations", "conversation")}, {"right": RIGHTS, **SYSTEM},
    ),
)  # fmt: skip


class Match(NamedTuple):
    shape: Shape
    roles: dict[str, str]
    """role -> column"""
    unclear: str = ""
    """the message, where a role has several columns"""


@dataclass(frozen=True)
class Layout:
    kind: Kind
    columns: dict[str, str]
    """role -> column"""
    sentence: str
    """what is read as what, for the progress line"""
    _convert: Convert

    def convert(self, row: Mapping[str, Any]) -> Fields | Skip:
        """The fields of an example, or why the row is none."""
        return self._convert(row, self.columns)


def detect(rows: Sequence[Mapping[str, Any]], kind: Kind | None = None, columns: Columns | None = None) -> Layout:
    """How to read rows like these. ConfigError, naming the columns that there are and the flag that decides, where a
    column of `columns` is missing, none or several of SHAPES match, or a role has several columns."""
    columns = columns or Columns()
    values: dict[str, list[Any]] = {}
    for row in rows:
        for name, value in row.items():
            if value is not None:
                values.setdefault(name, []).append(value)
    _check_columns(columns, list(values))
    matches = _matches(kind, values, columns, len(rows))
    if not matches:
        raise ConfigError(_unknown(kind, list(values)))
    if len(matches) > 1:
        raise ConfigError(_ambiguous(kind, matches))
    shape, roles, unclear = matches[0]
    if unclear:
        raise ConfigError(unclear)
    chosen = kind or _likely(shape, roles, values)
    function = shape.kinds[chosen]
    usable = sum(not isinstance(function(row, roles), Skip) for row in rows)
    named = " and ".join(repr(name) for name in roles.values())
    what = shape.what.replace("a label", "a value") if chosen == "regress" else shape.what
    usable_as = shape.usable.replace("a label", "a number") if chosen == "regress" else shape.usable
    sentence = f"reading {named} as {what} ({chosen}): {usable:,} of the first {len(rows):,} rows {usable_as}"
    return Layout(chosen, roles, sentence, function)


def _check_columns(columns: Columns, names: list[str]) -> None:
    for flag in ("field", "pair", "label", "target"):
        name = getattr(columns, flag)
        if name is not None and name not in names:
            near = difflib.get_close_matches(name, names, 1, 0.5)
            nearest = f", the nearest is {near[0]!r}" if near else ""
            raise ConfigError(f"--{flag} {name!r}: there is no such column{nearest}; there are {shown_names(names)}")


def _matches(kind: Kind | None, values: Mapping[str, list[Any]], columns: Columns, n: int) -> list[Match]:
    """The ways to read the columns, without those that read fewer of the same columns, or the plain text of a row that
    can be read as more."""
    shapes = [shape for shape in SHAPES if kind in shape.kinds or (kind is None and PROMPT not in shape.kinds)]
    matches = [match for shape in shapes if (match := _match(shape, values, columns)) is not None]
    uses = [set(match.roles.values()) for match in matches]
    matches = [match for match, use in zip(matches, uses, strict=True) if not any(use < other for other in uses)]
    if kind is None and len(matches) > 1:
        matches = [match for match in matches if "text" not in match.shape.kinds]
    matches = _distinct(kind, matches)
    if not matches and kind in (None, "classify", "regress") and (guess := _guess(values, columns, n)):
        return [Match(LABELLED, guess)]
    return matches


def _distinct(kind: Kind | None, matches: Sequence[Match]) -> list[Match]:
    """Without those that make the same of the same columns as one before: flags name columns for several shapes."""
    ways: dict[Any, Match] = {}
    for match in matches:
        conversion = tuple(match.shape.kinds.items()) if kind is None else match.shape.kinds[kind]
        ways.setdefault((conversion, tuple(match.roles.items())), match)
    return list(ways.values())


def _match(shape: Shape, values: Mapping[str, list[Any]], columns: Columns) -> Match | None:
    """None where the file has no column for a role, or a flag names one that the shape has not."""
    flags = {FLAGS[role] for role in (*shape.roles, *shape.optional) if role in FLAGS}
    if any(getattr(columns, flag) is not None and flag not in flags for flag in ("field", "pair", "label", "target")):
        return None
    roles, unclear = dict[str, str](), ""
    for role, known in shape.roles.items():
        named = getattr(columns, FLAGS[role])
        names = [named] if named is not None else [name for name in known if name in values and name not in roles]
        names = [name for name in names if _fits(role, values[name])]
        if not names:
            return None
        if len(names) > 1 and names[0] != known[0]:
            unclear = f"{shown_names(names)} may each be the {role}: choose one with --{FLAGS[role]}"
        roles[role] = names[0]
    for role, known in shape.optional.items():
        named = getattr(columns, FLAGS[role]) if role in FLAGS else None
        known = known if named is None else (named,)
        if role == "right" and named is None:  # a row's own answer is never replaced
            known = known[:1] if known[0] in values else known
            known = tuple(name for name in known if name in values and _fits(role, values[name]))
        if (name := next((n for n in known if n in values and n not in roles.values()), None)) is not None:
            roles[role] = name
    return Match(shape, roles, unclear) if len(set(roles.values())) == len(roles) else None


def _fits(role: str, values: Sequence[Any]) -> bool:
    """Whether most values are of the type that the role needs."""
    tests: dict[str, Callable[[Any], bool]] = {
        "messages": lambda v: isinstance(v, list) and bool(v) and isinstance(v[0], Mapping),
        "translation": lambda v: isinstance(v, Mapping),
        "words": lambda v: isinstance(v, list),
        "tags": lambda v: isinstance(v, list),
        "label": lambda v: not isinstance(v, list | Mapping),
        "asked": lambda v: isinstance(v, str | list),
        "chosen": lambda v: isinstance(v, str | list | Mapping),
        "rejected": lambda v: isinstance(v, str | list | Mapping),
        "ranked": lambda v: isinstance(v, list),
        "answer": lambda v: not isinstance(v, Mapping),
        "right": lambda v: all(_is_right(one) for one in (v if isinstance(v, list) else [v])),
    }
    test = tests.get(role, lambda v: isinstance(v, str | bytes))
    return 2 * sum(map(test, values)) > len(values)


def _is_right(value: Any) -> bool:
    """Whether a checker can compare an answer with it."""
    return isinstance(value, str | int | float) and not isinstance(value, bool)


def _guess(values: Mapping[str, list[Any]], columns: Columns, n: int) -> dict[str, str] | None:
    """The text and the label among columns of other names, where only one choice is left: two columns, of which the
    label is the one with the shorter values that recur."""
    names = [name for name in values if name.lower() not in IDS and _fits("label", values[name])]
    names = [name for name in names if name not in (columns.field, columns.label)]
    text, label = columns.field, columns.label
    if columns.pair or columns.target:
        return None
    if text is None and label is None and len(names) == 2:
        length = {name: sum(len(str(value)) for value in values[name]) / len(values[name]) for name in names}
        text, label = sorted(names, key=lambda name: -length[name])
        if 2 * len(set(map(str, values[label]))) > n and not _measured(values[label]):
            return None
    texts = [name for name in names if _fits("text", values[name])]
    if text is None and label is not None and len(texts) == 1:
        text = texts[0]
    if text is not None and label is None and columns.field and len(names) == 1:
        label = names[0]
    return {"text": text, "label": label} if text and label and _fits("text", values[text]) else None


def _likely(shape: Shape, roles: Mapping[str, str], values: Mapping[str, list[Any]]) -> Kind:
    if "regress" in shape.kinds and _measured(values[roles["label"]]):
        return "regress"
    return next(iter(shape.kinds))


def _measured(values: Sequence[Any]) -> bool:
    """Whether labels are numbers with many distinct values, not classes."""
    numbers = [convert.as_number(value) for value in values]
    if any(number is None for number in numbers):
        return False
    distinct = len(set(numbers))
    if all(number is not None and number.is_integer() for number in numbers):
        return distinct * CLASS_ROWS > len(numbers) and distinct > FEW_VALUES
    return distinct > FEW_VALUES


def _unknown(kind: Kind | None, names: list[str]) -> str:
    if kind is None:
        return (
            f"the columns {shown_names(names)} are of no known layout: choose with --as chat, text, classify, tag, "
            "regress, seq2seq, reward, dpo or ipo, and name them with --field, --pair, --label or --target"
        )
    roles = [role for shape in SHAPES if kind in shape.kinds for role in (*shape.optional, *shape.roles)]
    shown = ", ".join(f"--{flag}" for flag in dict.fromkeys(FLAGS[role] for role in roles if role in FLAGS))
    if kind == PROMPT:
        needs = "hold no prompts"
    elif kind == PREFERENCE:
        needs = "are no comparisons (prompt with chosen and rejected, or with ranked)"
    else:
        needs = f"do not hold what --as {kind} needs"
    return f"the columns {shown_names(names)} {needs}: name them with {shown}"


def _ambiguous(kind: Kind | None, matches: Sequence[Match]) -> str:
    kinds = [kind or next(iter(shape.kinds)) for shape, *_ in matches]
    ways = [
        f"{WORDS.get(name, name)} ({', '.join(map(repr, roles.values()))})"
        for name, (_, roles, _) in zip(kinds, matches, strict=True)
    ]
    flags = "--as" if kind is None else "--field, --label or --target"
    return f"the columns can be read as {' or '.join(ways)}: choose with {flags}"
