# SPDX-License-Identifier: Apache-2.0
"""Does an answer have a form: JSON, a JSON Schema, a regular expression, a grammar?

Patterns and grammars run in llguidance, whose engine takes time linear in the text (it has no backtracking, hence no
look-around and no back-references). Schemas are checked by jsonschema, which reads no `$ref` that points out of the
schema (verify/json_schema.py). Both run in a process of bounded memory and time (foundling/runtime/limited.py).
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any

from foundling.decode.constrain.constraint import Constraint
from foundling.decode.constrain.patterns import translate_pattern
from foundling.errors import ConfigError, DataError
from foundling.limits import ANSWER_CHARS, JSON_DEPTH, PATTERN_CHARS, Limit, shown
from foundling.runtime.files import is_shallow
from foundling.runtime.limited import LimitedProcess, LimitError
from foundling.text.fences import fences
from foundling.text.tool_calls import STYLES, finite, parse_tool_calls
from foundling.verify.json_schema import StoppedError, bytes_tokenizer, check_value, one_line

MEMORY = 1 << 29
"""bytes that a check may take"""
SECONDS = 2
"""of processor time for one check; most take a millisecond"""


@dataclass(frozen=True)
class Verdict:
    """`reason` says why an answer does not follow; "" where it does. `value`: what `json_value` read. `stopped`: the
    check takes more than it may, and says nothing of the answer; `reason` says what."""

    follows: bool
    reason: str = ""
    value: Any = None
    stopped: bool = False

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
    if not is_shallow(body.encode(errors="surrogatepass")):
        return Verdict(False, f"over {JSON_DEPTH.high} arrays and objects are inside each other")
    try:
        value = json.loads(
            body,
            object_pairs_hook=_unique if unique else dict,
            parse_constant=finite,
            parse_float=finite,
            parse_int=_bounded,
        )
        json.dumps(value, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        return Verdict(False, f"no JSON: {error.msg} at {where}")
    except UnicodeEncodeError:
        return Verdict(False, "a text has half of a surrogate pair")
    except (ValueError, RecursionError) as error:
        return Verdict(False, str(error))
    return Verdict(True, "", value)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise ValueError(f"the key {shown(key)} occurs twice")
        result[key] = value
    return result


def _bounded(text: str) -> int:
    if len(text) > 4_000:
        raise ValueError(f"a whole number has {len(text):,} digits; allowed are 4,000")
    return int(text)


def matches_schema(value: Any, schema: dict[str, Any] | bool) -> Verdict:
    """Whether a value follows a JSON Schema (draft 2020-12, or the one that `$schema` names). The reason names the
    first violation and its place. DataError for a schema that is invalid, is too large, or refers to another document;
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
    back-references); `.` matches no line break. DataError for an invalid pattern."""
    return _check_text("regex", text, pattern)


def matches_grammar(text: str, lark: str) -> Verdict:
    """Whether the whole text is derived from a grammar in llguidance's dialect of Lark, from its rule `start`. The
    reason gives the first character that does not fit. DataError for an invalid grammar."""
    return _check_text("grammar", text, lark)


def matches_constraint(text: str, constraint: Constraint) -> Verdict:
    """Whether an answer follows what it was constrained to: its JSON against the schema as the user wrote it, by
    jsonschema in the draft that it names, with patterns and formats by llguidance; the others as `matches_regex` and
    `matches_grammar`. A free key of an object that comes twice is allowed, and its last value counts, as JSON parsers
    have it."""
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
        return _check_text("regex", text, translate_pattern(source, "the regular expression", whole=True), longest=None)
    if kind == "grammar":
        return _check_text("grammar", text, source)
    if kind == "choice":
        listed = text in json.loads(source)
        return Verdict(listed, "" if listed else f"{shown(text)} is not one of the texts to choose from")
    return _matches_tools(text, json.loads(source), constraint.style or "hermes")


def _follows_schema(value: Any, schema: Any) -> Verdict:
    check_schemas_can_be_checked()
    return replace(_check("answer", value, schema), value=value)


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
            return replace(verdict, reason=f"the arguments of {call.name}: {verdict.reason}", value=None)
    return Verdict(True)


def _check_text(kind: str, text: str, pattern: str, *, longest: Limit | None = PATTERN_CHARS) -> Verdict:
    """`longest`: of the pattern, None for one whose source was checked."""
    if longest:
        longest.check(len(pattern), f"the {kind}'s length", DataError)
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
        return Verdict(False, f"the check was stopped: {error}", stopped=True)
    return Verdict(bool(follows), reason, stopped=follows is None)


def check_here(values: list[Any]) -> tuple[bool | None, str]:
    """What the process runs, without bounds: [kind, value, rule] -> (whether it follows, None where the check takes too
    much, and why not). Kinds: a schema, the schema of an answer that was constrained to it, a regex, a grammar."""
    kind, value, rule = values
    try:
        if kind in ("schema", "answer"):
            return check_value(value, rule, constrains=kind == "answer")
        return _check_derivation(kind, value, rule)
    except StoppedError as error:
        return None, f"the check was stopped: {error}"


def _check_derivation(kind: str, text: str, rule: str) -> tuple[bool, str]:
    from llguidance import LLMatcher

    make = LLMatcher.grammar_from_regex if kind == "regex" else LLMatcher.grammar_from_lark
    try:
        matcher = LLMatcher(bytes_tokenizer(), make(rule), log_level=0)
    except ValueError as error:
        raise DataError(f"the {kind} is invalid: {one_line(str(error))}") from None
    if matcher.is_error():
        raise DataError(f"the {kind} is invalid: {one_line(matcher.get_error())}")
    data = text.encode()
    n = matcher.try_consume_tokens(list(data))
    if matcher.is_error():
        raise StoppedError(f"the {kind} is too complex: {one_line(matcher.get_error())}")
    if n < len(data):
        at = len(data[:n].decode(errors="ignore"))
        return False, f"character {at + 1} does not fit: {shown(text[at : at + 20])}"
    return (True, "") if matcher.is_accepting() else (False, "the text ends too early")
