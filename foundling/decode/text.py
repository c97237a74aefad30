# SPDX-License-Identifier: Apache-2.0
"""Text in, text out: the model, tokenizer and sampling defaults of a model directory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foundling.decode import plain
from foundling.decode.detokenize import REPLACEMENT, incremental_decoder
from foundling.decode.engine.engine import Engine, EngineOptions
from foundling.decode.request import Completion, build_requests, check_generates, max_completion
from foundling.decode.sampling import Sampling
from foundling.errors import GenerationError, WeightsError
from foundling.runtime.files import read_json
from foundling.text import Tokenizer
from foundling.weights.directory import load

DEFAULT_MAX_TOKENS = 100
STORED = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")


class TextStreamer:
    """Passes text on as tokens arrive: whole characters only, and nothing that a stop string may still cut."""

    def __init__(
        self, decode: Callable[[list[int]], str], on_text: Callable[[str], None], stop_strings: Sequence[str]
    ) -> None:
        self.decoder, self.on_text, self.stop_strings = incremental_decoder(decode), on_text, stop_strings
        self.n_sent = 0

    def append(self, token: int) -> None:
        text = self.decoder.append(token)
        if text.endswith(REPLACEMENT):  # the bytes of a character may arrive in several tokens
            return
        n_pending = max(
            (n for s in self.stop_strings for n in range(1, len(s)) if text.endswith(s[:n])), default=0
        )  # may be the beginning of a stop string
        matches = [at for s in self.stop_strings if (at := text.find(s, max(0, self.n_sent - len(s)))) >= 0]
        self._send(text[: min(matches, default=len(text) - n_pending)])

    def finish(self, text: str) -> None:
        """Sends the rest of the final text."""
        self._send(text)

    def _send(self, text: str) -> None:
        if len(text) > self.n_sent:
            self.on_text(text[self.n_sent :])
            self.n_sent = len(text)


@dataclass
class TextGenerator:
    model: Any
    tokenizer: Tokenizer
    sampling: Sampling
    engine: Engine | None = None

    @classmethod
    def load(cls, directory: str | Path, *, weights: str | None = None, **sampling_fields: Any) -> TextGenerator:
        """Sampling fields that are None or missing come from generation_config.json, if there is one. `weights` (see
        EngineOptions) selects an engine. Raises WeightsError for a directory that cannot generate text."""
        file = Path(directory) / "generation_config.json"
        stored = read_json(file) if file.exists() else {}
        values = {name: stored[name] for name in STORED if stored.get(name) is not None}
        for name, value in values.items():
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise WeightsError(f"{file}: {name} is {value!r}, expected a number")
        sampling = Sampling(**values | {name: value for name, value in sampling_fields.items() if value is not None})
        model = load(directory)
        try:
            check_generates(model)
        except GenerationError as error:
            raise WeightsError(f"{directory}: {error}") from None
        tokenizer = Tokenizer.load(directory)
        if tokenizer.vocab_size > model.config.vocab_size:
            raise WeightsError(
                f"{directory}: the tokenizer has {tokenizer.vocab_size} tokens, the model {model.config.vocab_size}"
            )
        engine = None if weights is None else Engine(model, EngineOptions(weights=weights))
        return cls(model, tokenizer, sampling, engine)

    def generate(
        self,
        prompt: str,
        *,
        suffix: str | None = None,
        n: int = 1,
        max_tokens: int | None = None,
        seed: int = 0,
        stop_strings: Sequence[str] = (),
        logprobs: int | None = None,
        on_text: Callable[[str], None] | None = None,
    ) -> list[dict[str, Any]]:
        """`n` continuations, or with a `suffix` the texts between it and the prompt: {'text', 'tokens' (their number),
        'finish_reason': 'end' of the document, 'stop' or 'length'}. With `logprobs` also 'logprobs': [{'token',
        'logprob', 'top_logprobs'}], tokens as text. `on_text` receives the first continuation as it is generated."""
        ids = self._encode(prompt, suffix)
        if max_tokens is None:
            available = max_completion(self.model, ids)
            max_tokens = DEFAULT_MAX_TOKENS if available is None else min(DEFAULT_MAX_TOKENS, available)
        streamer = None if on_text is None else TextStreamer(self.tokenizer.decode, on_text, stop_strings)

        def append(token: int) -> None:
            if streamer and token not in (-1, self.tokenizer.eos):
                streamer.append(token)

        options: dict[str, Any] = dict(
            max_tokens=max_tokens, stop=[self.tokenizer.eos], stop_strings=stop_strings, decode=self.tokenizer.decode,
            logprobs=logprobs,
        )  # fmt: skip
        if self.engine is None:
            completions = plain.generate(
                self.model, [ids], n=n, sampling=self.sampling, seed=seed, on_token=lambda new: append(new[0]),
                **options,
            )  # fmt: skip
        else:
            finished = dict[int, Completion]()
            for output in self.engine.stream(build_requests([ids], n, seed, self.sampling, {}, **options)):
                for token in output.new_tokens if output.request_id == 0 else ():
                    append(token)
                if output.completion:
                    finished[output.request_id] = output.completion
            completions = [finished[i] for i in range(n)]
        results = [self._to_dict(completion) for completion in completions]
        if streamer:
            streamer.finish(results[0]["text"])
        return results

    def _encode(self, prompt: str, suffix: str | None) -> list[int]:
        """The ids to continue; GenerationError where they leave no space for a token."""
        bos = [] if self.tokenizer.bos is None else [self.tokenizer.bos]
        ids = [*bos, *self.tokenizer.encode(prompt)]
        if suffix is not None:
            if self.tokenizer.fim is None:
                raise GenerationError("the tokenizer has no fill-in-the-middle tokens; omit the suffix")
            before, after, middle = self.tokenizer.fim
            ids = [*bos, before, *ids[len(bos) :], after, *self.tokenizer.encode(suffix), middle]
        limit = self.model.config.max_seq_len - 1 - len(bos)
        if not self.model.capabilities.reads_source and len(ids) - len(bos) > limit:
            raise GenerationError(
                f"the prompt is {len(ids) - len(bos)} tokens, the model reads at most {limit}; shorten it"
            )
        return ids

    def _to_dict(self, completion: Completion) -> dict[str, Any]:
        result: dict[str, Any] = {
            "text": completion.text, "tokens": len(completion.tokens), "finish_reason": completion.finish_reason,
        }  # fmt: skip
        if completion.logprobs is not None and completion.top_logprobs is not None:
            result["logprobs"] = [
                {"token": self._token_text(token), "logprob": logprob, "top_logprobs": [
                    {"token": self._token_text(i), "logprob": value} for i, value in top.items()]}
                for token, logprob, top in zip(
                    completion.tokens, completion.logprobs, completion.top_logprobs, strict=True)
            ]  # fmt: skip
        return result

    def _token_text(self, token: int) -> str:
        return self.tokenizer.decode([token])
