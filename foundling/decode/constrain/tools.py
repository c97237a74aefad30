# SPDX-License-Identifier: Apache-2.0
"""Grammars of calls of tools, in the form that the model's chat template writes (text/tool_calls.py)."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from foundling.decode.constrain.constraint import FREE_TEXT, MARK, Constraint, json_rule, quote
from foundling.decode.constrain.schema_keywords import normalize_schema
from foundling.errors import GenerationError
from foundling.limits import PATTERN_CHARS, TOOLS, shown
from foundling.text.tool_calls import STYLES

MOST_CALLS = 8
"""of one answer: a weak model repeats a call until nothing is left of its tokens"""
NAME = re.compile(r"[A-Za-z0-9_.\-]{1,128}")


def tool_calls(
    tools: Sequence[Mapping[str, Any]],
    *,
    style: str = "hermes",
    required: bool = False,
    name: str | None = None,
    parallel: bool = True,
) -> Constraint:
    """Calls of `tools`, [{"type": "function", "function": {"name", "parameters": a JSON Schema of an object}}] or the
    inner objects alone. The arguments always follow their schema. `name`: exactly one call, of this tool; `required`:
    one call or, with `parallel`, more; neither: free text, or free text and calls. GenerationError for an invalid
    tool, or one whose schema cannot be enforced."""
    if style not in STYLES:
        raise GenerationError(f"style is {shown(style)}; expected {', '.join(STYLES)}")
    functions = _functions(tools)
    if name is not None and name not in functions:
        raise GenerationError(f"the tool {shown(name)} is unknown; tools are {', '.join(functions)}")
    chosen = functions if name is None else {name: functions[name]}
    arguments = STYLES[style].arguments
    rules, n_chars = [f"call: {' | '.join(f'call_{i}' for i in range(len(chosen)))}\n"], 0
    for i, (tool, schema) in enumerate(chosen.items()):
        try:
            normal = normalize_schema(schema)
        except GenerationError as error:
            raise GenerationError(f"the parameters of the tool {tool}: {error}") from None
        n_chars += len(json.dumps(schema, ensure_ascii=False))
        PATTERN_CHARS.check(n_chars, "the length of the tools' schemas", GenerationError)
        begin = json.dumps({"name": tool, arguments: 0}, ensure_ascii=False)[:-2]
        rules.append(f'call_{i}: {quote(begin)} {json_rule(normal)} "}}"\n')
    free, several = not required and name is None, parallel and name is None
    marks = tuple(mark for mark in (STYLES[style].opening, STYLES[style].closing) if mark)
    source = json.dumps({"tools": chosen, "free": free, "several": several}, ensure_ascii=False)
    return Constraint("".join(rules), "tools", source, _frame(style, free, several), marks, style=style)


def _frame(style: str, free: bool, several: bool) -> str:
    """The rules above `call`."""
    opening, closing, text = MARK % 0, MARK % 1, f"text: TEXT\n{FREE_TEXT}"
    if style == "hermes":
        body = rf'"\n" call "\n" {closing}'
        more = rf'("\n" {opening} {body}){{0,{MOST_CALLS - 1}}}' if several else ""
        return f"start: text | until_mark {body} {more}\n{text}" if free else f"start: {opening} {body} {more}\n"
    if style == "mistral":
        more = f'(", " call){{0,{MOST_CALLS - 1}}}' if several else ""
        body = f'" "? "[" call {more} "]"'
        return f"start: text | until_mark {body}\n{text}" if free else f"start: {opening} {body}\n"
    # a text whose first character beside white space is a brace would be read as a call
    return "start: call | prose\nprose: /[ \\t\\n\\r]*([^{ \\t\\n\\r](?s:.)*)?/\n" if free else "start: call\n"


def _functions(tools: Any) -> dict[str, dict[str, Any]]:
    """name -> schema of the arguments"""
    if isinstance(tools, str | Mapping) or not isinstance(tools, Sequence) or not tools:
        raise GenerationError(f"tools are {shown(tools)}; expected a list of at least one")
    TOOLS.check(len(tools), "the number of tools", GenerationError)
    functions = dict[str, dict[str, Any]]()
    for number, tool in enumerate(tools):
        inner = _inner(tool)
        name = inner.get("name")
        if not isinstance(name, str) or not NAME.fullmatch(name):
            raise GenerationError(
                f"the name of tools[{number}] is {shown(name)}; expected 1 to 128 letters, digits, _, - and ."
            )
        if name in functions:
            raise GenerationError(f"two tools are called {name}; rename one")
        functions[name] = _parameters(inner, name)
    return functions


def _inner(tool: Any) -> Mapping[str, Any]:
    inner = tool.get("function", tool) if isinstance(tool, Mapping) else None
    if not isinstance(inner, Mapping) or tool.get("type", "function") != "function":
        raise GenerationError(f'a tool is {shown(tool)}; expected {{"type": "function", "function": {{"name", …}}}}')
    return inner


def _parameters(function: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The schema of an object; a tool without parameters takes none."""
    schema = function.get("parameters")
    if schema is None or schema == {}:
        return {"type": "object", "properties": {}, "additionalProperties": False}
    if not isinstance(schema, dict) or schema.get("type", "object") != "object":
        raise GenerationError(
            f"the parameters of the tool {name} are {shown(schema)}; expected a JSON Schema of an object"
        )
    return {"type": "object", **schema}
