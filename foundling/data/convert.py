# SPDX-License-Identifier: Apache-2.0
"""From a row of a file to the fields of an example: one function for each shape of rows, which takes the row and its
columns by role, and returns the fields or a `Skip`."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from foundling.data.formats import as_text
from foundling.data.streams import Skip
from foundling.text.answers import NO_ANSWER

Fields = dict[str, Any]
Convert = Callable[[Mapping[str, Any], Mapping[str, str]], "Fields | Skip"]

ROLES = {
    "system": "system", "developer": "developer", "user": "user", "human": "user", "prompter": "user",
    "assistant": "assistant", "gpt": "assistant", "model": "assistant", "bot": "assistant", "chatgpt": "assistant",
    "function_call": "assistant", "tool": "tool", "function": "tool", "function_response": "tool",
    "observation": "tool",
}  # fmt: skip
"""of OpenAI's messages and of ShareGPT's `from`"""
KEPT = ("name", "tool_calls", "tool_call_id", "reasoning_content", "weight")


def messages(row: Mapping[str, Any], columns: Mapping[str, str]) -> Fields | Skip:
    """OpenAI's {"role", "content"} or ShareGPT's {"from", "value"}; what follows the last answer is left out."""
    value = row.get(columns["messages"])
    if not isinstance(value, list) or not value:
        return Skip(NO_ANSWER, f"{columns['messages']!r} is not a list of messages")
    chat = list[Fields]()
    if isinstance(system := row.get(columns.get("system", "")), str) and system.strip():
        chat.append({"role": "system", "content": system})
    for message in value:
        plain = _message(message)
        if isinstance(plain, Skip):
            return plain
        chat.append(plain)
    while chat and chat[-1]["role"] != "assistant":
        chat.pop()
    if not chat:
        return Skip(NO_ANSWER, "no message is of the role 'assistant'")
    tools = row.get(columns.get("tools", ""))
    return {"messages": chat} | ({"tools": tools} if isinstance(tools, list) and tools else {})


def _message(message: Any) -> Fields | Skip:
    if not isinstance(message, Mapping):
        return Skip("a message is not an object")
    role = ROLES.get(str(message.get("role", message.get("from"))).lower())
    if role is None:
        named = message.get("role", message.get("from"))
        return Skip("a message of an unknown role", f"{str(named)[:40]!r}, expected one of {', '.join(ROLES)}")
    content = message.get("content", message.get("value"))
    if isinstance(content, list):  # OpenAI's parts
        parts = [part.get("text") if isinstance(part, Mapping) else part for part in content]
        content = None if None in parts else "".join(map(str, parts))
    kept = {name: message[name] for name in KEPT if message.get(name) is not None}
    if content is None and kept.get("tool_calls"):
        content = ""
    text = as_text(content, "content")
    if isinstance(text, Skip):
        return Skip("a message that is not text", text.detail)
    if role == "assistant" and not text.strip() and not kept.get("tool_calls"):
        return Skip("a chat with an empty answer")
    return {"role": role, "content": text, **kept}


def prompt_and_answer(row: Mapping[str, Any], columns: Mapping[str, str]) -> Fields | Skip:
    """Of prompt and completion, question and answer, source and target, and Alpaca's instruction, input and output."""
    prompt, answer = _text(row, columns["prompt"]), _text(row, columns["answer"])
    for text in (prompt, answer):
        if isinstance(text, Skip):
            return text
    more = row.get(columns.get("input", ""))
    source = f"{prompt}\n\n{more}" if isinstance(more, str) and more.strip() else prompt
    system = row.get(columns.get("system", ""))
    fields: Fields = {"source": source, "target": answer}
    return fields | ({"system": system} if isinstance(system, str) and system.strip() else {})


def chat_of_one_turn(row: Mapping[str, Any], columns: Mapping[str, str]) -> Fields | Skip:
    fields = prompt_and_answer(row, columns)
    if isinstance(fields, Skip):
        return fields
    system = [{"role": "system", "content": fields["system"]}] if "system" in fields else []
    turn = [{"role": "user", "content": fields["source"]}, {"role": "assistant", "content": fields["target"]}]
    return {"messages": [*system, *turn]}


def source_and_target(row: Mapping[str, Any], columns: Mapping[str, str]) -> Fields | Skip:
    fields = prompt_and_answer(row, columns)
    if isinstance(fields, Skip) or "system" not in fields:
        return fields
    return {"source": f"{fields['system']}\n\n{fields['source']}", "target": fields["target"]}


def translation(row: Mapping[str, Any], columns: Mapping[str, str]) -> Fields | Skip:
    """A dict of two languages, the first of which is the source."""
    value = row.get(columns["translation"])
    if not isinstance(value, Mapping) or len(value) != 2:
        return Skip("not a translation between two languages")
    first, second = value
    return prompt_and_answer(value, {"prompt": first, "answer": second})


def preference(row: Mapping[str, Any], columns: Mapping[str, str]) -> Fields | Skip:
    """A prompt and its completions, the best first: `chosen` and `rejected`, or a list `ranked`. Each is a text, or a
    conversation that ends with it; a prompt that is no column is what these begin with alike."""
    if "ranked" in columns:
        values = row.get(columns["ranked"])
        if not isinstance(values, list) or len(values) < 2:
            return Skip("fewer than two completions", f"{columns['ranked']!r} is no list of two or more")
    else:
        values = [row.get(columns[role]) for role in ("chosen", "rejected")]
    asked = _messages(row.get(columns.get("prompt", "")))
    if isinstance(asked, Skip):
        return asked
    while asked and asked[-1]["role"] == "assistant":  # an answer that some data sets repeat here
        asked.pop()
    chats = list[list[Fields]]()
    for value in values:
        chat = _completed(value, asked)
        if isinstance(chat, Skip):
            return chat
        chats.append(chat)
    first, completions = chats[0][:-1], [chat[-1]["content"] for chat in chats]
    if not any(message["content"].strip() for message in first):
        return Skip("completions without a prompt", "expected a prompt, or conversations that begin alike")
    if any(chat[:-1] != first for chat in chats):
        return Skip("completions of different prompts")
    if len(set(completions)) < len(completions):
        return Skip("equal completions")
    if isinstance(system := row.get(columns.get("system", "")), str) and system.strip():
        first = [{"role": "system", "content": system}, *(m for m in first if m["role"] != "system")]
    return {"messages": first, "completions": completions}


