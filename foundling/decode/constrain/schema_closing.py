# SPDX-License-Identifier: Apache-2.0
"""What a JSON Schema leaves open is closed: further properties, items, numbers of any size, values of any depth.

A schema with parts that describe a value together (`allOf`, `$ref` beside `properties`) is closed as a whole, by one
more part: no part knows the properties that the others describe.
"""

from __future__ import annotations

from typing import Any

from foundling.decode.constrain.schema_values import numeric_bounds

LEVELS = 8
"""of arrays and objects in a value of which the schema says nothing"""
FREE = "#/$defs/free"
"""how a reference to such a value begins; its levels follow"""


def closed(node: dict[str, Any]) -> dict[str, Any]:
    """A normalized schema, with what it leaves open closed."""
    if not node:
        return {"$ref": f"{FREE}{LEVELS}"}
    types = node.setdefault("type", ["null", "boolean", "number", "string", "array", "object"])
    types = [types] if isinstance(types, str) else types
    numeric_bounds(node, types)
    if "array" in types and "items" not in node:
        node["items"] = {"$ref": f"{FREE}{LEVELS - 1}"}
    if "object" in types and "additionalProperties" not in node:
        names = node.get("properties", {})
        fixed = (names or node.get("patternProperties")) and node.get("minProperties", 0) <= len(names)
        all_named = all(key in names for key in node.get("required", []))
        node["additionalProperties"] = False if fixed and all_named else {"$ref": f"{FREE}{LEVELS - 1}"}
    return node


def closing_part(node: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    """The part that closes a normalized schema with parts. Of what one of them surely describes it says nothing;
    alternatives (`anyOf`, `oneOf`) may have properties of their own, whose depth it bounds."""
    parts, references = [node], set[str]()
    for part in parts:  # which grows: those that hold wherever it does
        parts += part.get("allOf", [])
        if "$ref" in part and part["$ref"] not in references:
            references.add(part["$ref"])
            parts.append(definitions[part["$ref"].removeprefix("#/$defs/")])
    if any(part.keys() & {"enum", "const"} for part in parts):
        return {}
    whole: dict[str, Any] = {
        keyword: {name: {} for part in parts for name in part.get(keyword, {})}
        for keyword in ("properties", "patternProperties")
    }
    whole["required"] = list(dict.fromkeys(name for part in parts for name in part.get("required", [])))
    whole["minProperties"] = max(part.get("minProperties", 0) for part in parts)
    whole |= {keyword: {} for keyword in ("items", "additionalProperties") if any(keyword in part for part in parts)}
    whole |= next(({"type": part["type"]} for part in parts if "type" in part), {})
    if any(part.keys() & {"anyOf", "oneOf"} for part in parts):
        whole.setdefault("additionalProperties", {"$ref": f"{FREE}{LEVELS - 1}"})
    return closed(whole)


def free_values() -> dict[str, Any]:
    """The definitions of values that a schema leaves open."""
    plain: dict[str, Any] = {"type": ["null", "boolean", "string", "number"]}
    numeric_bounds(plain, plain["type"])
    levels: dict[str, Any] = {"free0": plain}
    for level in range(1, LEVELS + 1):
        inner = {"$ref": f"{FREE}{level - 1}"}
        nested = [{"type": "array", "items": inner}, {"type": "object", "additionalProperties": inner}]
        levels[f"free{level}"] = {"anyOf": [plain, *nested]}
    return levels
