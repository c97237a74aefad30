# SPDX-License-Identifier: Apache-2.0
"""The requests that the server reads, as OpenAI's clients write them. A field that is not here is refused by name."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, model_validator
from pydantic_core import PydanticCustomError

from foundling.limits import (
    BIAS,
    BIASES,
    MAX_TOKENS,
    MESSAGE_PARTS,
    MESSAGES,
    MODEL_NAME_CHARS,
    SEED,
    SERVED_COMPLETIONS,
    STOP_CHARS,
    STOPS,
    TOKEN_ID,
    TOKENIZED,
    TOOLS,
    TOP_K,
    TOP_LOGPROBS,
    shown,
)
from foundling.runtime.files import is_shallow
from foundling.serve.errors import APIError


def _limited(value: Any, most: int) -> Any:
    if isinstance(value, dict) and len(value) > most:
        raise PydanticCustomError("too_long", "Object should have at most {most} fields", {"most": most})
    return value


def at_most(n: int) -> BeforeValidator:
    """Of the entries of an object, before each that is wrong is an error of its own."""
    return BeforeValidator(lambda value: _limited(value, n))


class Body(BaseModel):
    """Types are as written: "1" is no number, true is no 1. Every error takes time: a list has no second one
    (fail_fast), and an object few fields."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _has_few_fields(cls, value: Any) -> Any:
        return _limited(value, 64)


Name = Annotated[str, StringConstraints(min_length=1, max_length=MODEL_NAME_CHARS.high)]
Stop = Annotated[str, StringConstraints(min_length=1, max_length=STOP_CHARS.high)]
TokenId = Annotated[int, Field(ge=0, le=TOKEN_ID.high)]
Count = Annotated[int, Field(ge=1, le=4096)]


class StreamOptions(Body):
    include_usage: bool = False
    include_obfuscation: bool | None = None
    """what OpenAI's servers pad streams with; nothing is padded here"""


class SamplingBody(Body):
    """What requests for chats and for completions share. None: the model's own default."""

    model: Name | None = None
    temperature: float | None = Field(None, ge=0, le=100)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=0, le=TOP_K.high, description="not of OpenAI: sample from the k likeliest")
    min_p: float | None = Field(None, ge=0, le=1, description="not of OpenAI: least share of the likeliest token")
    repetition_penalty: float | None = Field(None, gt=0, le=100, description="not of OpenAI: 1 is off")
    presence_penalty: float | None = Field(None, ge=-100, le=100)
    frequency_penalty: float | None = Field(None, ge=-100, le=100)
    logit_bias: Annotated[dict[str, Annotated[float, Field(ge=-BIAS, le=BIAS)]], at_most(BIASES.high)] | None = None
    n: Count = 1
    seed: int | None = Field(None, ge=-(1 << 63), le=SEED.high)
    stop: Stop | Annotated[list[Stop], Field(max_length=STOPS.high, fail_fast=True)] | None = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    user: str | None = Field(None, max_length=4096, description="accepted and not used")
    max_tokens: int | None = Field(None, ge=0, le=MAX_TOKENS.high)

    @property
    def stops(self) -> list[str]:
        return [self.stop] if isinstance(self.stop, str) else self.stop or []


# --- chat ------------------------------------------------------------------------------------------------------------


class TextPart(Body):
    type: Literal["text"]
    text: str


class FunctionCall(Body):
    name: str = Field(max_length=256)
    arguments: str


class ToolCall(Body):
    id: str = Field(max_length=256)
    type: Literal["function"] = "function"
    function: FunctionCall
    index: int | None = None

    def as_template_sees_it(self) -> dict[str, Any]:
        function = {"name": self.function.name, "arguments": _object(self.function.arguments)}
        return {"id": self.id, "type": self.type, "function": function}


def _object(arguments: str) -> dict[str, Any]:
    """Of the text that OpenAI's clients send; "" stands for no arguments."""
    try:
        value = json.loads(arguments or "{}", parse_constant=_refuse) if is_shallow(arguments.encode()) else None
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise APIError(
            400, f"the arguments of a call are {shown(arguments)}; expected an object as JSON", param="messages"
        )
    return value


def _refuse(constant: str) -> None:
    raise ValueError(constant)


