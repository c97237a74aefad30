# SPDX-License-Identifier: Apache-2.0
"""Each keyword of JSON Schema is enforced, an annotation, or refused by name and place.

What the grammar of a schema admits is asked of llguidance byte by byte, in both directions, and of jsonschema.
"""

import json
from functools import cache
from typing import Any

import jsonschema
import pytest
from llguidance import LLMatcher, LLTokenizer

from foundling.decode.constrain.compilation import check_compiles, parser_limits
from foundling.decode.constrain.constraint import Constraint, json_schema
from foundling.decode.constrain.schema_keywords import ANNOTATIONS, HANDLERS, PLACES, REFUSED, normalize_schema
from foundling.errors import GenerationError
from foundling.verify.structured import matches_constraint

BYTES = LLTokenizer("byte")


@cache
def compiled(constraint: Constraint) -> Any:
    check_compiles(constraint)
    return LLMatcher(BYTES, constraint.resolve(lambda _: None), log_level=0, limits=parser_limits())


def admits(schema: Any, text: str) -> bool:
    matcher = compiled(json_schema(schema)).deep_copy()
    data = list(text.encode())
    return matcher.try_consume_tokens(data) == len(data) and matcher.is_accepting()


def written(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


INTEGER, TEXT = {"type": "integer"}, {"type": "string"}
AB = {"a": INTEGER, "b": TEXT}
OF_AB = {"type": "object", "properties": AB}
LIST = {"$ref": "#/$defs/list", "$defs": {"list": {
    "type": "object", "properties": {"v": INTEGER, "next": {"$ref": "#/$defs/list"}}, "required": ["v"]}}}  # fmt: skip

ENFORCED: dict[str, list[tuple[Any, list[Any], list[Any]]]] = {
    "type": [
        (INTEGER, [0, -7, 12, -0], [1.5, "1", None, True, [1], {}]),
        ({"type": "number"}, [0, -7, 1.5, -0.001], ["1", None, True]),
        (TEXT, ["", "é🙂", 'a"b\\c\n\t', "\x7f" * 0], [1, None, ["a"]]),
        ({"type": "boolean"}, [True, False], [0, "true", None]),
        ({"type": "null"}, [None], [False, 0, ""]),
        ({"type": "array"}, [[], [1, "a", None, [2], {"k": 0.5}]], [{}, "[]"]),
        ({"type": "object"}, [{}, {"k": [1, {"l": None}]}], [[], "{}", None]),
        ({"type": ["integer", "null"]}, [3, None], ["3", 3.5]),
    ],
    "enum": [
        ({"enum": [1, "a", None, True, 1.5, [1, {"k": "v"}]]}, [1, "a", None, True, 1.5, [1, {"k": "v"}]], [2, "b",
         [1]]),
        ({"enum": ["ä\n", 'q"', "a/b"]}, ["ä\n", 'q"', "a/b"], ["ä", "q", ""]),
        ({"enum": [1, "a", "bb"], "type": "string", "minLength": 2}, ["bb"], [1, "a"]),
    ],
    "const": [
        ({"const": {"b": 1, "a": [2, None]}}, [{"b": 1, "a": [2, None]}], [{"b": 1}, {"b": 1, "a": [2]}, 1]),
        ({"const": ""}, [""], ["a", None]), ({"const": False}, [False], [0, True, None]),
    ],
    "properties": [
        ({"type": "object", "properties": AB}, [{}, {"a": 1}, {"b": "x"}, {"a": 1, "b": "x"}], [{"a": "x"}, {"b": 1}]),
        ({"properties": {"a": INTEGER}}, [{"a": 1}, 3, "text", None], [{"a": "x"}]),
        ({"type": "object", "properties": {'q"ü\n': INTEGER}}, [{'q"ü\n': 1}], [{'q"ü\n': "x"}]),
        ({"type": "object", "properties": {"a": False, "b": True}, "additionalProperties": False}, [{"b": [1]}],
         [{"a": 1}]),
    ],
    "required": [
        ({"type": "object", "properties": AB, "required": ["b"]}, [{"b": "x"}, {"a": 1, "b": "x"}], [{}, {"a": 1}]),
        ({"type": "object", "properties": AB, "required": ["z"]}, [{"z": None}, {"a": 1, "z": "any"}], [{}, {"a": 1}]),
        ({"type": "object", "required": ["a", "a"]}, [{"a": 1}, {"a": 1, "c": 2}], [{}, {"c": 2}]),
    ],
    "additionalProperties": [
        ({"type": "object", "properties": AB, "additionalProperties": False}, [{}, {"a": 1}], [{"c": 1},
         {"a": 1, "c": 1}]),
        ({"type": "object", "properties": AB, "additionalProperties": INTEGER}, [{"c": 1}, {"a": 1, "c": 2}],
         [{"c": "x"}]),
        ({"type": "object", "properties": AB, "additionalProperties": True}, [{"c": None, "d": []}],
         [{"a": "x", "c": 1}]),
        ({"type": "object", "additionalProperties": {"type": "string", "maxLength": 1}}, [{"k": "x"}], [{"k": "xy"}]),
    ],
    "patternProperties": [
        ({"type": "object", "patternProperties": {"^n_": INTEGER}, "additionalProperties": False},
         [{}, {"n_a": 1, "n_": 2}], [{"n_a": "x"}, {"m": 1}]),
        ({"type": "object", "properties": {"n_b": {"minimum": 3}}, "patternProperties": {"^n_": INTEGER}},
         [{"n_b": 3}], [{"n_b": 2}, {"n_b": "x"}, {"n_c": "x"}]),
        ({"type": "object", "patternProperties": {"[0-9]$": False}, "additionalProperties": INTEGER},
         [{"a": 1}], [{"a1": 1}]),
    ],
    "minProperties": [
        ({"type": "object", "minProperties": 1}, [{"a": 1}, {"a": 1, "b": 2}], [{}]),
        ({"type": "object", "properties": AB, "required": ["a", "b"], "minProperties": 3,
          "additionalProperties": INTEGER}, [{"a": 1, "b": "x", "c": 3}], [{"a": 1, "b": "x"}]),
    ],
    "maxProperties": [
        ({"type": "object", "maxProperties": 1}, [{}, {"a": 1}], [{"a": 1, "b": 2}]),
        ({"type": "object", "properties": AB, "maxProperties": 2, "additionalProperties": False},
         [{"a": 1, "b": ""}], []),
    ],
    "items": [
        ({"type": "array", "items": INTEGER}, [[], [1], [1, 2, 3]], [["a"], [1, "a"], [None]]),
        ({"items": {"const": 1}}, [[1, 1], 7, "x"], [[2]]),
        ({"type": "array", "items": False}, [[]], [[1], [None]]),
        ({"$schema": "http://json-schema.org/draft-07/schema#", "type": "array", "items": [INTEGER, TEXT]},
         [[], [1], [1, "a"], [1, "a", None]], [["a"], [1, 2]]),
    ],
    "prefixItems": [
        ({"type": "array", "prefixItems": [INTEGER, TEXT]}, [[], [1], [1, "a"], [1, "a", None]], [["a"], [1, 2]]),
        ({"type": "array", "prefixItems": [INTEGER], "items": False}, [[], [1]], [[1, 2], ["a"]]),
        ({"type": "array", "prefixItems": [INTEGER], "items": TEXT, "minItems": 2}, [[1, "a"]], [[1], [1, 2]]),
    ],
    "additionalItems": [
        ({"$schema": "http://json-schema.org/draft-07/schema#", "type": "array", "items": [INTEGER],
          "additionalItems": False}, [[], [1]], [[1, 2], ["a"]]),
        ({"$schema": "https://json-schema.org/draft/2019-09/schema", "type": "array", "items": [INTEGER],
          "additionalItems": TEXT}, [[1, "a", "b"]], [[1, 2]]),
    ],
    "minItems": [({"type": "array", "items": INTEGER, "minItems": 2}, [[1, 2], [1, 2, 3]], [[], [1]])],
    "maxItems": [({"type": "array", "items": INTEGER, "maxItems": 2.0}, [[], [1, 2]], [[1, 2, 3]])],
    "uniqueItems": [({"type": "array", "items": INTEGER, "uniqueItems": False}, [[1, 1]], []),
                    ({"type": "array", "items": INTEGER, "uniqueItems": True, "maxItems": 1}, [[1]], [[1, 1]])],
    "unevaluatedProperties": [({"type": "object", "properties": AB, "unevaluatedProperties": False}, [{"a": 1}],
     [{"c": 1}])],
    "unevaluatedItems": [({"type": "array", "prefixItems": [INTEGER], "unevaluatedItems": False}, [[1]], [[1, 2]])],
    "minLength": [({"type": "string", "minLength": 2}, ["éé", "🙂🙂", "\n\n", '""'], ["", "🙂", "\n"])],
    "maxLength": [({"type": "string", "maxLength": 2}, ["", "🙂🙂", "\\\\"], ["abc", "🙂🙂🙂"]),
                  ({"maxLength": 1}, ["a", 12345, None], ["ab"])],
    "pattern": [
        ({"type": "string", "pattern": "^a+$"}, ["a", "aaa"], ["", "b", "ab", "ba"]),
        ({"type": "string", "pattern": "b"}, ["b", "abc", "\nb"], ["", "ac"]),
        ({"type": "string", "pattern": "^a|c$"}, ["ab", "bc", "a"], ["ba", "cb"]),
        ({"type": "string", "pattern": r"^\d{2}[\w-]\s$"}, ["12_ ", "34-\u00a0"], ["١٢_ ", "12é "]),
        ({"type": "string", "pattern": "^.$"}, ["a", "🙂", "\\"], ["", "ab", "\n", "\r", "\u2028"]),
        ({"type": "string", "pattern": "^[^a]$", "maxLength": 1}, ["b", '"', "\n"], ["a", ""]),
        ({"type": "string", "pattern": "^a", "minLength": 3}, ["abc"], ["ab", "bbb"]),
        ({"pattern": "^a"}, ["ab", 3, None, ["b"]], ["b"]),
    ],
    "format": [
        ({"type": "string", "format": "date"}, ["2024-02-29", "2000-02-29", "1999-12-31"],
         ["2023-02-29", "1900-02-29", "2024-13-01", "2024-04-31", "0000-01-01", "2024-1-1", "x"]),
        ({"type": "string", "format": "ipv4", "pattern": "^1"}, ["10.0.0.1", "127.0.0.255"], ["8.8.8.8", "1.2.3.256"]),
        ({"type": "string", "format": "uuid"}, ["123e4567-e89b-12d3-a456-426614174000"], ["123e4567"]),
        ({"type": "string", "format": "time"}, ["23:59:59Z", "00:00:00.5+01:30"],
         ["24:00:00Z", "12:00:00", "12:60:00Z"]),
        ({"type": "string", "format": "email"}, ["a.b+c@x-y.org"], ["a@", "@b.c", "a b@c.d", "a@-b.c"]),
        ({"format": "date"}, ["2024-02-29", 5], ["x"]),
    ],
    "minimum": [(INTEGER | {"minimum": 3}, [3, 10, 300], [2, 0, -5]),
                ({"type": "number", "minimum": 0.5, "maximum": 1.25}, [0.5, 1, 1.25, 0.75], [0.49, 1.26, 0, 2, -1]),
                ({"minimum": 3}, [3, "x", None], [2])],
    "maximum": [(INTEGER | {"maximum": -3}, [-3, -10], [-2, 0, 5])],
    "exclusiveMinimum": [(INTEGER | {"exclusiveMinimum": 3}, [4], [3, 2]),
                         ({"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 0.5}, [0.1, 0.25],
                          [0, 0.5, -0.1]),
                         ({"type": "integer", "exclusiveMinimum": 1.5}, [2], [1])],
    "exclusiveMaximum": [(INTEGER | {"exclusiveMaximum": 3}, [2, -8], [3, 4])],
    "multipleOf": [(INTEGER | {"multipleOf": 7}, [0, 7, -14, 700], [1, 8, -15]),
                   ({"type": "number", "multipleOf": 0.25}, [0.25, 1, 1.75], [0.3, 0.125]),
                   ({"type": "number", "multipleOf": 0.5, "minimum": 0, "maximum": 2}, [0, 0.5, 2], [0.25, 2.5])],
    "allOf": [({"allOf": [INTEGER, {"minimum": 3}], "maximum": 5}, [3, 5], [2, 6, "x"]),
              ({"allOf": [{"type": "object", "properties": {"a": INTEGER}, "required": ["a"]},
                          {"properties": {"b": TEXT}, "required": ["b"]}]}, [{"a": 1, "b": "x"}], [{"a": 1},
                           {"b": "x"}]),
              ({"allOf": [{"$ref": "#/$defs/A"}, {"properties": {"c": {"type": "array", "items": {"$ref": "#"}}}}],
                "$defs": {"A": OF_AB}}, [{"a": 1, "c": [{}, {"b": "x"}]}, {"c": [{"c": [{"a": 1}]}]}],
               [{"a": "x"}, {"c": 1}, {"c": [{"c": [{"a": "x"}]}]}, 1]),
              ({"allOf": [{"$ref": "#/$defs/A"}], "$defs": {"A": OF_AB}}, [{}, {"a": 1}], [{"a": "x"}, 1])],
    "anyOf": [({"anyOf": [INTEGER, {"type": "string", "maxLength": 1}]}, [5, "a"], ["ab", None]),
              ({"anyOf": [INTEGER, TEXT], "minimum": 3}, [3, "a"], [2])],
    "oneOf": [({"oneOf": [INTEGER, TEXT]}, [5, "a"], [None, 1.5]),
              ({"oneOf": [{"type": "object", "properties": {"k": {"const": k}, k: INTEGER}, "required": ["k", k]}
                          for k in "xy"]}, [{"k": "x", "x": 1}, {"k": "y", "y": 1}], [{"k": "x", "y": 1}, {"k": "z"}])],
    "$ref": [(LIST, [{"v": 1}, {"v": 1, "next": {"v": 2, "next": {"v": 3}}}], [{}, {"v": 1, "next": {}}]),
             ({"$ref": "#/$defs/a~1b%20c", "$defs": {"a/b c": INTEGER}, "minimum": 3}, [3], [2, "x"]),
             ({"type": "array", "items": {"$ref": "#"}}, [[], [[], [[]]]], [[1], {}]),
             ({"$ref": "#deep", "$defs": {"d": {"$anchor": "deep", "const": 1}}}, [1], [2]),
             ({"$schema": "http://json-schema.org/draft-07/schema#", "definitions": {"d": INTEGER},
               "properties": {"a": {"$ref": "#/definitions/d"}}, "type": "object"}, [{"a": 1}], [{"a": "x"}])],
}  # fmt: skip


@pytest.mark.parametrize("keyword", ENFORCED)
def test_a_keyword_is_enforced(keyword: str) -> None:
    for schema, valid, invalid in ENFORCED[keyword]:
        cls = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
        validator = cls(schema)
        for value in valid:
            assert admits(schema, written(value)), (schema, value)
            assert keyword == "format" or validator.is_valid(value), (schema, value)
            assert matches_constraint(written(value), json_schema(schema)), (schema, value)
        for value in invalid:
            assert not admits(schema, written(value)), (schema, value)
            # Python's own \d, `.` and $ differ from those of JSON Schema; formats it does not check by itself
            assert keyword in ("format", "pattern") or not validator.is_valid(value), (schema, value)
            assert not matches_constraint(written(value), json_schema(schema)), (schema, value)


def test_every_keyword_is_in_one_of_the_tables() -> None:
    """Of drafts 7, 2019-09 and 2020-12, as the meta-schemas of jsonschema list them."""
    import jsonschema_specifications

    tested = {*ENFORCED}
    assert tested == HANDLERS.keys()
    named = set[str]()
    for uri in jsonschema_specifications.REGISTRY:
        if any(draft in uri for draft in ("draft-07", "2019-09", "2020-12")):
            named |= jsonschema_specifications.REGISTRY.contents(uri).get("properties", {}).keys()
    assert len(named) > 55
    assert named <= tested | ANNOTATIONS | PLACES | REFUSED.keys(), named - (
        tested | ANNOTATIONS | PLACES | REFUSED.keys()
    )


@pytest.mark.parametrize("keyword", sorted(ANNOTATIONS))
def test_an_annotation_changes_nothing(keyword: str) -> None:
    values = {
        "examples": [1],
        "contentSchema": {"type": "object"},
        "discriminator": {"propertyName": "k"},
        "default": None,
    }
    plain = {"type": "object", "properties": {"a": INTEGER}}
    noted = {**plain, keyword: values.get(keyword, "x"), "properties": {"a": {**INTEGER, keyword: "y"}}}
    assert normalize_schema(noted) == normalize_schema(plain)


@pytest.mark.parametrize("keyword", [*sorted(REFUSED), "uniqueItems", "foo", "x-guidance"])
def test_what_is_not_supported_is_refused_by_name_and_place(keyword: str) -> None:
    value = {"$ref": "#x"} if keyword.startswith("$") else True
    value = (
        {"const": 1} if keyword in ("not", "if", "then", "else", "contains", "propertyNames", "dependencies") else value
    )
    schema = {"type": "object", "properties": {"p": {"type": "array", keyword: value}}}
    with pytest.raises(GenerationError) as caught:
        json_schema(schema)
    message = str(caught.value)
    assert keyword in message and "$.properties.p" in message and "\n" not in message


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        (7, "expected an object, true or false"),
        (False, "accepts nothing"),
        ({"enum": []}, "at least one value"),
        ({"anyOf": []}, "a list of schemas"),
        ({"anyOf": [False]}, "accepts nothing"),
        ({"type": "any"}, "type at $.type"),
        ({"properties": {"a": 3}}, "$.properties.a"),
        ({"properties": []}, "expected an object of schemas"),
        ({"minLength": -1}, "$.minLength"),
        ({"minimum": "3"}, "expected a number"),
        ({"minimum": 3, "exclusiveMinimum": True}, "$.exclusiveMinimum"),
        ({"minimum": 1e300}, "2^53"),
        ({"enum": [10**30]}, "2^53"),
        ({"const": "\x01"}, "control character"),
        ({"multipleOf": 0}, "above 0"),
        ({"multipleOf": 1e-9}, "six decimals"),
        ({"format": "regex"}, "supported are date"),
        ({"pattern": "a(?=b)"}, "look-around"),
        ({"pattern": r"\bx"}, "word boundary"),
        ({"pattern": r"(a)\1"}, "back-reference"),
        ({"pattern": r"\p{L}"}, "property"),
        ({"pattern": "a^b"}, "anchor"),
        ({"pattern": "("}, "not closed"),
        ({"$ref": "https://example.org/schema"}, "none is fetched"),
        ({"$ref": "#/nowhere"}, "leads to no schema"),
        ({"$ref": "#"}, "without end"),
        ({"anyOf": [{"$ref": "#/$defs/a"}], "$defs": {"a": {"allOf": [{"$ref": "#/$defs/a"}]}}}, "without end"),
        ({"$schema": "http://json-schema.org/draft-04/schema#"}, "drafts 6, 7"),
        ({"$schema": "http://json-schema.org/draft-07/schema#", "$ref": "#/definitions/a", "minimum": 3,
          "definitions": {"a": {}}}, "beside $ref"),
        ({"properties": {"a": {"$id": "b"}}}, "$id at $.properties.a"),
        ({"type": "object", "properties": {"a": {}, "b": {}}, "minProperties": 1}, "minProperties 1"),
        ({"type": "object", "minProperties": 2}, "minProperties 2"),
        ({"type": "object", "properties": {"a": {}, "b": {}}, "maxProperties": 1}, "maxProperties 1"),
        ({"description": "x" * 70_000}, "length"),
        ({"const": float("nan")}, "NaN"),
        ({"const": "\ud800"}, "surrogates"),
    ],
)  # fmt: skip
def test_a_schema_that_cannot_be_enforced_is_refused_in_one_line(schema: Any, words: str) -> None:
    with pytest.raises(GenerationError) as caught:
        json_schema(schema)
    assert words in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 400


