# SPDX-License-Identifier: Apache-2.0
"""Text in, text out: a model directory's model, tokenizer and sampling defaults together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foundling.decode import plain
from foundling.decode.answer import Answer, requests_of
from foundling.decode.engine.engine import Engine, EngineOptions
from foundling.decode.sampling import Sampling
from foundling.errors import GenerationError, WeightsError
from foundling.runtime.files import read_json
from foundling.text import Tokenizer
from foundling.weights.directory import load

DEFAULT_MAX_TOKENS = 100
STORED = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")


class Stream:
    """Hands text on as tokens come, whole characters only, and nothing that a stop string may yet cut off."""

    def __init__(self, decode: Callable[[list[int]], str], say: Callable[[str], None], stops: Sequence[str]) -> None:
        self.decode, self.say, self.stops = decode, say, stops
        self.tokens, self.done = list[int](), 0

    def feed(self, token: int) -> None:
        self.tokens.append(token)
        text = self.decode(self.tokens)
        if text.endswith("\N{REPLACEMENT CHARACTER}"):  # the bytes of a character may come apart
            return
        held = max((n for s in self.stops for n in range(1, len(s)) if text.endswith(s[:n])), default=0)
        found = [at for s in self.stops if (at := text.find(s)) >= 0]
        self._tell(text[: min(found, default=len(text) - held)])

    def finish(self, text: str) -> None:
        """What was held back and belongs to the answer after all."""
        self._tell(text)

    def _tell(self, text: str) -> None:
        if len(text) > self.done:
            self.say(text[self.done :])
            self.done = len(text)


@dataclass
class Writer:
    model: Any
    tokenizer: Tokenizer
    sampling: Sampling
    engine: Engine | None = None

    @classmethod
    def load(cls, directory: str | Path, *, weights: str | None = None, **chosen: Any) -> Writer:
        """`chosen` are fields of Sampling; what is None or missing comes from generation_config.json, if there is one.
        With `weights` (see EngineOptions) an engine writes."""
        file = Path(directory) / "generation_config.json"
        stored = read_json(file) if file.exists() else {}
        values = {name: stored[name] for name in STORED if stored.get(name) is not None}
        for name, value in values.items():
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise WeightsError(f"{file}: {name} is {value!r}, expected a number")
        sampling = Sampling(**values | {name: value for name, value in chosen.items() if value is not None})
        model = load(directory)
        if not hasattr(model, "new_cache"):
            raise WeightsError(f"{directory}: this model does not write from left to right; try `foundling fill`")
        tokenizer = Tokenizer.load(directory)
        if tokenizer.vocab_size > model.config.vocab_size:
            raise WeightsError(
                f"{directory}: the tokenizer has {tokenizer.vocab_size} tokens, the model {model.config.vocab_size}"
            )
        engine = None if weights is None else Engine(model, EngineOptions(weights=weights))
        return cls(model, tokenizer, sampling, engine)

    def write(
        self,
        prompt: str,
        *,
        suffix: str | None = None,
        n: int = 1,
        max_tokens: int | None = None,
        seed: int = 0,
        stop_strings: Sequence[str] = (),
        logprobs: int | None = None,
        stream: Callable[[str], None] | None = None,
    ) -> list[dict[str, Any]]:
        """`n` continuations, or with a `suffix` what stands between it and the prompt: {'text', 'tokens' (how many),
        'finish': 'end' of the document, 'stop' or 'length'}, and
        'logprobs' where asked for: [{'token', 'logprob', 'alternatives'}], tokens as text."""
        opens = [] if self.tokenizer.bos is None else [self.tokenizer.bos]
        ids = [*opens, *self.tokenizer.encode(prompt)]
        if suffix is not None:
            if self.tokenizer.fim is None:
                raise GenerationError("the tokenizer has no marks for fill-in-the-middle; leave the suffix out")
            before, after, middle = self.tokenizer.fim
            ids = [*opens, before, *ids[len(opens) :], after, *self.tokenizer.encode(suffix), middle]
        room = self.model.config.max_seq_len - len(ids)
        if room < 1:
            most = self.model.config.max_seq_len - 1 - len(opens)
            raise GenerationError(f"the prompt is {len(ids) - len(opens)} tokens, at most {most} are read; shorten it")
        said = None if stream is None else Stream(self.tokenizer.decode, stream, stop_strings)

        def tell(new: int) -> None:
            if said and new not in (-1, self.tokenizer.eos):
                said.feed(new)

        wanted = min(DEFAULT_MAX_TOKENS, room) if max_tokens is None else max_tokens
        options: dict[str, Any] = dict(
            max_tokens=wanted, stop=[self.tokenizer.eos], stop_strings=stop_strings, decode=self.tokenizer.decode,
            logprobs=logprobs,
        )  # fmt: skip
        if self.engine is None:
            answers = plain.generate(
                self.model, [ids], n=n, sampling=self.sampling, seed=seed, tell=lambda new: tell(new[0]), **options
            )
        else:
            ended = dict[int, Answer]()
            for event in self.engine.run(requests_of([ids], n, seed, self.sampling, {}, **options)):
                for token in event.tokens if event.number == 0 else ():
                    tell(token)
                if event.answer:
                    ended[event.number] = event.answer
            answers = [ended[i] for i in range(n)]
        written: list[dict[str, Any]] = []
        for answer in answers:
            written.append({"text": answer.text, "tokens": len(answer.tokens), "finish": answer.finish})
            if answer.logprobs is not None and answer.alternatives is not None:
                written[-1]["logprobs"] = [
                    {"token": self._piece(token), "logprob": own, "alternatives": [
                        {"token": self._piece(i), "logprob": value} for i, value in others.items()]}
                    for token, own, others in zip(answer.tokens, answer.logprobs, answer.alternatives, strict=True)
                ]  # fmt: skip
        if said:
            said.finish(written[0]["text"])
        return written

    def _piece(self, token: int) -> str:
        return self.tokenizer.decode([token])
