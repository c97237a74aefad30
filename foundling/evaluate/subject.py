# SPDX-License-Identifier: Apache-2.0
"""Who answers: a model here, a model behind an API, or answers that were recorded. Imports no torch."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, NoReturn, Protocol, TypedDict

import numpy as np

from foundling.errors import DataError, GenerationError


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
    n_masked: int = 0
    """tokens that were masked in turn, where `logprob` is a pseudo-log-likelihood (Salazar et al. 2020) and not a
    likelihood; 0 for a likelihood"""


class Picture(str):
    """A picture by its name and the SHA-256 of its bytes, which is how it is hashed and recorded. `place` is where it
    is read: a file, or "builtin:…"."""

    place: str

    def __new__(cls, name: str, digest: str, place: str) -> Picture:
        picture = super().__new__(cls, f"{name} sha256:{digest}")
        picture.place = place
        return picture


class MatchRequest(NamedTuple):
    picture: Picture
    text: str


class Vector(NamedTuple):
    """What a model makes of a whole text."""

    data: str
    """base64 of little-endian float32 numbers"""
    n_prompt: int = 0
    """tokens of the text; 0 where nobody counted"""

    @classmethod
    def of(cls, values: Any, n_prompt: int = 0) -> Vector:
        return cls(base64.b64encode(np.asarray(values, "<f4").tobytes()).decode(), n_prompt)

    def array(self) -> Any:
        """(D,) float32. DataError where a record of it was damaged."""
        try:
            values = np.frombuffer(base64.b64decode(self.data, validate=True), "<f4")
        except (ValueError, TypeError) as error:
            raise DataError(f"a recorded vector is damaged ({error}); remove the file of recorded answers") from None
        if not len(values) or not np.isfinite(values).all():
            raise DataError("a vector is empty or not finite; is the model damaged?")
        return values


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

    def embed(self, texts: Sequence[str]) -> Iterator[tuple[int, Vector]]:
        """One vector of length 1 a text; related texts have similar vectors (cosine)."""
        ...

    def match(self, requests: Sequence[MatchRequest]) -> Iterator[tuple[int, Continuation]]:
        """How well each text describes its picture: `logprob` up to a constant that is the same for all texts of one
        picture."""
        ...


class Refusals:
    """Refuses every request of a Subject, by name. A subject inherits it and defines what it can do."""

    name: str
    kind = "a model"
    """what it is, in words"""
    serves: tuple[str, ...] = ()
    """kinds of tasks that it can do"""

    def refuse(self, needs: str) -> NoReturn:
        """GenerationError that says what the model is and which tasks it can do."""
        can = f"it does tasks of kind {', '.join(self.serves)}" if self.serves else "no kind of task is for it"
        raise GenerationError(f"{self.name} is {self.kind}: {needs}; {can}")

    def loglikelihood(self, requests: Sequence[LikelihoodRequest]) -> Iterator[tuple[int, Continuation]]:
        self.refuse("tasks of kind choice or classify need a model that generates or classifies texts")

    def rolling(self, texts: Sequence[str]) -> Iterator[tuple[int, Continuation]]:
        self.refuse("tasks of kind perplexity, and texts, need a model that predicts tokens")

    def generate(self, requests: Sequence[GenerateRequest]) -> Iterator[tuple[int, GeneratedText]]:
        self.refuse("it generates no text, which tasks of kind generate need")

    def embed(self, texts: Sequence[str]) -> Iterator[tuple[int, Vector]]:
        self.refuse("tasks of kind retrieve need a model that embeds texts")

    def match(self, requests: Sequence[MatchRequest]) -> Iterator[tuple[int, Continuation]]:
        self.refuse("tasks of kind images need a model that embeds pictures and texts")


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