@pytest.mark.parametrize(
    "schema",
    [
        {"oneOf": [{"type": "integer"}, {"type": "number"}]},
        {"oneOf": [{"required": ["a"]}, {"required": ["b"]}]},
        {"type": "integer", "minimum": 5, "maximum": 3},
        {"type": "object", "required": ["b"], "additionalProperties": False},
        {"type": "object", "patternProperties": {"a": INTEGER, "b": {"minimum": 4}}},
        {"type": "object", "properties": {"a": {"type": "string", "pattern": "^(a{1,1000}){1,1000}$"}}},
        {"type": "object", "properties": {"next": {"$ref": "#"}}, "required": ["next"]},
    ],
)
def test_what_only_the_compiler_sees_is_refused_too(schema: Any) -> None:
    with pytest.raises(GenerationError) as caught:
        check_compiles(json_schema(schema))
    assert ("the JSON Schema" in str(caught.value) or "oneOf at $.oneOf" in str(caught.value)) and "\n" not in str(
        caught.value
    )


def test_a_property_that_is_called_as_a_keyword_is_none() -> None:
    schema = {"type": "object", "properties": {"oneOf": {"type": "integer", "minimum": 5, "maximum": 3}},
              "required": ["oneOf"]}  # fmt: skip
    with pytest.raises(GenerationError, match="cannot be compiled"):
        check_compiles(json_schema(schema))


