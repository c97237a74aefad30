# SPDX-License-Identifier: Apache-2.0
"""Who answers: a model here, a model behind an API, or answers that were recorded. Imports no torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, Protocol, TypedDict


class Message(TypedDict):
    role: str
    content: str


Prompt = str | Sequence[Message]
"""a text to continue, or a conversation to answer"""


@dataclass(frozen=True)
class Decoding:
    """How a text is generated. Greedy by default."""

    max_tokens: int = 256
    stop: tuple[str, ...] = ()
    """strings that end the text and are no part of it"""
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0


class GenerateRequest(NamedTuple):
    prompt: Prompt
    decoding: Decoding


class LikelihoodRequest(NamedTuple):
    prompt: Prompt
    continuation: str


class GeneratedText(NamedTuple):
    """What a subject answered."""

    text: str
    cut: bool = False
    """it reached its length before its own end"""
    n_prompt: int = 0
    """tokens of the prompt; 0 where nobody counted"""
    n_tokens: int = 0
    """tokens of the text"""


class Continuation(NamedTuple):
    """What a model makes of a text that could follow the prompt."""

    text: str
    logprob: float
    """natural log-probability of the whole, given the prompt"""
    n_tokens: int
    greedy: bool = False
    """whether each of its tokens is the likeliest one"""
    n_prompt: int = 0


class Subject(Protocol):
    """A model that is measured. Each method yields (index of the request, answer) in whatever order answers come, so
    that each can be recorded at once.

    Raises GenerationError for what the subject cannot do, such as log-probabilities behind most APIs."""

    name: str

    @property
    def hashes(self) -> dict[str, str]:
        """What decides the answers: "model" (weights), "template" (how a prompt is framed: tokenizer, chat template),
        "backend" (library and version, dtype, kernels). Two results compare only where template and backend agree."""
        ...

    def loglikelihood(self, requests: Sequence[LikelihoodRequest]) -> Iterator[tuple[int, Continuation]]: ...

    def rolling(self, texts: Sequence[str]) -> Iterator[tuple[int, Continuation]]:
        """The log-probability of each whole text, every token once; long texts in windows."""
        ...

    def generate(self, requests: Sequence[GenerateRequest]) -> Iterator[tuple[int, GeneratedText]]: ...


def request_key(hashes: dict[str, str], kind: str, request: Any) -> str:
    """SHA-256 of who is measured, by which method, and the whole request."""
    plain = [asdict(part) if isinstance(part, Decoding) else part for part in request]
    text = json.dumps([sorted(hashes.items()), kind, plain], ensure_ascii=True, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def prompt_text(prompt: Prompt) -> str:
    """A prompt as one text for a reader."""
    if isinstance(prompt, str):
        return prompt
    return "\n".join(f"[{message['role']}] {message['content']}" for message in prompt)
