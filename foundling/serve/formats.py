# SPDX-License-Identifier: Apache-2.0
"""What a request says about the form of its answer: response_format and tools, as constraints of decoding."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

from foundling.decode.constrain import constraint as constraints
from foundling.decode.constrain.constraint import Constraint
from foundling.decode.constrain.tools import tool_calls
from foundling.decode.detokenize import MarkedDecoder
from foundling.errors import GenerationError
from foundling.serve.errors import APIError
from foundling.serve.models import GenerativeModel
from foundling.serve.protocol import ChatBody, NamedTool, ResponseFormat
from foundling.text.framing import AnswerDecoder
from foundling.text.tool_calls import STYLES, parse_tool_calls, shown_length, style_of

THINK = ("<think>", "</think>")


def format_of(form: ResponseFormat | None) -> Constraint | None:
    """None for free text. APIError, naming the keyword and its place, for what cannot be enforced."""
    if form is None or form.type == "text":
        return None
    field = {"json_schema": form.json_schema, "regex": form.regex, "grammar": form.grammar, "choice": form.choice}
    if form.type in field and field[form.type] is None:
        raise APIError(400, f"response_format.{form.type} is missing", param=f"response_format.{form.type}")
    if extra := [name for name, value in field.items() if value is not None and name != form.type]:
        message = f"response_format has type {form.type} and {extra[0]}; leave one out"
        raise APIError(400, message, param="response_format")
    try:
        if form.type == "json_object":
            return constraints.json_object()
        if form.type == "json_schema":
            assert form.json_schema is not None
            return constraints.json_schema(form.json_schema.schema_)
        return getattr(constraints, form.type)(field[form.type])
    except GenerationError as error:
        raise APIError(400, str(error), param="response_format") from None


class AnswerForm:
    """How the answer of a chat is constrained and read. `prompt`: its ids, whose end says whether the model reasons
    first; `answer_id`: what the ids of its calls are made of."""

    def __init__(self, body: ChatBody, served: GenerativeModel, prompt: Sequence[int], answer_id: str) -> None:
        self.answer_id = answer_id
        template = served.tokenizer.chat_template or ""
        end = served.tokenizer.backend.decode(list(prompt[-16:]), skip_special_tokens=False).rstrip()
        if not body.tools and body.tool_choice not in (None, "none", "auto"):
            raise APIError(400, "tool_choice asks for a call, and there are no tools; send tools", param="tool_choice")
        choice = "none" if not body.tools else body.tool_choice or "auto"
        self.style, self.tools = style_of(template), choice != "none"
        self.opened = end.endswith(THINK[0])
        """whether the template has begun the reasoning"""
        if self.tools and body.response_format is not None and body.response_format.type != "text":
            raise APIError(400, "response_format and tools exclude each other; use tool_choice none", param="tools")
        self.constraint = self._tools(body, choice) if self.tools else format_of(body.response_format)
        if self.constraint is not None and THINK[1] in template and not end.endswith(THINK[1]):
            self.constraint = constraints.after_reasoning(self.constraint, "" if self.opened else THINK[0], THINK[1])

    def _tools(self, body: ChatBody, choice: Any) -> Constraint:
        tools = [tool.model_dump(exclude_none=True) for tool in body.tools or []]
        name = choice.function.name if isinstance(choice, NamedTool) else None
        parallel = body.parallel_tool_calls is not False
        try:
            return tool_calls(tools, style=self.style, required=choice == "required", name=name, parallel=parallel)
        except GenerationError as error:
            raise APIError(400, str(error), param="tools") from None

    def decoder(self, decode: AnswerDecoder) -> Callable[[list[int]], str]:
        """`decode`, or one that writes out what it would leave away and this form needs to see."""
        tokenizer = decode.tokenizer
        texts = (*THINK, STYLES[self.style].opening, STYLES[self.style].closing) if self.tools else THINK
        ids = {tokenizer.backend.token_to_id(text): text for text in texts if text}
        marks = {i: text for i, text in ids.items() if i is not None and i in tokenizer.special}
        return MarkedDecoder(decode, marks) if marks else decode

    def split(self, text: str) -> tuple[str | None, str]:
        """The reasoning, None without any, and what follows it. Text that may still be an opening mark is neither."""
        if not self.opened:
            bare = text.lstrip()
            if not bare.startswith(THINK[0]):
                return None, "" if bare and THINK[0].startswith(bare) else text
            text = bare
        reasoning, closed, answer = text.removeprefix(THINK[0]).partition(THINK[1])
        if not closed:
            begun = max((n for n in range(1, len(THINK[1])) if reasoning.endswith(THINK[1][:n])), default=0)
            reasoning = reasoning[: len(reasoning) - begun]
        return reasoning.lstrip("\n"), answer.lstrip("\n")

    def message(self, text: str, index: int, *, cut: bool = False) -> dict[str, Any]:
        """The message of a choice. Of one that was `cut`, calls that are whole count, and a part of a call is left
        out: nobody can use it."""
        reasoning, answer = self.split(text)
        if reasoning is None:
            answer = text
        message: dict[str, Any] = {"role": "assistant", "content": answer, "refusal": None}
        if reasoning is not None:
            message["reasoning_content"] = reasoning
        if self.tools:
            if cut and (whole := self._before_part(answer)) != answer:
                message["content"] = answer = whole.rstrip()
            content, calls = parse_tool_calls(answer, self.style)
            if calls:
                calls = [_call(f"{self.answer_id} {index} {n}", *call) for n, call in enumerate(calls)]
                message |= {"content": content or None, "tool_calls": calls}
        return message

    def _before_part(self, answer: str) -> str:
        """An answer that was cut, without the call in whose middle it was, or the beginning of the mark of one."""
        form = STYLES[self.style]
        if form.closing == "" and parse_tool_calls(answer, self.style)[1]:
            return answer
        if not form.opening:
            return "" if answer.lstrip().startswith("{") else answer
        whole = answer.rfind(form.closing) + len(form.closing) if form.closing and form.closing in answer else 0
        at = answer.find(form.opening, whole)
        if at < 0:
            begun = (n for n in range(1 if whole else 2, len(form.opening)) if answer.endswith(form.opening[:n]))
            at = len(answer) - max(begun, default=0)
        return answer[:at]


class AnswerStream:
    """The deltas of one answer as its text grows. A call comes whole, when the answer has ended: before, nobody knows
    that it is one."""

    def __init__(self, form: AnswerForm, index: int) -> None:
        self.form, self.index, self.text = form, index, ""
        self.sent = {"reasoning_content": "", "content": ""}

    def add(self, text: str) -> dict[str, Any]:
        self.text += text
        reasoning, answer = self.form.split(self.text)
        if self.form.tools:
            answer = answer[: shown_length(answer, self.form.style)]
        return self._delta(reasoning or "", answer)

    def finish(self, *, cut: bool) -> dict[str, Any]:
        """What is left, calls included."""
        message = self.form.message(self.text, self.index, cut=cut)
        delta = self._delta(message.get("reasoning_content") or "", message["content"] or "")
        calls = message.get("tool_calls", [])
        return delta | ({"tool_calls": [{"index": i, **call} for i, call in enumerate(calls)]} if calls else {})

    def _delta(self, reasoning: str, content: str) -> dict[str, Any]:
        delta = {}
        for name, text in (("reasoning_content", reasoning), ("content", content)):
            if len(text) > len(self.sent[name]):
                delta[name] = text[len(self.sent[name]) :]
                self.sent[name] = text
        return delta


def _call(source: str, name: str, arguments: str) -> dict[str, Any]:
    function = {"name": name, "arguments": arguments}
    return {"id": f"call_{hashlib.sha256(source.encode()).hexdigest()[:24]}", "type": "function", "function": function}