def test_what_a_schema_leaves_open_is_closed() -> None:
    """The documented narrowing: jsonschema accepts these, and no constrained answer is one of them."""
    for schema, text in [
        ({"type": "object", "properties": AB}, '{"c": 1}'),
        ({"type": "object", "properties": AB}, '{"b": "x", "a": 1}'),
        ({"type": "object", "properties": AB}, '{"a":1}'),
        ({"type": "integer"}, "9007199254740992"),
        ({"type": "integer"}, "1.0"),
        ({"type": "number"}, "1e5"),
        ({"type": "string"}, '"\\u0061"'),
        ({"type": "number", "multipleOf": 0.25}, "1.5"),  # 1.50 it is
        ({"type": "array"}, "[" * 10 + "]" * 10),
        ({"const": {"b": 1, "a": 2}}, '{"a": 2, "b": 1}'),
        ({"allOf": [{"$ref": "#/$defs/A"}], "$defs": {"A": OF_AB}}, '{"a": 1, "z": 1}'),
        (
            {
                "type": "object",
                "properties": {"p": {"title": "P", "allOf": [{"$ref": "#/$defs/A"}]}, "q": {"$ref": "#/$defs/A"}},
                "$defs": {"A": OF_AB},
            },
            '{"p": {"a": 1}, "q": {"z": 1}}',
        ),
        *(
            (schema, text)
            for text in ("1e5", "[" * 10 + "]" * 10, '{"a": 1, "z": 9007199254740992}')
            for schema in (
                {"allOf": [True]},
                {"allOf": [True, {}]},
                {"allOf": [{"minLength": 1}]},
                {"pattern": "a", "format": "date"},
                {"minItems": 0, "allOf": [{"minLength": 1}, {"maxLength": 5}]},
                {"$ref": "#/$defs/A", "$defs": {"A": {}}},
                {"properties": AB, "anyOf": [{"type": "object"}, {"type": ["array", "number"]}]},
            )
        ),
        ({"allOf": [OF_AB, {"required": ["z"]}]}, '{"z": 9007199254740992}'),
        ({"allOf": [OF_AB, {"required": ["z"]}]}, '{"z": ' + "[" * 10 + "]" * 10 + "}"),
        ({**OF_AB, "anyOf": [{"required": ["a"]}, {"required": ["b"]}]}, '{"a": 1, "z": 1e5}'),
        ({"$ref": "#/$defs/A", "properties": {"c": TEXT}, "$defs": {"A": OF_AB}}, '{"a": 1, "z": 1e5}'),
    ]:
        assert jsonschema.Draft202012Validator(schema).is_valid(json.loads(text))
        assert matches_constraint(text, json_schema(schema)) and not admits(schema, text), (schema, text)


