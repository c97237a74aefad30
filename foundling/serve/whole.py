# SPDX-License-Identifier: Apache-2.0
"""A whole answer from the chunks of a stream, and a stream of a whole answer."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Iterator
from typing import Any

from starlette.requests import Request as HTTPRequest
from starlette.responses import Response

from foundling.serve.protocol import SamplingBody
from foundling.serve.reply import LargeJSON, Usage, event
from foundling.serve.server import Server
from foundling.serve.streams import send_events


class Assembler:
    """Puts the chunks of one stream together: what the same request gets without `stream`."""

    def __init__(self) -> None:
        self.head: dict[str, Any] = {}
        self.choices: dict[int, dict[str, Any]] = {}
        self.usage: dict[str, Any] | None = None
        self.failed = self.done = False

    def add_event(self, text: str) -> None:
        """One event of a stream of ours."""
        data = text.removeprefix("data: ").strip()
        if data == "[DONE]":
            self.done = True
        elif data:
            self.add(json.loads(data))

    def add(self, chunk: dict[str, Any]) -> None:
        if "error" in chunk:
            self.failed = True
            return
        self.head = self.head or {name: chunk[name] for name in ("id", "object", "created", "model") if name in chunk}
        self.usage = chunk.get("usage") or self.usage
        for part in chunk.get("choices") or []:
            index = part.get("index", 0)
            choice = self.choices.setdefault(index, {"index": index, "finish_reason": None, "logprobs": None})
            choice["finish_reason"] = part.get("finish_reason") or choice["finish_reason"]
            if logprobs := part.get("logprobs"):
                choice["logprobs"] = _joined(choice["logprobs"], logprobs)
            if "delta" in part:
                message = choice.setdefault("message", {"role": "assistant", "content": None})
                _add_delta(message, part["delta"] or {})
            elif "text" in part:
                choice["text"] = choice.get("text", "") + (part["text"] or "")

    def answer(self) -> dict[str, Any] | None:
        """None for a stream that broke off, and for one without a choice."""
        choices = [self.choices[index] for index in sorted(self.choices)]
        if self.failed or not choices or any(choice["finish_reason"] is None for choice in choices):
            return None
        kind = str(self.head.get("object", "")).removesuffix(".chunk")
        return self.head | {"object": kind, "choices": choices, "usage": self.usage}


def _joined(before: dict[str, Any] | None, more: dict[str, Any]) -> dict[str, Any]:
    """Lists of log-probabilities one after the other."""
    if before is None:
        return more
    return {name: before.get(name, []) + value if isinstance(value, list) else value for name, value in more.items()}


def _add_delta(message: dict[str, Any], delta: dict[str, Any]) -> None:
    for name, value in delta.items():
        if name == "tool_calls":
            calls = message.setdefault("tool_calls", [])
            for part in value or []:
                index = part.get("index", 0)
                while len(calls) <= index < 256:
                    calls.append({"id": "", "type": "function", "function": {"name": "", "arguments": ""}})
                if index < len(calls):
                    _add_call(calls[index], part)
        elif isinstance(value, str) and name != "role":
            message[name] = (message.get(name) or "") + value
        elif value is not None or name not in message:
            message[name] = value


def _add_call(call: dict[str, Any], part: dict[str, Any]) -> None:
    call["id"] = part.get("id") or call["id"]
    function = part.get("function") or {}
    for name in ("name", "arguments"):
        call["function"][name] += function.get(name) or ""


def events_of(answer: dict[str, Any], include_usage: bool) -> Iterator[str]:
    """The events of a stream, without its end: one with the text of each choice, one with its end."""
    chat = answer["object"] == "chat.completion"
    kind = "chat.completion.chunk" if chat else answer["object"]
    head = {name: value for name, value in answer.items() if name not in ("choices", "usage")} | {"object": kind}
    blank = {"usage": None} if include_usage else {}
    for choice in answer["choices"]:
        if not chat:
            yield event(head | {"choices": [choice]} | blank)
            continue
        delta = dict(choice["message"])
        if calls := delta.get("tool_calls"):
            delta["tool_calls"] = [call | {"index": place} for place, call in enumerate(calls)]
        part = {"index": choice["index"], "delta": delta, "finish_reason": None, "logprobs": choice.get("logprobs")}
        yield event(head | {"choices": [part]} | blank)
        end = {"index": choice["index"], "delta": {}, "finish_reason": choice["finish_reason"], "logprobs": None}
        yield event(head | {"choices": [end]} | blank)
    if include_usage:
        yield event(head | {"choices": [], "usage": answer["usage"]})


async def reply_whole(
    server: Server, http: HTTPRequest, body: SamplingBody, answer: dict[str, Any], usage: Usage, headers: dict[str, str]
) -> Response:
    """An answer that is there already, as the request wants it. `usage`: what its key is charged."""
    if not body.stream:
        server.account(http, usage)
        return await asyncio.to_thread(LargeJSON, answer, headers=headers)

    async def events() -> AsyncGenerator[str]:
        for one in events_of(answer, bool(body.stream_options and body.stream_options.include_usage)):
            yield one

    stream = events()
    response = send_events(server, http, stream, stream, usage)
    response.headers.update(headers)
    return response
