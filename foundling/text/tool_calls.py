# SPDX-License-Identifier: Apache-2.0
"""Calls of tools in the text of an answer, in the form that the model's chat template writes them.

hermes (Qwen, Hermes and many others)  <tool_call>\\n{"name": "f", "arguments": {…}}\\n</tool_call>, one after another
mistral                                [TOOL_CALLS] [{"name": "f", "arguments": {…}}, …]
llama3                                 {"name": "f", "parameters": {…}}, the whole answer
"""

from __future__ import annotations

import json
import math
import re
from typing import Any, NamedTuple

from foundling.limits import ANSWER_CHARS, JSON_DEPTH, TOOL_CALLS, shown


class Style(NamedTuple):
    opening: str
    """what begins the calls; "" where an answer is a call as a whole, or has none"""
    closing: str
    arguments: str
    """the key of the arguments"""


STYLES = {
    "hermes": Style("<tool_call>", "</tool_call>", "arguments"),
    "mistral": Style("[TOOL_CALLS]", "", "arguments"),
    "llama3": Style("", "", "parameters"),
}


SPACE = re.compile(r"[ \t\n\r]*")
"""of JSON"""


def finite(text: str) -> float:
    """ValueError for NaN, infinities and what is beyond all floats."""
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{shown(text)} is no number of JSON")
    return value


DECODER = json.JSONDecoder(parse_float=finite, parse_constant=finite)


class ToolCall(NamedTuple):
    name: str
    arguments: str
    """an object, as JSON"""


def style_of(chat_template: str | None) -> str:
    """The style that a chat template writes; hermes where it writes none."""
    template = chat_template or ""
    if "[TOOL_CALLS]" in template:
        return "mistral"
    if (
        "<tool_call>" not in template
        and '"parameters"' in template
        and ("ipython" in template or "python_tag" in template)
    ):
        return "llama3"
    return "hermes"


def parse_tool_calls(text: str, style: str) -> tuple[str, list[ToolCall]]:
    """What an answer says beside its calls, and the calls. A text in which something that begins like a call is
    invalid, or is cut, has no calls: all of it is content. Marks that are special tokens must be written out in
    `text`."""
    if len(text) > ANSWER_CHARS.high:
        return text, []
    form = STYLES[style]
    if style == "hermes":
        return _parse_marked(text, form)
    content, marked, body = text.partition(form.opening) if form.opening else ("", "", text)
    if form.opening and not marked:
        return text, []
    value = _read(body)
    calls = [_call(part, form) for part in (value if isinstance(value, list) else [value])]
    if style == "llama3" and isinstance(value, list):
        return text, []
    valid = [call for call in calls if call is not None]
    return (content.strip(), valid) if valid and len(valid) == len(calls) else (text, [])


def _parse_marked(text: str, form: Style) -> tuple[str, list[ToolCall]]:
    """The marks are those outside of the JSON: a text in the arguments may have the same characters."""
    calls, outside, at = list[ToolCall](), list[str](), 0
    while (opening := text.find(form.opening, at)) >= 0:
        value, end = _read_from(text, opening + len(form.opening))
        call = _call(value, form)
        if call is None or len(calls) == TOOL_CALLS.high or not text.startswith(form.closing, end):
            return text, []
        calls.append(call)
        outside.append(text[at:opening])
        at = end + len(form.closing)
    return "".join([*outside, text[at:]]).strip() if calls else text, calls


def _read_from(text: str, at: int) -> tuple[Any, int]:
    """The JSON value that begins there, None without one, and where something other than white space follows it."""
    start = SPACE.match(text, at).end()  # pyright: ignore[reportOptionalMemberAccess]
    try:
        value, end = DECODER.raw_decode(text, start)
    except (ValueError, RecursionError):
        return None, start
    return value, SPACE.match(text, end).end()  # pyright: ignore[reportOptionalMemberAccess]


def _read(text: str) -> Any:
    value, end = _read_from(text, 0)
    return value if end == len(text) else None


def _call(value: Any, form: Style) -> ToolCall | None:
    if not isinstance(value, dict) or not isinstance(value.get("name"), str) or _depth(value) > JSON_DEPTH.high:
        return None
    arguments = value.get(form.arguments, {})
    return ToolCall(value["name"], json.dumps(arguments, ensure_ascii=False)) if isinstance(arguments, dict) else None


def _depth(value: Any) -> int:
    level, depth = [value], 0
    while level:
        level = [
            part
            for each in level
            if isinstance(each, dict | list)
            for part in (each.values() if isinstance(each, dict) else each)
        ]
        depth += 1
    return depth


def shown_length(text: str, style: str) -> int:
    """How many characters of an answer under way are surely content: those before a call, or what may be its beginning.
    An answer of llama3 is content unless it begins with a brace."""
    form = STYLES[style]
    if not form.opening:
        return 0 if text.lstrip()[:1] in ("{", "") else len(text)
    at = text.find(form.opening)
    if at >= 0:
        return len(text[:at].rstrip())
    begun = max((n for n in range(1, len(form.opening)) if text.endswith(form.opening[:n])), default=0)
    return len(text[: len(text) - begun].rstrip())
