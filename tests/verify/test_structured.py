# SPDX-License-Identifier: Apache-2.0
"""JSON from an answer, schemas, patterns and grammars: what follows, what does not and why, and what would not end."""

import json
import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foundling.decode.constrain.constraint import json_schema, regex
from foundling.decode.constrain.patterns import translate_pattern
from foundling.errors import ConfigError, DataError
from foundling.verify import structured
from foundling.verify.structured import json_value, matches_constraint, matches_grammar, matches_regex, matches_schema

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner),
    max_leaves=10,
)  # fmt: skip


@given(VALUES, st.sampled_from(["{}", " {}\n", "```json\n{}\n```", "```\n{}\n```", "~~~JSON\n{}\n~~~\n"]))
def test_json_bare_and_in_a_fence(value: object, form: str) -> None:
    verdict = json_value(form.replace("{}", json.dumps(value)))
    assert verdict.follows and verdict.reason == ""
    assert verdict.value == value


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty"), ("```json\n\n```", "empty"), ("{'a': 1}", "line 1, column 2"), ('Here: {"a": 1}', "no JSON"),
        ('{"a": 1} done', "Extra data"), ('```json\n{"a": 1}', "no JSON"), ('{"a": 1, "a": 2}', "'a' occurs twice"),
        ("NaN", "NaN"), ("[-Infinity]", "-Infinity"), ("1e999", "1e999"), ('"\\ud800"', "surrogate"),
        ("[" * 65 + "]" * 65, "64"), ("[" * 100_000, "64"), ("1" * 5000, "4,000"), ("[1,]", "no JSON"), ("01", "Extra"),
        ('{"b": {"a": 1, "a": 1}}', "occurs twice"), ("```json\n1\n```\n```json\n2\n```", "no JSON"), ("[1", "no JSON"),
    ],
)  # fmt: skip
def test_no_json(text: str, reason: str) -> None:
    verdict = json_value(text)
    assert not verdict.follows
    assert reason in verdict.reason
    assert verdict.value is None


def test_brackets_in_texts_are_no_depth() -> None:
    assert json_value(json.dumps("[" * 1000 + '\\"')).follows


SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "pattern": "^[a-z]+$"}, "next": {"$ref": "#"}},
    "required": ["name"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ({"name": "ann"}, ""),
        ({"name": "ann", "next": {"name": "bob"}}, ""),
        ({"name": "Ann"}, "$.name: 'Ann' does not match"),
        ({"name": "ann", "next": {"name": 5}}, "$.next.name: 5 is not of type 'string'"),
        ({}, "$: 'name' is a required property"),
        ({"name": "ann", "age": 5}, "$: Additional properties"),
        ([], "$: [] is not of type 'object'"),
    ],
)
def test_schema(value: object, reason: str) -> None:
    verdict = matches_schema(value, SCHEMA)
    assert verdict.follows == (not reason)
    assert verdict.reason.startswith(reason)


def test_nothing_is_fetched(tmp_path) -> None:
    (tmp_path / "other.json").write_text("{}")
    for reference in ("http://127.0.0.1:9/x.json", (tmp_path / "other.json").as_uri(), "other.json", "#/$defs/none"):
        with pytest.raises(DataError, match="not in it"):
            matches_schema(1, {"$ref": reference})


def test_a_schema_that_refers_to_itself() -> None:
    assert "without end" in matches_schema(1, {"$ref": "#"}).reason
    assert matches_schema(1, True).follows


def test_patterns_take_time_linear_in_the_text() -> None:
    """Each would take longer than the process may in an engine that backtracks."""
    slow, text = "^(a+)+$", "a" * 20_000 + "b"
    nested = {"patternProperties": {slow: {"const": 1}}, "additionalProperties": False}
    for value, schema in ((text, {"pattern": slow}), ({text: 1}, nested)):
        verdict = matches_schema(value, schema)
        assert not verdict and not verdict.stopped
    assert matches_schema({"aa": 1}, nested) and not matches_schema({"aa": 2}, nested)


def test_patterns_are_those_of_the_standard() -> None:
    """ECMA-262: $ matches at the end alone, and digits are those of ASCII; an expression of Python is read as one."""
    assert matches_schema("a", {"pattern": "^a$"}) and not matches_schema("a\n", {"pattern": "^a$"})
    assert matches_schema("7", {"pattern": r"\d"}) and not matches_schema("٣", {"pattern": r"\d"})
    assert matches_schema("ab", {"pattern": "a(?=b)"}) and not matches_schema("ac", {"pattern": "a(?=b)"})


@pytest.mark.slow
def test_a_check_that_is_stopped_is_no_verdict_on_the_answer() -> None:
    verdict = matches_schema("a" * 60 + "b", {"pattern": "(?=a)^(a+)+$"})
    assert verdict.stopped and "stopped" in verdict.reason and not verdict
    assert matches_schema(1, True).follows


def test_a_regex_that_is_too_complex_is_no_verdict_on_the_answer() -> None:
    text = "".join(random.Random(0).choices("xyab", k=3000))
    verdict = matches_regex(text, "(.*[xa].{999}){9}")
    assert verdict.stopped and "too complex" in verdict.reason and "\n" not in verdict.reason
    assert not matches_regex("b", "a").stopped


