# SPDX-License-Identifier: Apache-2.0
"""References inside a JSON Schema: which subschema each means, and which schemas describe a value in several parts."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import unquote

from foundling.errors import GenerationError
from foundling.limits import shown

Path = tuple[str, ...]
IN_PLACE = ("allOf", "anyOf", "oneOf")
OF_OBJECTS = frozenset(
    ("properties", "patternProperties", "additionalProperties", "required", "minProperties", "maxProperties",
     "unevaluatedProperties")
)  # fmt: skip
MAPS = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
LISTS = ("allOf", "anyOf", "oneOf", "prefixItems", "items")
SINGLE = ("items", "additionalItems", "additionalProperties", "unevaluatedItems", "unevaluatedProperties", "contains",
          "propertyNames", "not", "if", "then", "else")  # fmt: skip


def path_of(path: Path) -> str:
    """A JSON path: $.properties.age"""
    return "$" + "".join(
        f".{p}" if re.fullmatch(r"[A-Za-z_$][\w$-]*", p) else f"[{p if p.isdecimal() else shown(p)}]" for p in path
    )


class References:
    def __init__(self, schema: Any) -> None:
        self.schema = schema
        self.places: dict[Path, Any] = {}
        self.anchors: dict[str, Path] = {}
        self._visit(schema, ())
        self.names: dict[tuple[Path, bool], str] = {}
        """of the subschemas that something refers to; whether as a part of a schema"""
        self.pending = list[tuple[Path, bool]]()
        """those that nobody has asked for yet"""

    def _visit(self, node: Any, path: Path) -> None:
        pending: list[tuple[Any, Path]] = [(node, path)]
        while pending:
            node, path = pending.pop()
            self.places[path] = node
            if not isinstance(node, dict):
                continue
            if isinstance(anchor := node.get("$anchor"), str):
                self.anchors[anchor] = path
            for keyword, value in node.items():
                if keyword in MAPS and isinstance(value, dict):
                    pending += [(part, (*path, keyword, name)) for name, part in value.items()]
                elif keyword in LISTS and isinstance(value, list):
                    pending += [(part, (*path, keyword, str(i))) for i, part in enumerate(value)]
                elif keyword in SINGLE:
                    pending.append((value, (*path, keyword)))

    def resolve(self, reference: Any, path: Path) -> Path:
        """Where the subschema is. GenerationError for one that is elsewhere or nowhere."""
        if not isinstance(reference, str):
            raise GenerationError(f"$ref at {path_of(path)} is {shown(reference)}; expected a text")
        if not reference.startswith("#"):
            root = self.schema.get("$id") if isinstance(self.schema, dict) else None
            base, _, fragment = reference.partition("#")
            if base != root:
                raise GenerationError(
                    f"$ref {shown(reference)} at {path_of(path)} is in another document, and none is fetched; put it "
                    "under $defs"
                )
            reference = f"#{fragment}"
        fragment = unquote(reference[1:])
        if fragment and not fragment.startswith("/"):
            target = self.anchors.get(fragment)
        else:
            target = tuple(p.replace("~1", "/").replace("~0", "~") for p in fragment.split("/")[1:])
        if target is None or target not in self.places:
            raise GenerationError(f"$ref {shown(reference)} at {path_of(path)} leads to no schema")
        return target

    def name(self, reference: Any, path: Path, is_part: bool) -> str:
        """The name of the subschema under $defs of the normalized schema."""
        target = self.resolve(reference, path), is_part
        if target not in self.names:
            self.names[target] = f"r{len(self.names)}"
            self.pending.append(target)
        return self.names[target]

    def check_cycles(self, definitions: dict[str, Any]) -> None:
        """GenerationError for a schema that refers to itself before any of the value is written."""
        nodes = {f"#/$defs/{name}": node for name, node in definitions.items()}
        origin = {f"#/$defs/{name}": path for (path, _), name in self.names.items()}
        done = set[str]()
        for start in nodes:
            stack: list[tuple[str, bool]] = [(start, False)]
            under_way = set[str]()
            while stack:
                name, leaves = stack.pop()
                if leaves:
                    under_way.discard(name)
                    done.add(name)
                    continue
                if name in under_way:
                    raise GenerationError(f"$ref at {path_of(origin[name])} leads back to itself without end")
                if name in done or name not in nodes:
                    continue
                under_way.add(name)
                stack.append((name, True))
                stack += [(inner, False) for inner in _in_place(nodes[name])]


def _in_place(node: Any) -> list[str]:
    if not isinstance(node, dict):
        return []
    results = [node["$ref"]] if "$ref" in node else []
    return results + [ref for keyword in IN_PLACE for part in node.get(keyword, []) for ref in _in_place(part)]


def has_parts(node: dict[str, Any]) -> bool:
    """Whether several schemas describe a value together, so that none of them knows all of its properties. `allOf` of
    one schema is that schema, as Pydantic writes a reference that has a description."""
    parts, members = [k for k in (*IN_PLACE, "$ref") if k in node], node.get("allOf")
    several = len(parts) > 1 or (isinstance(members, list) and len(members) > 1)
    return several or bool(parts and node.keys() & OF_OBJECTS)
