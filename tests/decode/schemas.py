# SPDX-License-Identifier: Apache-2.0
"""Random JSON Schemas of the keywords that are enforced, from a seed."""

import random
from typing import Any

PATTERNS = [
    "^[a-f]{1,6}$",
    "^x",
    "y$",
    "z",
    "^(yes|no)$",
    "^[^0-9]{2,5}$",
    r"^\d{3}-\d{2}$",
    r"^\w+ \w+$",
    "^a|b$",
    "(ab)+",
]
FORMATS = ["date", "time", "date-time", "duration", "email", "ipv4", "ipv6", "uuid", "hostname", "uri", "json-pointer"]
WORDS = ["id", "name", "Größe", "a b", 'q"t', "tags", "x", "y", "unit", "naïve/key", "$ref", "type"]


class SchemaMaker:
    def __init__(self, seed: int) -> None:
        self.draw = random.Random(seed)
        self.definitions: dict[str, Any] = {}

    def schema(self) -> dict[str, Any]:
        root = self.node(3)
        if self.definitions:
            root["$defs"] = self.definitions
        if self.draw.random() < 0.2:
            root["$schema"] = "https://json-schema.org/draft/2020-12/schema"
        return root

    def node(self, depth: int) -> dict[str, Any]:
        leaves = [self.string, self.number, self.integer, self.enum, self.const, self.types]
        nested = [self.object, self.object, self.array, self.any_of, self.one_of, self.all_of, self.reference]
        node = self.draw.choice(leaves + (nested * 2 if depth > 0 else []))(depth)
        if self.draw.random() < 0.2:
            node |= {"title": "a title", "description": "what it is", "x-note": 1}
        return node

    def string(self, depth: int) -> dict[str, Any]:
        node: dict[str, Any] = {"type": "string"}
        kind = self.draw.randrange(4)
        if kind == 0:
            node["pattern"] = self.draw.choice(PATTERNS)
        elif kind == 1:
            node["format"] = self.draw.choice(FORMATS)
        if kind in (2, 3):
            node["minLength"] = self.draw.randrange(4)
            node["maxLength"] = node["minLength"] + self.draw.randrange(6)
        return node

    def number(self, depth: int) -> dict[str, Any]:
        node: dict[str, Any] = {"type": "number"}
        low = self.draw.choice([-1000, -1.5, 0, 0.25, 3, 99.9])
        if self.draw.random() < 0.6:
            node[self.draw.choice(["minimum", "exclusiveMinimum"])] = low
        if self.draw.random() < 0.6:
            node[self.draw.choice(["maximum", "exclusiveMaximum"])] = low + self.draw.choice([0.5, 1, 17.25, 1000])
        if self.draw.random() < 0.2:
            node["multipleOf"] = self.draw.choice([0.5, 0.25, 0.1, 2])
            node.pop("exclusiveMinimum", None), node.pop("exclusiveMaximum", None)
        return node

    def integer(self, depth: int) -> dict[str, Any]:
        node: dict[str, Any] = {"type": "integer"}
        low = self.draw.randrange(-50, 50)
        if self.draw.random() < 0.7:
            node[self.draw.choice(["minimum", "exclusiveMinimum"])] = low
        if self.draw.random() < 0.7:
            node[self.draw.choice(["maximum", "exclusiveMaximum"])] = low + self.draw.randrange(20, 300)
        if self.draw.random() < 0.3:
            node["multipleOf"] = self.draw.choice([2, 3, 7, 10])
        return node

    def value(self, depth: int) -> Any:
        kind = self.draw.randrange(8 if depth > 0 else 6)
        if kind < 6:
            return [None, True, self.draw.randrange(-99, 99), self.draw.choice(WORDS), 1.5, "a\n\t\\é🙂"][kind]
        if kind == 6:
            return [self.value(depth - 1) for _ in range(self.draw.randrange(3))]
        return {word: self.value(depth - 1) for word in self.draw.sample(WORDS, 2)}

    def enum(self, depth: int) -> dict[str, Any]:
        return {"enum": [self.value(1) for _ in range(self.draw.randrange(1, 6))]}

    def const(self, depth: int) -> dict[str, Any]:
        return {"const": self.value(2)}

    def types(self, depth: int) -> dict[str, Any]:
        names = self.draw.sample(["null", "boolean", "integer", "string"], 2)
        return {"type": names, "maxLength": 5} if "string" in names else {"type": names}

    def object(self, depth: int) -> dict[str, Any]:
        names = self.draw.sample(WORDS, self.draw.randrange(1, 5))
        node: dict[str, Any] = {"type": "object", "properties": {name: self.node(depth - 1) for name in names}}
        node["required"] = [name for name in names if self.draw.random() < 0.6]
        kind = self.draw.randrange(6)
        if kind == 0:
            node["additionalProperties"] = self.node(0)
        elif kind == 1:
            node["additionalProperties"] = False
        elif kind == 2:
            node["patternProperties"] = {"^k_": self.node(0), "^m[0-9]$": {"type": "boolean"}}
        elif kind == 3:
            node["required"].append("further")
        elif kind == 4:
            node["required"] = names
            node["minProperties"] = self.draw.choice([1, len(names)])
            node["maxProperties"] = len(names) + self.draw.randrange(2)
        return node

    def array(self, depth: int) -> dict[str, Any]:
        node: dict[str, Any] = {"type": "array"}
        if self.draw.random() < 0.3:
            node["prefixItems"] = [self.node(depth - 1) for _ in range(self.draw.randrange(1, 3))]
        node["items"] = False if "prefixItems" in node and self.draw.random() < 0.3 else self.node(depth - 1)
        if node["items"] is not False:
            node["minItems"] = self.draw.randrange(3)
            node["maxItems"] = node["minItems"] + self.draw.randrange(1, 3)
        return node

    def any_of(self, depth: int) -> dict[str, Any]:
        return {"anyOf": [self.node(depth - 1) for _ in range(self.draw.randrange(2, 4))]}

    def one_of(self, depth: int) -> dict[str, Any]:
        if self.draw.random() < 0.5:
            return {"oneOf": [self.integer(0), {"type": "boolean"}, self.string(0)]}
        kinds = [self.object(depth - 1) for _ in range(2)]
        for name, node in zip("ab", kinds, strict=True):
            node["properties"] = {"kind": {"const": name}, **node["properties"]}
            node["required"] = ["kind", *node["required"]]
            node.pop("maxProperties", None), node.pop("minProperties", None)
        return {"oneOf": kinds}

    def all_of(self, depth: int) -> dict[str, Any]:
        if self.draw.random() < 0.4:
            return {"allOf": [{"type": "integer", "minimum": -5}, {"maximum": 400}], "minimum": 0}
        return {
            "allOf": [
                {"type": "object", "properties": {"id": self.node(0)}, "required": ["id"]},
                {"properties": {"tags": {"type": "array", "items": self.node(0), "maxItems": 2}}},
            ],
            "additionalProperties": self.draw.choice([True, {"type": ["integer", "array", "string", "object"]}]),
        }  # fmt: skip

    def reference(self, depth: int) -> dict[str, Any]:
        name = f"d{len(self.definitions)}"
        self.definitions[name] = {}
        if self.draw.random() < 0.5:
            self.definitions[name] = {
                "type": "object", "properties": {"value": self.node(0), "next": {"$ref": f"#/$defs/{name}"}},
                "required": ["value"], "additionalProperties": False,
            }  # fmt: skip
        else:
            self.definitions[name] = self.node(depth - 1)
        return {"$ref": f"#/$defs/{name}"}