@pytest.mark.parametrize(
    ("schema", "text", "follows"),
    [
        ({"type": "array", "items": [{"type": "integer"}], "additionalItems": False}, "[1]", True),
        ({"type": "array", "items": [{"type": "integer"}], "additionalItems": False}, "[1, 2]", False),
        ({"type": "array", "items": [{"type": "integer"}], "additionalItems": {"type": "null"}}, "[1, null]", True),
        ({"type": "array", "items": [{"type": "integer"}], "additionalItems": {"type": "null"}}, "[1, 2]", False),
        ({"type": "array", "prefixItems": [{"type": "integer"}], "items": False}, "[1, 2]", False),
        ({"$schema": "http://json-schema.org/draft-07/schema#", "items": [{"type": "null"}]}, "[null, 1]", True),
        ({"$schema": "https://json-schema.org/draft-07/schema", "items": [{"type": "null"}]}, "[1]", False),
        ({"type": "string", "format": "ipv4"}, '"1.2.3.4"', True),
        ({"type": "string", "format": "ipv4"}, '"1.2.3.400"', False),
        ({"type": "object", "properties": {"a": True}, "unevaluatedProperties": False}, '{"b": 1}', False),
        ({"type": "object", "minProperties": 1, "required": ["a"], "properties": {"a": True}}, "{}", False),
        ({"oneOf": [{"type": "string"}, {"type": "null"}]}, "null", True),
        ({"enum": ["a", "a"]}, '"a"', True),
    ],
)
def test_an_answer_is_checked_against_the_schema_as_it_was_written(schema: dict, text: str, follows: bool) -> None:
    assert matches_constraint(text, json_schema(schema)).follows == follows


def test_the_validator_does_not_read_what_decoding_made_of_the_schema() -> None:
    """A mistake of the one is noticed by the other: here the schema was compiled to another one."""
    constraint = replace(json_schema({"type": "integer"}), source='{"type": "string"}')
    assert not matches_constraint("3", constraint) and matches_constraint('"3"', constraint)


def test_the_limit_of_a_pattern_is_that_of_its_source() -> None:
    pattern = r"\S" * 700 + "|a"
    assert len(pattern) < 1 << 16 < len(translate_pattern(pattern, "x"))
    assert not matches_constraint("b", regex(pattern)).stopped and matches_constraint("a", regex(pattern))


@pytest.mark.parametrize("schema", [{"type": 5}, {"pattern": "("}, {"type": "nothing"}])
def test_no_schema(schema: dict) -> None:
    with pytest.raises(DataError):
        matches_schema("text", schema)
    with pytest.raises(DataError, match="JSON"):
        matches_schema({1, 2}, {})
    with pytest.raises(DataError, match="length"):
        matches_schema(1, {"enum": ["a" * 70_000]})


def test_without_the_library_it_says_so(monkeypatch) -> None:
    monkeypatch.setattr(structured, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'foundling\[verify\]'"):
        matches_schema(1, {})


@pytest.mark.parametrize(
    ("text", "pattern", "reason"),
    [
        ("aab", "a+b", ""), ("éé", "é+", ""), ("", "a*", ""), ("2026-11-27", r"\d{4}-\d{2}-\d{2}", ""),
        ("aabb", "a+b", "character 4 does not fit: 'b'"), ("aa", "a+b", "the text ends too early"),
        ("ééx", "é+", "character 3"), ("a\nb", "a.b", "character 2"),
        ("a" * 50_000 + "c", "(a+)+b", "character 50001"), ("\ud800", ".", "surrogate"),
    ],
)  # fmt: skip
def test_regex(text: str, pattern: str, reason: str) -> None:
    verdict = matches_regex(text, pattern)
    assert verdict.follows == (not reason)
    assert verdict.reason.startswith(reason) or reason in verdict.reason


@settings(max_examples=30)
@given(st.text("ab", max_size=8))
def test_regex_against_python(text: str) -> None:
    import re

    for pattern in ("a*b", "(ab|b)+", "a{2,3}b?", "[ab]{4}"):
        assert matches_regex(text, pattern).follows == bool(re.fullmatch(pattern, text))


@pytest.mark.parametrize("pattern", ["(", "(?=a)b", r"(a)\1", "a" * 70_000])
def test_no_regex(pattern: str) -> None:
    with pytest.raises(DataError, match="regex"):
        matches_regex("a", pattern)


GRAMMAR = """
start: sum
sum: NUMBER | sum "+" NUMBER | "(" sum ")"
NUMBER: /[0-9]+/
"""


def test_grammar() -> None:
    assert matches_grammar("1+22+(3)"[:4], GRAMMAR).follows
    assert matches_grammar("(1+2)", GRAMMAR).follows
    assert matches_grammar("1+", GRAMMAR).reason == "the text ends too early"
    assert matches_grammar("1*2", GRAMMAR).reason == "character 2 does not fit: '*2'"
    assert matches_grammar("(" * 200 + "1" + ")" * 200, GRAMMAR).follows
    for wrong in ("start: (", "", "other: A"):
        with pytest.raises(DataError, match="grammar"):
            matches_grammar("1", wrong)


def test_a_large_repetition_ends() -> None:
    verdict = matches_regex("a" * 100, "((a{1,1000}){1,1000}){1,1000}b")
    assert not verdict.follows
