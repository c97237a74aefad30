# SPDX-License-Identifier: Apache-2.0
"""Does an answer have a form: JSON, a JSON Schema, a regular expression, a grammar?

Patterns and grammars run in llguidance, whose engine takes time linear in the text (it has no backtracking, hence no
look-around and no back-references). Schemas are checked by jsonschema, which reads no `$ref` that points out of the
schema. Both run in a process of bounded memory and time (foundling/runtime/limited.py): a schema's `pattern` is a
regular expression of Python, which can take forever.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from foundling.decode.constrain.constraint import Constraint
from foundling.decode.constrain.patterns import translate_pattern
from foundling.decode.constrain.schema_keywords import normalize_schema
from foundling.errors import ConfigError, DataError
from foundling.limits import ANSWER_CHARS, JSON_DEPTH, PATTERN_CHARS, shown
from foundling.runtime.limited import LimitedProcess, LimitError
from foundling.text.fences import fences
from foundling.text.tool_calls import STYLES, parse_tool_calls

if TYPE_CHECKING:
    from llguidance import LLTokenizer

MEMORY = 1 << 29
"""bytes that a check may take"""
SECONDS = 2
"""of processor time for one check; most take a millisecond"""


@dataclass(frozen=True)
class Verdict:
    """`reason` says why an answer does not follow; "" where it does. `value`: what `json_value` read."""

    follows: bool
    reason: str = ""
    value: Any = None

    def __bool__(self) -> bool:
        return self.follows


_process = LimitedProcess("foundling.verify.structured:check_here", memory=MEMORY, seconds=SECONDS, answer=1 << 16)


def json_value(text: str) -> Verdict:
    """The JSON value that an answer is: bare, or in one Markdown fence with nothing around it. NaN, infinities, keys
    that occur twice, halves of surrogate pairs and more than 64 levels are refused.

    >>> json_value('```json\\n{"a": 1}\\n```').value, json_value('{"a": 1, "a": 2}').reason
    ({'a': 1}, "the key 'a' occurs twice")
    """
    blocks = fences(text) if len(text) <= ANSWER_CHARS.high else []
    return _read_json(blocks[0].body if len(blocks) == 1 and blocks[0].whole else text, unique=True)


def _read_json(text: str, *, unique: bool) -> Verdict:
    if len(text) > ANSWER_CHARS.high:
        return Verdict(False, f"the answer has {len(text):,} characters; allowed are {ANSWER_CHARS.high:,}")
    body = text.strip()
    if not body:
        return Verdict(False, "the answer is empty")
    if _depth(body) > JSON_DEPTH.high:
        return Verdict(False, f"over {JSON_DEPTH.high} arrays and objects are inside each other")
    try:
        value = json.loads(
            body,
            object_pairs_hook=_unique if unique else dict,
            parse_constant=_refuse,
            parse_float=_finite,
            parse_int=_bounded,
        )
        json.dumps(value, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        return Verdict(False, f"no JSON: {error.msg} at {where}")
    except UnicodeEncodeError:
        return Verdict(False, "a text has half of a surrogate pair")
    except (_RefusedError, RecursionError) as error:
        return Verdict(False, str(error))
    return Verdict(True, "", value)


class _RefusedError(ValueError):
    pass


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise _RefusedError(f"the key {shown(key)} occurs twice")
        result[key] = value
    return result


def _refuse(name: str) -> None:
    raise _RefusedError(f"{name} is no number of JSON")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise _RefusedError(f"the number {shown(text)} is too large")
    return value


def _bounded(text: str) -> int:
    if len(text) > 4_000:
        raise _RefusedError(f"a whole number has {len(text):,} digits; allowed are 4,000")
    return int(text)


def _depth(text: str) -> int:
    bare = re.sub(r'"(?:[^"\\]+|\\.)*+"?', "", text, flags=re.DOTALL)
    depth = deepest = 0
    for character in re.findall(r"[\[\]{}]", bare):
        depth += 1 if character in "[{" else -1
        deepest = max(deepest, depth)
    return deepest


def matches_schema(value: Any, schema: dict[str, Any] | bool) -> Verdict:
    """Whether a value follows a JSON Schema (draft 2020-12, or the one that `$schema` names). The reason names the
    first violation and its place. DataError for a schema that is none, is too large, or refers to another document;
    ConfigError without the library jsonschema."""
    check_schemas_can_be_checked()
    try:
        size = len(json.dumps(schema, allow_nan=False))
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        raise DataError("the value and the schema must be JSON: objects, arrays, texts, numbers, true, false") from None
    PATTERN_CHARS.check(size, "the schema's length", DataError)
    return _check("schema", value, schema)


def check_schemas_can_be_checked() -> None:
    """ConfigError without the library jsonschema."""
    if find_spec("jsonschema") is None:
        raise ConfigError("checking a JSON Schema needs the library jsonschema: pip install 'foundling[verify]'")


def matches_regex(text: str, pattern: str) -> Verdict:
    """Whether the whole text matches a regular expression in Rust's syntax (Python's without look-around and
    back-references); `.` matches no line break. DataError for a pattern that is none."""
    return _check_text("regex", text, pattern)


def matches_grammar(text: str, lark: str) -> Verdict:
    """Whether the whole text is derived from a grammar in llguidance's dialect of Lark, from its rule `start`. The
    reason gives the first character that does not fit. DataError for a grammar that is none."""
    return _check_text("grammar", text, lark)


def matches_constraint(text: str, constraint: Constraint) -> Verdict:
    """Whether an answer follows what it was constrained to: its JSON against the schema as the user wrote it, by
    jsonschema; the others as `matches_regex` and `matches_grammar`. A free key of an object that comes twice is
    allowed, and its last value counts, as JSON parsers have it."""
    if constraint.reasoning is None:
        return _matches(text, constraint)
    _, closed, answer = text.partition(constraint.reasoning[1])
    if not closed:
        return Verdict(False, f"the reasoning does not end with {constraint.reasoning[1]}")
    verdicts = [_matches(answer[n:], constraint) for n in range(3) if answer.startswith("\n" * n)]
    return next((verdict for verdict in verdicts if verdict), verdicts[-1])


def _matches(text: str, constraint: Constraint) -> Verdict:
    kind, source = constraint.kind, constraint.source
    if kind in ("json_schema", "json_object"):
        read = _read_json(text, unique=False)
        return _follows_schema(read.value, json.loads(source)) if read else read
    if kind == "regex":
        return _check_text("regex", text, translate_pattern(source, "the regular expression", whole=True))
    if kind == "grammar":
        return _check_text("grammar", text, source)
    if kind == "choice":
        listed = text in json.loads(source)
        return Verdict(listed, "" if listed else f"{shown(text)} is none of the texts to choose from")
    return _matches_tools(text, json.loads(source), constraint.style or "hermes")


def _follows_schema(value: Any, schema: Any) -> Verdict:
    check_schemas_can_be_checked()
    verdict = _check("schema", value, normalize_schema(schema, narrow=False))
    return Verdict(verdict.follows, verdict.reason, value)


def _matches_tools(text: str, source: dict[str, Any], style: str) -> Verdict:
    content, calls = parse_tool_calls(text, style)
    if not calls:
        opening = STYLES[style].opening
        begun = opening in text if opening else text.lstrip(" \t\n\r").startswith("{")
        return Verdict(source["free"] and not begun, "the answer calls no tool")
    if content and not source["free"]:
        return Verdict(False, f"the answer has a text beside its calls: {shown(content)}")
    if len(calls) > 1 and not source["several"]:
        return Verdict(False, f"the answer has {len(calls)} calls; one is allowed")
    for call in calls:
        if call.name not in source["tools"]:
            return Verdict(False, f"the tool {shown(call.name)} is unknown")
        verdict = _follows_schema(json.loads(call.arguments), source["tools"][call.name])
        if not verdict:
            return Verdict(False, f"the arguments of {call.name}: {verdict.reason}")
    return Verdict(True)


def _check_text(kind: str, text: str, pattern: str) -> Verdict:
    PATTERN_CHARS.check(len(pattern), f"the {kind}'s length", DataError)
    if len(text) > ANSWER_CHARS.high:
        return Verdict(False, f"the answer has {len(text):,} characters; allowed are {ANSWER_CHARS.high:,}")
    try:
        text.encode()
    except UnicodeEncodeError:
        return Verdict(False, "the answer has half of a surrogate pair")
    return _check(kind, text, pattern)


def _check(kind: str, value: Any, rule: Any) -> Verdict:
    try:
        follows, reason = _process.call([kind, value, rule])
    except LimitError as error:
        return Verdict(False, f"the check was stopped: {error}")
    return Verdict(follows, reason)


def check_here(values: list[Any]) -> tuple[bool, str]:
    """What the process runs, without bounds: [kind, value, rule] -> (whether it follows, why not)."""
    kind, value, rule = values
    return _check_schema(value, rule) if kind == "schema" else _check_derivation(kind, value, rule)


def _check_schema(value: Any, schema: Any) -> tuple[bool, str]:
    from jsonschema import Draft202012Validator, validators
    from jsonschema.exceptions import SchemaError
    from referencing import Registry
    from referencing.exceptions import Unresolvable

    validator_class = validators.extend(
        validators.validator_for(schema, default=Draft202012Validator), {"multipleOf": _multiple_of}
    )
    try:
        validator_class.check_schema(schema)
    except SchemaError as error:
        raise DataError(f"the schema is none: {_line(error.message)} at {error.json_path}") from None
    except (re.error, RecursionError) as error:
        raise DataError(f"the schema is none: {_line(str(error))}") from None
    # an empty registry: what is not in the schema cannot be resolved, and nothing is fetched
    validator = validator_class(schema, registry=Registry())
    try:
        error = next(iter(validator.iter_errors(value)), None)
    except Unresolvable as error:
        raise DataError(f"the schema refers to {shown(error.ref)}, which is not in it; add it under $defs") from None
    except RecursionError:
        return False, "the schema refers to itself without end, or the value is too deep"
    except re.error as error:
        raise DataError(f"a pattern of the schema is no regular expression: {error}") from None
    return (True, "") if error is None else (False, f"{error.json_path}: {_line(error.message)}")


def _multiple_of(validator: Any, divisor: Any, instance: Any, schema: Any) -> Iterator[Any]:
    """By the decimal numbers that JSON has: 0.3 is a multiple of 0.1, which floating-point division denies."""
    from jsonschema.exceptions import ValidationError

    if validator.is_type(instance, "number") and Fraction(repr(instance)) % Fraction(repr(divisor)):
        yield ValidationError(f"{instance!r} is not a multiple of {divisor!r}")


def _check_derivation(kind: str, text: str, rule: str) -> tuple[bool, str]:
    from llguidance import LLMatcher

    make = LLMatcher.grammar_from_regex if kind == "regex" else LLMatcher.grammar_from_lark
    try:
        matcher = LLMatcher(_bytes_tokenizer(), make(rule), log_level=0)
    except ValueError as error:
        raise DataError(f"the {kind} is none: {_line(str(error))}") from None
    if matcher.is_error():
        raise DataError(f"the {kind} is none: {_line(matcher.get_error())}")
    data = text.encode()
    n = matcher.try_consume_tokens(list(data))
    if matcher.is_error():
        return False, f"the {kind} is too complex: {_line(matcher.get_error())}"
    if n < len(data):
        at = len(data[:n].decode(errors="ignore"))
        return False, f"character {at + 1} does not fit: {shown(text[at : at + 20])}"
    return (True, "") if matcher.is_accepting() else (False, "the text ends too early")


@cache
def _bytes_tokenizer() -> LLTokenizer:
    """Its tokens are the bytes."""
    from llguidance import LLTokenizer

    return LLTokenizer("byte")


def _line(text: str) -> str:
    return " ".join(text.split())[:300]