def test_a_key_cannot_be_written_a_second_way() -> None:
    """json.loads keeps the last of equal keys: {"a": 1, "\\u0061": "x"} would violate the type of a."""
    schema = {"type": "object", "properties": {"a": INTEGER}, "additionalProperties": True}
    assert admits(schema, '{"a": 1, "b": "x"}') and not admits(schema, '{"a": 1, "\\u0061": "x"}')
    assert not admits(schema, '{"a": 1, "a": "x"}')


VALUES = [None, True, -1, 5, "a", [{}], [3], {"a": 3}]
KEYWORDS = sorted({*HANDLERS, *REFUSED, *PLACES, *ANNOTATIONS})


@pytest.mark.parametrize("keyword", KEYWORDS)
def test_values_of_wrong_types_are_refused_by_name(keyword: str) -> None:
    """Beside another keyword, in both orders: what is refused is a GenerationError of one line, and nothing else."""
    n_refused, other = 0, [*HANDLERS][KEYWORDS.index(keyword) % len(HANDLERS)]
    for value in VALUES:
        for beside in (None, 5, [{}]):
            for schema in ({keyword: value, other: beside}, {other: beside, keyword: value}):
                try:
                    normalize_schema(schema)
                except GenerationError as error:
                    n_refused += 1
                    assert "\n" not in str(error)
    assert n_refused


def test_a_count_of_properties_beside_what_is_none() -> None:
    for beside in ({"required": 5}, {"properties": None}, {"required": [{}]}, {"properties": [{}]}):
        for schema in ({"minProperties": 1, **beside}, {**beside, "maxProperties": 1}):
            with pytest.raises(GenerationError, match=f"{next(iter(beside))} at"):
                normalize_schema(schema)
