# SPDX-License-Identifier: Apache-2.0
"""What becomes of each keyword of a JSON Schema: it is enforced, it is an annotation, or the schema is refused.

`normalize_schema` rewrites a schema to the form of draft 2020-12 that llguidance enforces completely. llguidance alone
would take some keywords for unknown and admit anything, and others in part (docs/structured.md).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from foundling.decode.constrain.formats import FORMATS
from foundling.decode.constrain.patterns import translate_pattern
from foundling.decode.constrain.schema_closing import FREE, closed, closing_part, free_values
from foundling.decode.constrain.schema_references import IN_PLACE, References, has_parts, path_of
from foundling.decode.constrain.schema_values import (
    check_enumerated,
    check_numbers,
    close_bounds,
    count,
    positive_multiple,
)  # fmt: skip
from foundling.errors import GenerationError
from foundling.limits import JSON_DEPTH, PATTERN_CHARS, shown

ANNOTATIONS = frozenset((
    "title", "description", "default", "examples", "$comment", "readOnly", "writeOnly", "deprecated", "contentEncoding",
    "contentMediaType", "contentSchema", "discriminator",
))  # fmt: skip
"""keywords that no instance violates; `discriminator` (OpenAPI) only repeats what a `oneOf` says"""
PLACES = frozenset(("$schema", "$id", "$anchor", "$defs", "definitions"))
REFUSED = {
    "not": "use a schema that describes what is allowed",
    "if": "a condition cannot be decided before the value is written; use anyOf",
    "then": "it belongs to `if`, which is not supported",
    "else": "it belongs to `if`, which is not supported",
    "contains": "use items, or prefixItems for an item at a place",
    "minContains": "it belongs to `contains`, which is not supported",
    "maxContains": "it belongs to `contains`, which is not supported",
    "propertyNames": "use patternProperties with additionalProperties false",
    "dependentRequired": "use anyOf of objects with other required properties",
    "dependentSchemas": "use anyOf of objects with other required properties",
    "dependencies": "use anyOf of objects with other required properties",
    "$dynamicRef": "use $ref", "$dynamicAnchor": "use $anchor", "$recursiveRef": "use $ref",
    "$recursiveAnchor": "use $anchor", "$vocabulary": "it belongs to a meta-schema",
    "nullable": 'it is OpenAPI\'s and no keyword of JSON Schema; use "type": ["…", "null"]',
    "id": "it is of draft 4; use $id",
}  # fmt: skip
TYPES = ("null", "boolean", "integer", "number", "string", "array", "object")
DRAFTS = {"draft-06/schema": 6, "draft-07/schema": 7, "draft/2019-09/schema": 2019, "draft/2020-12/schema": 2020}
AFTER_OTHERS = ("minProperties", "maxProperties", "uniqueItems", "unevaluatedProperties", "unevaluatedItems")
"""keywords that read others beside them, whose values are checked first"""


def normalize_schema(schema: Any) -> dict[str, Any]:
    """The schema with nothing in it but keywords that are enforced. Where it says nothing, objects have no further
    properties, numbers are within ±(2⁵³ − 1), and values nest at most 8 levels. GenerationError, naming the keyword and
    its JSON path, for what cannot be enforced."""
    if not isinstance(schema, dict | bool):
        raise GenerationError(f"the JSON Schema is {shown(schema)}; expected an object, true or false")
    try:
        text = json.dumps(schema, allow_nan=False, ensure_ascii=False)
        text.encode()
    except (TypeError, ValueError, RecursionError):
        raise GenerationError(
            "the JSON Schema is not valid JSON: it has NaN, infinity, unpaired surrogates, or contains itself"
        ) from None
    PATTERN_CHARS.check(len(text), "the JSON Schema's length", GenerationError)
    return _Normalizer(schema).result()


class _Normalizer:
    def __init__(self, schema: dict[str, Any] | bool) -> None:
        self.schema, self.draft = schema, draft_of(schema)
        self.references = References(schema)
        self.is_part = False
        """whether what is normalized is a part of a schema, which is left open"""
        self.in_parts = list[dict[str, Any]]()
        """schemas that have parts, each to be closed as a whole"""

    def result(self) -> dict[str, Any]:
        root = self.node(self.schema, ())
        definitions = dict[str, Any]()
        while self.references.pending:
            path, is_part = target = self.references.pending.pop()
            definitions[self.references.names[target]] = self.node(self.references.places[path], path, is_part)
        self.references.check_cycles(definitions)
        for node in self.in_parts:
            node["allOf"] = [*node.get("allOf", []), closing_part(node, definitions)]
        if FREE in json.dumps([root, definitions]):
            definitions |= free_values()
        return {**root, "$defs": definitions} if definitions else root

    # --- one schema ------------------------------------------------------------------------------------------------

    def node(self, schema: Any, path: tuple[str, ...], is_part: bool = False) -> dict[str, Any]:
        if schema is False:
            raise GenerationError(f"false at {path_of(path)} accepts nothing: leave the keyword out")
        if len(path) > 2 * JSON_DEPTH.high:
            raise GenerationError(f"the JSON Schema is nested too deeply at {path_of(path[:8])}…")
        if schema is True:
            schema = {}
        if not isinstance(schema, dict):
            raise GenerationError(f"the schema at {path_of(path)} is {shown(schema)}; expected an object or true")
        schema = {key: value for key, value in schema.items() if key not in ANNOTATIONS and not _is_extension(key)}
        self.check_places(schema, path)
        result = dict[str, Any]()
        outer, self.is_part = self.is_part, is_part or has_parts(schema)
        for keyword, value in sorted(schema.items(), key=lambda item: item[0] in AFTER_OTHERS):
            if keyword in PLACES:
                continue
            if keyword in REFUSED:
                if not _is_empty(keyword, value):
                    raise GenerationError(
                        f"{keyword} at {path_of((*path, keyword))} is not supported: {REFUSED[keyword]}"
                    )
                continue
            handle = HANDLERS.get(keyword)
            if handle is None:
                raise GenerationError(
                    f"{shown(keyword)} at {path_of((*path, keyword))} is not a supported keyword of JSON Schema; "
                    "leave it out"
                )
            handle(self, result, value, (*path, keyword), schema)
        self.is_part = outer
        check_numbers(result, path)
        types = result.get("type", [])
        close_bounds(result, [types] if isinstance(types, str) else types)
        if is_part or result.keys() & {"enum", "const"}:
            return result
        if has_parts(schema):
            self.in_parts.append(result)
        return result if schema.keys() & {"$ref", *IN_PLACE} else closed(result)

    def check_places(self, schema: dict[str, Any], path: tuple[str, ...]) -> None:
        if path and "$schema" in schema:
            raise GenerationError(f"$schema at {path_of(path)} is inside a schema; it belongs to the outermost one")
        if path and "$id" in schema:
            raise GenerationError(
                f"$id at {path_of(path)} is inside a schema, whose references would change; leave it out"
            )
        for keyword, kind, expected in (
            ("$id", str, "a text"), ("$anchor", str, "a text"), ("$defs", dict, "an object"),
            ("definitions", dict, "an object"),
        ):  # fmt: skip
            if keyword in schema and not isinstance(schema[keyword], kind):
                where = path_of((*path, keyword))
                raise GenerationError(f"{keyword} at {where} is {shown(schema[keyword])}; expected {expected}")
        if "$anchor" in schema and self.draft in (6, 7):
            raise GenerationError(
                f"$anchor at {path_of(path)} is no keyword of draft {self.draft}; refer to the schema by its place, or "
                "name draft 2020-12 in $schema"
            )
        others = [k for k in schema if k not in PLACES and k != "$ref"]
        if "$ref" in schema and others and self.draft in (6, 7):
            raise GenerationError(
                f"{others[0]} at {path_of((*path, others[0]))} is beside $ref, which draft {self.draft} ignores: put "
                "both into allOf, or name draft 2020-12 in $schema"
            )

    # --- keywords --------------------------------------------------------------------------------------------------

    def type(self, node: dict[str, Any], value: Any, path: tuple[str, ...], schema: dict[str, Any]) -> None:
        names = [value] if isinstance(value, str) else value
        if not isinstance(names, list) or not names or any(name not in TYPES for name in names):
            raise GenerationError(
                f"type at {path_of(path)} is {shown(value)}; expected {', '.join(TYPES)}, or a list of them"
            )
        node["type"] = value

    def schemas(self, node: dict[str, Any], value: Any, path: tuple[str, ...], schema: dict[str, Any]) -> None:
        if not isinstance(value, list) or not value:
            raise GenerationError(f"{path[-1]} at {path_of(path)} is {shown(value)}; expected a list of schemas")
        parts = [(i, part) for i, part in enumerate(value) if part is not False or path[-1] == "allOf"]
        if not parts:
            raise GenerationError(f"{path[-1]} at {path_of(path)} accepts nothing")
        members = [self.node(part, (*path, str(i)), self.is_part) for i, part in parts]
        node[path[-1]] = [*node.get(path[-1], []), *members]

    def properties(self, node: dict[str, Any], value: Any, path: tuple[str, ...], schema: dict[str, Any]) -> None:
        self.check_object(value, path)
        node["properties"] = {
            name: False if part is False else self.node(part, (*path, name)) for name, part in value.items()
        }

    def pattern_properties(
        self, node: dict[str, Any], value: Any, path: tuple[str, ...], schema: dict[str, Any]
    ) -> None:
        self.check_object(value, path)
        node["patternProperties"] = {
            _anchored(translate_pattern(pattern, f"patternProperties at {path_of(path)}")): (
                False if part is False else self.node(part, (*path, pattern))
            )
            for pattern, part in value.items()
        }

    def additional_properties(
        self, node: dict[str, Any], value: Any, path: tuple[str, ...], schema: dict[str, Any]
    ) -> None:
        node["additionalProperties"] = False if value is False else self.node(value, path)

    def required(self, node: dict[str, Any], value: Any, path: tuple[str, ...], schema: dict[str, Any]) -> None:
        if not isinstance(value, list) or any(not isinstance(name, str) for name in value):
            raise GenerationError(f"required at {path_of(path)} is {shown(value)}; expected a list of names")
        node["required"] = list(dict.fromkeys(value))

    def property_counts(self, node: dict[str, Any], value: Any, path: tuple[str, ...], schema: dict[str, Any]) -> None:
        number, required = count(value, path), {*schema.get("required", ())}
        names = {*schema.get("properties", {})}
        closed = schema.get("additionalProperties") is False and not schema.get("patternProperties")
        if path[-1] == "minProperties":
            if number <= len(required):
                node["minProperties"] = number
                return
            if number > len(required) + 1 or not names <= required:
                raise GenerationError(
                    f"minProperties {number} at {path_of(path)} is not supported: it counts properties that may be "
                    "left out; put those that must be there into required"
                )
        elif not (closed and number >= len(names)) and not names <= required:
            raise GenerationError(
                f"maxProperties {number} at {path_of(path)} is not supported: it counts properties that may be left "
                "out; put all properties into required"
            )
        elif closed and number >= len(names):
            return
        node[path[-1]] = number

    def items(self, node: dict[str, Any], value: Any, path: tuple[str, ...], schema: dict[str, Any]) -> None:
        if not isinstance(value, list):
            node["items"] = False if value is False else self.node(value, path)
            return
        if self.draft == 2020 and "$schema" in (self.schema if isinstance(self.schema, dict) else {}):
            raise GenerationError(f"items at {path_of(path)} is a list, which draft 2020-12 calls prefixItems")
        if "prefixItems" in schema:
            raise GenerationError(f"items at {path_of(path)} is a list beside prefixItems, which means the same")
        self.prefix_items(node, value, path, schema)
        rest = schema.get("additionalItems", True)
        if rest is not True:
            node["items"] = False if rest is False else self.node(rest, (*path[:-1], "additionalItems"))

    def prefix_items(self, node: dict[str, Any], value: Any, path: tuple[str, ...], schema: dict[str, Any]) -> None:
        if not isinstance(value, list):
            raise GenerationError(f"{path[-1]} at {path_of(path)} is {shown(value)}; expected a list of schemas")
        if path[-1] == "prefixItems" and self.draft != 2020:
            raise GenerationError(f"prefixItems at {path_of(path)} is no keyword of draft {self.draft}; use items")
        node["prefixItems"] = [self.node(part, (*path, str(i))) for i, part in enumerate(value)]

    def additional_items(self, node: dict[str, Any], value: Any, path: tuple[str, ...], schema: dict[str, Any]) -> None:
        if not isinstance(schema.get("items"), list) and value is not True:
            raise GenerationError(
                f"additionalItems at {path_of(path)} has no effect without a list in items; leave it out"
            )

    def unique_items(self, node: dict[str, Any], value: Any, path: tuple[str, ...], schema: dict[str, Any]) -> None:
        if value is not False and not (isinstance(schema.get("maxItems"), int) and schema["maxItems"] <= 1):
            raise GenerationError(
                f"uniqueItems at {path_of(path)} is not supported: what was written cannot be compared; use properties "
                "of an object for a set"
            )

    def unevaluated(self, node: dict[str, Any], value: Any, path: tuple[str, ...], schema: dict[str, Any]) -> None:
        plain = {"unevaluatedProperties": "additionalProperties", "unevaluatedItems": "items"}[path[-1]]
        if value is True:
            return
        if schema.keys() & {"$ref", *IN_PLACE} or plain in schema:
            raise GenerationError(f"{path[-1]} at {path_of(path)} is not supported beside other schemas; use {plain}")
        node[plain] = False if value is False else self.node(value, path)

    def counts(self, node: dict[str, Any], value: Any, path: tuple[str, ...], schema: dict[str, Any]) -> None:
        node[path[-1]] = count(value, path)

    def pattern(self, node: dict[str, Any], value: Any, path: tuple[str, ...], schema: dict[str, Any]) -> None:
        if not isinstance(value, str):
            raise GenerationError(f"pattern at {path_of(path)} is {shown(value)}; expected a text")
        self.add_pattern(node, translate_pattern(value, f"pattern at {path_of(path)}"))

    def format(self, node: dict[str, Any], value: Any, path: tuple[str, ...], schema: dict[str, Any]) -> None:
        if not isinstance(value, str) or value not in FORMATS:
            raise GenerationError(
                f"format {shown(value)} at {path_of(path)} is not supported; supported are {', '.join(FORMATS)}"
            )
        self.add_pattern(node, translate_pattern(FORMATS[value], f"format at {path_of(path)}", whole=True))

    def add_pattern(self, node: dict[str, Any], translated: str) -> None:
        if "pattern" in node:
            node.setdefault("allOf", []).append({"pattern": _anchored(translated)})
        else:
            node["pattern"] = _anchored(translated)

    def numbers(self, node: dict[str, Any], value: Any, path: tuple[str, ...], schema: dict[str, Any]) -> None:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise GenerationError(f"{path[-1]} at {path_of(path)} is {shown(value)}; expected a number")
        node[path[-1]] = value

    def multiple(self, node: dict[str, Any], value: Any, path: tuple[str, ...], schema: dict[str, Any]) -> None:
        node["multipleOf"] = positive_multiple(value, path)

    def enumerated(self, node: dict[str, Any], value: Any, path: tuple[str, ...], schema: dict[str, Any]) -> None:
        values = [value] if path[-1] == "const" else value
        if not isinstance(values, list) or not values:
            raise GenerationError(f"enum at {path_of(path)} is {shown(value)}; expected a list of at least one value")
        for each in values:
            check_enumerated(each, path)
        node[path[-1]] = value

    def reference(self, node: dict[str, Any], value: Any, path: tuple[str, ...], schema: dict[str, Any]) -> None:
        node["$ref"] = f"#/$defs/{self.references.name(value, path, self.is_part)}"

    def check_object(self, value: Any, path: tuple[str, ...]) -> None:
        if not isinstance(value, dict):
            raise GenerationError(f"{path[-1]} at {path_of(path)} is {shown(value)}; expected an object of schemas")


Handler = Callable[[_Normalizer, dict[str, Any], Any, tuple[str, ...], dict[str, Any]], None]
N = _Normalizer
HANDLERS: dict[str, Handler] = {
    "type": N.type, "enum": N.enumerated, "const": N.enumerated, "$ref": N.reference, "allOf": N.schemas,
    "anyOf": N.schemas, "oneOf": N.schemas, "properties": N.properties, "patternProperties": N.pattern_properties,
    "additionalProperties": N.additional_properties, "required": N.required, "minProperties": N.property_counts,
    "maxProperties": N.property_counts, "items": N.items, "prefixItems": N.prefix_items,
    "additionalItems": N.additional_items, "uniqueItems": N.unique_items, "unevaluatedProperties": N.unevaluated,
    "unevaluatedItems": N.unevaluated, "minItems": N.counts, "maxItems": N.counts, "minLength": N.counts,
    "maxLength": N.counts, "pattern": N.pattern, "format": N.format, "minimum": N.numbers, "maximum": N.numbers,
    "exclusiveMinimum": N.numbers, "exclusiveMaximum": N.numbers, "multipleOf": N.multiple,
}  # fmt: skip
"""keyword -> how it is enforced"""


def _anchored(translated: str) -> str:
    return f"^{translated}$"


def draft_of(schema: dict[str, Any] | bool) -> int:
    """The draft that `$schema` names, 2020 without one: 6, 7, 2019 or 2020. GenerationError for another one."""
    named = schema.get("$schema") if isinstance(schema, dict) else None
    if named is None:
        return 2020
    for ending, draft in DRAFTS.items():
        if isinstance(named, str) and named.rstrip("#") in (
            f"http://json-schema.org/{ending}",
            f"https://json-schema.org/{ending}",
        ):
            return draft
    raise GenerationError(
        f"$schema is {shown(named)}; supported are drafts 6, 7, 2019-09 and 2020-12 of json-schema.org"
    )


def _is_empty(keyword: str, value: Any) -> bool:
    """Whether a keyword that is not supported forbids nothing."""
    return (keyword.startswith("depend") and value == {}) or (keyword == "propertyNames" and value is True)


def _is_extension(key: str) -> bool:
    """By convention x-… is for tools; llguidance's own key would change how JSON is written."""
    return key.startswith("x-") and key != "x-guidance"
