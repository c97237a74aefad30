# SPDX-License-Identifier: Apache-2.0
"""Text in, text out: the model, tokenizer and sampling defaults of a model directory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from foundling.blocks.position import short_limit
from foundling.decode import plain
from foundling.decode.constrain.constrainer import Constrainer
from foundling.decode.constrain.constraint import Constraint
from foundling.decode.detokenize import REPLACEMENT, MarkedDecoder, incremental_decoder, visible_end
from foundling.decode.engine.engine import Engine, EngineOptions
from foundling.decode.request import Completion, build_requests, check_generates, max_completion
from foundling.decode.sampling import Sampling
from foundling.errors import GenerationError, WeightsError
from foundling.runtime.hub import local_directory
from foundling.text import Tokenizer
from foundling.text.framing import AnswerDecoder, Framing
from foundling.text.tokenizer import CLEANED_SPAN
from foundling.weights.generation import SAMPLED, read_generation_config
from foundling.weights.loading import files_of, load
from foundling.weights.text_spec import read_text_spec

DEFAULT_MAX_TOKENS = 100


class TextStreamer:
    """Passes text on as tokens arrive: whole characters only, and nothing that a stop string may still cut."""

    def __init__(
        self, decode: Callable[[list[int]], str], on_text: Callable[[str], None], stop_strings: Sequence[str]
    ) -> None:
        self.decoder, self.on_text, self.stop_strings = incremental_decoder(decode), on_text, stop_strings
        self.n_sent = 0
        owner = (
            decode.tokenizer if isinstance(decode, AnswerDecoder | MarkedDecoder) else getattr(decode, "__self__", None)
        )
        self.tokenizer = owner if isinstance(owner, Tokenizer) else None
        self.n_unsettled = CLEANED_SPAN if self.tokenizer and self.tokenizer.cleans else 0
        self.in_bytes = False
        """whether the last token with a text was a byte of a character"""

    def append(self, token: int) -> None:
        text = self.decoder.append(token)
        if self.tokenizer and token not in self.tokenizer.special:
            self.in_bytes = token in self.tokenizer.byte_ids
        # the bytes of a character may arrive in several tokens, and one that is wrong spoils all before it
        if text.endswith(REPLACEMENT) or self.in_bytes:
            return
        n_pending = max((_begun(s, text) for s in self.stop_strings), default=0)
        matches = [at for s in self.stop_strings if (at := text.find(s, max(0, self.n_sent - len(s)))) >= 0]
        self._send(text[: max(0, min([*matches, len(text) - max(n_pending, self.n_unsettled)]))])

    def finish(self, text: str) -> None:
        """Sends the rest of the final text."""
        self._send(text)

    def _send(self, text: str) -> None:
        if len(text) > self.n_sent:
            self.on_text(text[self.n_sent :])
            self.n_sent = len(text)


def _begun(stop: str, text: str) -> int:
    """How many characters at the end of a text may be the beginning of a stop string: as many as possible."""
    at = max(0, len(text) - len(stop) + 1)
    while (at := text.find(stop[0], at)) >= 0:
        if stop.startswith(text[at:]):
            return len(text) - at
        at += 1
    return 0


@dataclass
class TextGenerator:
    model: Any
    framing: Framing
    sampling: Sampling
    engine: Engine | None = None
    max_tokens: int = DEFAULT_MAX_TOKENS
    """where a call does not say"""
    max_length: int | None = None
    """of prompt and answer together, where a call does not say"""
    notes: tuple[str, ...] = ()
    """what the directory asks for and is not done, in words"""

    @cached_property
    def constrainer(self) -> Constrainer:
        """Compiles constraints for this model."""
        return Constrainer(self.tokenizer, self.model.config.vocab_size, self.framing.ends)

    @property
    def tokenizer(self) -> Tokenizer:
        return self.framing.tokenizer

    @classmethod
    def load(
        cls,
        directory: str | Path,
        *,
        weights: str | None = None,
        base: str | Path | None = None,
        **sampling_fields: Any,
    ) -> TextGenerator:
        """Sampling fields that are None or missing come from generation_config.json, if there is one; where it does not
        say `do_sample: true`, the answer is greedy unless a field is given. `weights` (see EngineOptions) selects an
        engine. The directory may be an adapter's (see `load`, with its `base`), which is merged into its base. Raises
        WeightsError for a directory that cannot generate text."""
        directory = local_directory(directory)
        files = files_of(directory, base)
        model = load(directory, base=base, merged=True)
        try:
            check_generates(model)
        except GenerationError as error:
            raise WeightsError(f"{directory}: {error}") from None
        engine = None if weights is None else Engine(model, EngineOptions(weights=weights))
        return cls.of(model, files, engine, **sampling_fields)

    @classmethod
    def of(cls, model: Any, files: Path, engine: Engine | None = None, **sampling_fields: Any) -> TextGenerator:
        """Of a model that is loaded, and of the directory with its tokenizer and generation_config.json."""
        stored = read_generation_config(files)
        given = {name: value for name, value in sampling_fields.items() if value is not None}
        values = stored.sampling | given
        if stored.greedy and not given.keys() & set(SAMPLED):
            values["temperature"] = 0.0
        framing = Framing(Tokenizer.load(files), read_text_spec(files, model))
        asked = {i: bias for i, bias in values.get("logit_bias", {}).items() if i < model.config.vocab_size}
        values["logit_bias"] = dict.fromkeys(framing.unnamed_rows(), float("-inf")) | asked
        ignored, start = [*stored.ignored], getattr(model.config, "start_id", None)
        if model.capabilities.reads_source and stored.start not in (None, start):
            ignored.append(f"decoder_start_token_id {stored.start} in place of config.json's {start}")
        notes = tuple(f"generation_config.json asks for {what}, which is not done here" for what in ignored)
        if engine is not None and (short := short_limit(model)) is not None and short < model.config.max_seq_len:
            notes += (f"an engine's answer ends where prompt and answer have {short} tokens (longrope scaling)",)
        most = stored.max_tokens or DEFAULT_MAX_TOKENS
        return cls(model, framing, Sampling(**values), engine, most, stored.max_length, notes)

    @property
    def chats(self) -> bool:
        """Whether the model was taught to answer: it has a chat template, and was finetuned on chats or comes from
        elsewhere, and was not only raised here as a base model."""
        taught = self.framing.spec.chats
        return self.tokenizer.chat_template is not None and (not self.tokenizer.own if taught is None else taught)

    def generate(
        self,
        prompt: str,
        *,
        suffix: str | None = None,
        **options: Any,
    ) -> list[dict[str, Any]]:
        """Continuations of a text, or with a `suffix` the texts between it and the prompt. `options` and result are
        those of `answer`."""
        return self.answer(self._encode(prompt, suffix), **options)

    def chat(
        self, messages: Sequence[Mapping[str, Any]], *, tools: Sequence[Any] | None = None, **options: Any
    ) -> list[dict[str, Any]]:
        """What the model answers to a conversation, [{"role", "content"}]; `options` and result as of `answer`."""
        return self.answer(self.framing.chat(messages, tools=tools), **options)

    def answer(
        self,
        ids: Sequence[int],
        *,
        n: int = 1,
        max_tokens: int | None = None,
        seed: int = 0,
        stop_strings: Sequence[str] = (),
        logprobs: int | None = None,
        constraint: Constraint | None = None,
        on_text: Callable[[str], None] | None = None,
    ) -> list[dict[str, Any]]:
        """`n` continuations of ids: {'text', 'tokens' (their number), 'finish_reason': 'end' of the document, 'stop' or
        'length'}. With `logprobs` also 'logprobs': [{'token', 'logprob', 'top_logprobs'}], tokens as text. `on_text`
        receives the first continuation as it is generated. With a `constraint` (decode/constrain) every answer that
        ends by itself follows it; one that is cut ('length', 'stop') may not."""
        self._check_length(ids)
        if max_tokens is None:
            available = max_completion(self.model, ids, rereads=self.engine is None)
            most = self.max_tokens
            if self.max_length is not None:
                most = max(1, min(most, self.max_length - (0 if self.framing.spec.reads_source else len(ids))))
            max_tokens = most if available is None else min(most, available)
        decode: Callable[[list[int]], str] = self.framing.answer(ids)
        processors = [] if constraint is None else [self.constrainer.processor(constraint)]
        if constraint is not None:
            decode = self.constrainer.decoder(constraint, decode, self.framing.spec.reads_source)
        ends, stops = [*self.framing.ends], self.framing.stops(stop_strings)
        streamer = None if on_text is None else TextStreamer(decode, on_text, stop_strings)

        def append(token: int) -> None:
            if streamer and token not in (-1, *ends, *stops):
                streamer.append(token)

        options: dict[str, Any] = dict(
            max_tokens=max_tokens, stop=ends, stop_tokens=stops, stop_strings=stop_strings, decode=decode,
            logprobs=logprobs, processors=processors,
        )  # fmt: skip
        if self.engine is None:
            completions = plain.generate(
                self.model, [ids], n=n, sampling=self.sampling, seed=seed, on_token=lambda new: append(new[0]),
                **options,
            )  # fmt: skip
        else:
            finished = dict[int, Completion]()
            for output in self.engine.stream(build_requests([ids], n, seed, self.sampling, **options)):
                for token in output.new_tokens if output.request_id == 0 else ():
                    append(token)
                if output.completion:
                    finished[output.request_id] = output.completion
            completions = [finished[i] for i in range(n)]
            for completion in completions:
                if completion.finish_reason == "error":  # plain decoding raises it
                    raise GenerationError(completion.error or "the engine cannot continue the answer")
        results = [self._to_dict(completion, self.framing.answer(ids)) for completion in completions]
        if streamer:
            streamer.finish(results[0]["text"])
        return results

    def _encode(self, prompt: str, suffix: str | None) -> list[int]:
        """The ids to continue."""
        return self.framing.prompt(prompt) if suffix is None else self.framing.fill_in_the_middle(prompt, suffix)

    def _check_length(self, ids: Sequence[int]) -> None:
        """GenerationError where a prompt leaves no space for a token, or holds one that the model has no row for."""
        rows, limit = self.model.embedding.num_embeddings, self.model.config.max_seq_len - 1
        if not self.model.capabilities.reads_source and len(ids) > limit:
            raise GenerationError(f"the prompt is {len(ids)} tokens, the model reads at most {limit}; shorten it")
        if self.engine is not None and max_completion(self.model, ids) == 0:
            raise GenerationError(
                f"the prompt is {len(ids)} tokens, and longrope scaling rotates a text of more anew from its start, "
                f"which no engine does; shorten it, or leave out `weights`"
            )
        if max(ids, default=0) >= rows:
            unread = self.tokenizer.backend.id_to_token(max(ids))
            raise GenerationError(f"the prompt holds {unread!r}, a token that the model has no row for ({rows:,} rows)")

    def _to_dict(self, completion: Completion, decode: AnswerDecoder) -> dict[str, Any]:
        result: dict[str, Any] = {
            "text": completion.text, "tokens": len(completion.tokens), "finish_reason": completion.finish_reason,
        }  # fmt: skip
        if completion.logprobs is not None and completion.top_logprobs is not None:
            pieces = AnswerDecoder(self.tokenizer, visible_end(decode) or self.tokenizer.encode("a"))
            result["logprobs"] = [
                {"token": pieces([token]), "logprob": logprob, "top_logprobs": [
                    {"token": pieces([i]), "logprob": value} for i, value in top.items()]}
                for token, logprob, top in zip(
                    completion.tokens, completion.logprobs, completion.top_logprobs, strict=True)
            ]  # fmt: skip
        return result