def prompt(row: Mapping[str, Any], columns: Mapping[str, str]) -> Fields | Skip:
    """A text or a conversation to be answered, without an answer that stands there already; `row` has all that the row
    has, with `prompt` as the text of the last message and `answer` where a column says what is right."""
    asked = _messages(row.get(columns["asked"]))
    if isinstance(asked, Skip):
        return asked
    while asked and asked[-1]["role"] == "assistant":
        asked.pop()
    if not asked or not str(asked[-1]["content"]).strip():
        return Skip("an empty prompt")
    if isinstance(system := row.get(columns.get("system", "")), str) and system.strip():
        asked = [{"role": "system", "content": system}, *(m for m in asked if m["role"] != "system")]
    own = {name: value for name, value in row.items() if value is not None}
    own["prompt"] = str(asked[-1]["content"])
    if (right := row.get(columns.get("right", ""))) is not None:
        own["answer"] = right
    return {"messages": asked, "row": own}


TURN = re.compile(r"(?:^|\n\n)(Human|Assistant): ?")
"""of Anthropic's transcripts"""


def _messages(value: Any) -> list[Fields] | Skip:
    """Those of a list, or of one text: a transcript, or what a user asks."""
    if value is None:
        return []
    if isinstance(value, str):
        parts = TURN.split(value)
        if len(parts) < 3 or parts[0].strip():
            return [{"role": "user", "content": value}]
        turns = zip(parts[1::2], parts[2::2], strict=True)
        plain = [{"role": ROLES[name.lower()], "content": content.strip()} for name, content in turns]
        return plain if plain[-1]["content"] else plain[:-1]
    out = list[Fields]()
    for message in value if isinstance(value, list) else [value]:
        plain = _message(message)
        if isinstance(plain, Skip):
            return plain
        out.append(plain)
    return out


def _completed(value: Any, asked: list[Fields]) -> list[Fields] | Skip:
    """All messages of a completion, the completion last."""
    if isinstance(value, str) and not TURN.match(value):
        value = {"role": "assistant", "content": value}
    chat = _messages(value)
    if isinstance(chat, Skip):
        return chat
    if chat and all(message["role"] == "assistant" for message in chat):
        chat = [*asked, *chat]
    if not chat or chat[-1]["role"] != "assistant":
        return Skip(NO_ANSWER, "a completion ends with no message of the role 'assistant'")
    if chat[-1].get("tool_calls"):
        return Skip("a completion that calls tools")
    return chat


def text(row: Mapping[str, Any], columns: Mapping[str, str]) -> Fields | Skip:
    value = _text(row, columns["text"])
    return value if isinstance(value, Skip) else {"text": value}


def classify(row: Mapping[str, Any], columns: Mapping[str, str]) -> Fields | Skip:
    label = as_label(row.get(columns["label"]))
    if label is None:
        return Skip("no label", f"{columns['label']!r} is empty, a list or an object")
    return _texts(row, columns, {"label": label})


def regress(row: Mapping[str, Any], columns: Mapping[str, str]) -> Fields | Skip:
    value = as_number(row.get(columns["label"]))
    if value is None:
        return Skip("no number", f"{columns['label']!r} is not a finite number")
    return _texts(row, columns, {"value": value})


def _texts(row: Mapping[str, Any], columns: Mapping[str, str], target: Fields) -> Fields | Skip:
    fields: Fields = {}
    for role in ("text", "pair"):
        if role in columns:
            value = _text(row, columns[role])
            if isinstance(value, Skip):
                return value
            fields[role] = value
    return fields | target


def tag(row: Mapping[str, Any], columns: Mapping[str, str]) -> Fields | Skip:
    words, tags = row.get(columns["words"]), row.get(columns["tags"])
    if not isinstance(words, list) or not isinstance(tags, list) or not words:
        return Skip("no words or no tags")
    if len(words) != len(tags):
        return Skip("other numbers of words and tags", f"{len(words)} words, {len(tags)} tags")
    plain, labels = [as_text(word, "word") for word in words], [as_label(name) for name in tags]
    if None in labels or any(isinstance(word, Skip) or not word.strip() for word in plain):
        return Skip("a word or tag that is empty or no text")
    return {"words": plain, "tags": labels}


def _text(row: Mapping[str, Any], column: str) -> str | Skip:
    value = row.get(column)
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value)
    if isinstance(value, list) and value and isinstance(value[0], str):  # several right answers
        value = value[0]
    if value is None or (isinstance(value, str) and not value.strip()):
        return Skip("empty text", f"{column!r} is empty")
    return as_text(value, column)


def as_label(value: Any) -> str | None:
    """The name of a class; whole numbers as such, whatever their type."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bytes):
        value = value.decode(errors="replace")
    if isinstance(value, bool):
        return str(value).lower()
    name = str(value).strip() if isinstance(value, str | int | float) else ""
    return name if name and name != "nan" and not isinstance(as_text(name, "label"), Skip) else None


def as_number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None
