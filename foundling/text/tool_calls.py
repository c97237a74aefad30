# SPDX-License-Identifier: Apache-2.0
"""Calls of tools in the text of an answer, in the form that the model's chat template writes them.

hermes (Qwen, Hermes and many others)  <tool_call>\\n{"name": "f", "arguments": {…}}\\n</tool_call>, one after another
mistral                                [TOOL_CALLS] [{"name": "f", "arguments": {…}}, …]
llama3                                 {"name": "f", "parameters": {…}}, the whole answer
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from foundling.limits import ANSWER_CHARS, JSON_DEPTH, TOOL_CALLS


class Style(NamedTuple):
    opening: str
    """what begins the calls; "" where an answer is a call or is none"""
    closing: str
    arguments: str
    """the key of the arguments"""


STYLES = {
    "hermes": Style("<tool_call>", "</tool_call>", "arguments"),
    "mistral": Style("[TOOL_CALLS]", "", "arguments"),
    "llama3": Style("", "", "parameters"),
}


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
    """What an answer says beside its calls, and the calls. A text in which something that begins like a call is none,
    or is cut, has no calls: all of it is content."""
    if len(text) > ANSWER_CHARS.high:
        return text, []
    form = STYLES[style]
    if style == "hermes":
        return _parse_marked(text, form)
    body, content = text, ""
    if form.opening and form.opening in text:  # a special token is left out of a decoded text
        content, _, body = text.partition(form.opening)
    elif style == "mistral" and not text.lstrip().startswith('[{"name"'):
        return text, []
    value = _read(body)
    calls = [_call(part, form) for part in (value if isinstance(value, list) else [value])]
    if style == "llama3" and isinstance(value, list):
        return text, []
    valid = [call for call in calls if call is not None]
    return (content.strip(), valid) if valid and len(valid) == len(calls) else (text, [])


def _parse_marked(text: str, form: Style) -> tuple[str, list[ToolCall]]:
    content, *parts = text.split(form.opening)
    if len(parts) > TOOL_CALLS.high:
        return text, []
    calls, outside = list[ToolCall](), [content]
    for part in parts:
        body, closed, rest = part.partition(form.closing)
        call = _call(_read(body), form) if closed else None
        if call is None:
            return text, []
        calls.append(call)
        outside.append(rest)
    return "".join(outside).strip() if calls else text, calls


def _read(text: str) -> Any:
    try:
        if text.count("{") + text.count("[") > 1 << 16:
            return None
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


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
    An answer of llama3 is content unless it begins with a brace, one of mistral unless with [{."""
    form = STYLES[style]
    if not form.opening:
        return 0 if text.lstrip()[:1] in ("{", "") else len(text)
    if style == "mistral" and text.lstrip()[:1] in ("[", ""):
        return 0
    at = text.find(form.opening)
    if at >= 0:
        return len(text[:at].rstrip())
    begun = max((n for n in range(1, len(form.opening)) if text.endswith(form.opening[:n])), default=0)
    return len(text[: len(text) - begun].rstrip())
