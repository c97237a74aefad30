# SPDX-License-Identifier: Apache-2.0
"""References inside a JSON Schema: which subschema each means, and which subschemas describe one value together."""

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


def places_of(keyword: str, value: Any, path: Path = ()) -> list[str]:
    """Where a keyword stands, as JSON paths."""
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    results = [path_of((*path, keyword))] if isinstance(value, dict) and keyword in value else []
    return results + [place for key, part in parts for place in places_of(keyword, part, (*path, str(key)))]


class References:
    def __init__(self, schema: Any, draft: int) -> None:
        self.schema, self.draft = schema, draft
        self.places: dict[Path, Any] = {}
        self.anchors: dict[str, Path] = {}
        self._visit(schema, ())
        self.names: dict[Path, str] = {}
        """of the subschemas that something refers to"""
        self.combined: set[Path] = set()
        """subschemas that describe a value together with another one: none of them may close it alone"""
        for path, node in self.places.items():
            if isinstance(node, dict) and _combines(node):
                self._combine(path)

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

    def name(self, reference: Any, path: Path) -> str:
        """The name of the subschema under $defs of the normalized schema."""
        target = self.resolve(reference, path)
        return self.names.setdefault(target, f"r{len(self.names)}")

    def target(self, path: Path) -> Any:
        return self.places[path]

    def _combine(self, path: Path) -> None:
        pending = [path]
        while pending:
            path = pending.pop()
            if path in self.combined:
                continue
            self.combined.add(path)
            node = self.places.get(path)
            if isinstance(node, dict):
                for keyword in IN_PLACE:
                    if isinstance(node.get(keyword), list):
                        pending += [(*path, keyword, str(i)) for i in range(len(node[keyword]))]
                if "$ref" in node:
                    pending.append(self.resolve(node["$ref"], (*path, "$ref")))

    def check_cycles(self, definitions: dict[str, Any]) -> None:
        """GenerationError for a schema that refers to itself before any of the value is written."""
        nodes = {f"#/$defs/{name}": node for name, node in definitions.items()}
        origin = {f"#/$defs/{name}": path for path, name in self.names.items()}
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


def _combines(node: dict[str, Any]) -> bool:
    parts = [k for k in (*IN_PLACE, "$ref") if k in node]
    return "allOf" in node or len(parts) > 1 or bool(parts and node.keys() & OF_OBJECTS)