class Message(Body):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | Annotated[list[TextPart], Field(max_length=MESSAGE_PARTS.high, fail_fast=True)] | None = None
    name: str | None = Field(None, max_length=256)
    tool_calls: Annotated[list[ToolCall], Field(max_length=TOOLS.high, fail_fast=True)] | None = None
    tool_call_id: str | None = Field(None, max_length=256)
    refusal: str | None = None
    reasoning_content: str | None = None
    annotations: list[Any] | None = Field(None, max_length=0)
    audio: None = None
    function_call: None = None

    def as_template_sees_it(self) -> dict[str, Any]:
        """Text parts joined; only the fields that are there; the arguments of a call as the object that they are, which
        templates write themselves. APIError for arguments that are none."""
        content = self.content
        if isinstance(content, list):
            content = "".join(part.text for part in content)
        role = "system" if self.role == "developer" else self.role
        message: dict[str, Any] = {"role": role, "content": "" if content is None else content}
        if self.tool_calls:
            message["tool_calls"] = [call.as_template_sees_it() for call in self.tool_calls]
        for name in ("name", "tool_call_id", "reasoning_content"):
            if (value := getattr(self, name)) is not None:
                message[name] = value
        return message


Messages = Annotated[list[Message], Field(max_length=MESSAGES.high, fail_fast=True)]


class Function(Body):
    name: str = Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Body):
    type: Literal["function"]
    function: Function


class NamedFunction(Body):
    name: str = Field(max_length=64)


class NamedTool(Body):
    type: Literal["function"]
    function: NamedFunction


class JSONSchemaFormat(Body):
    name: str | None = Field(None, max_length=256)
    description: str | None = None
    schema_: dict[str, Any] | bool = Field(alias="schema")
    strict: bool | None = None


class ResponseFormat(Body):
    """OpenAI's text, json_object and json_schema; regex, grammar (Lark) and choice are of this server."""

    type: Literal["text", "json_object", "json_schema", "regex", "grammar", "choice"]
    json_schema: JSONSchemaFormat | None = None
    regex: str | None = None
    grammar: str | None = None
    choice: Annotated[list[str], Field(min_length=1, max_length=4096, fail_fast=True)] | None = None


class ChatBody(SamplingBody):
    messages: Annotated[Messages, Field(min_length=1)]
    max_completion_tokens: int | None = Field(None, ge=1, le=MAX_TOKENS.high)
    best_of: Count | None = Field(None, description="not of OpenAI: the n best of so many answers")
    logprobs: bool | None = False
    top_logprobs: int | None = Field(None, ge=0, le=TOP_LOGPROBS.high)
    response_format: ResponseFormat | None = None
    tools: Annotated[list[Tool], Field(max_length=TOOLS.high, fail_fast=True)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    metadata: Annotated[dict[str, str], at_most(16)] | None = Field(None, description="accepted and not used")
    store: Literal[False] | None = None

    @property
    def n_logprobs(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None

    @property
    def limit(self) -> int | None:
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens


# --- completions -----------------------------------------------------------------------------------------------------

Tokens = Annotated[list[TokenId], Field(min_length=1, max_length=1 << 20, fail_fast=True)]
Texts = Annotated[list[str], Field(min_length=1, max_length=SERVED_COMPLETIONS.high, fail_fast=True)]
Rows = Annotated[list[Tokens], Field(min_length=1, max_length=SERVED_COMPLETIONS.high, fail_fast=True)]
Inputs = str | Tokens | Texts | Rows


def listed(value: Inputs) -> list[str] | list[list[int]]:
    """What may be one text, or the ids of one."""
    return [value] if isinstance(value, str) or isinstance(value[0], int) else value  # pyright: ignore[reportReturnType]


class CompletionBody(SamplingBody):
    prompt: Inputs = ""
    suffix: str | None = None
    echo: bool | None = False
    logprobs: int | None = Field(None, ge=0, le=TOP_LOGPROBS.high)
    best_of: Count | None = None
    max_tokens: int | None = Field(16, ge=0, le=MAX_TOKENS.high)
    response_format: ResponseFormat | None = Field(None, description="not of OpenAI")

    @property
    def n_logprobs(self) -> int | None:
        return self.logprobs

    @property
    def prompts(self) -> list[str] | list[list[int]]:
        return listed(self.prompt)


# --- others ----------------------------------------------------------------------------------------------------------


class TokenizeBody(Body):
    """The tokens of a text, framed as a prompt unless `add_special_tokens` is false, or those of a conversation."""

    model: Name | None = None
    prompt: str | None = None
    messages: Messages | None = None
    add_special_tokens: bool = True
    add_generation_prompt: bool = True


class DetokenizeBody(Body):
    model: Name | None = None
    tokens: Annotated[list[TokenId], Field(max_length=TOKENIZED.high, fail_fast=True)]
