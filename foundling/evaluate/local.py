# SPDX-License-Identifier: Apache-2.0
"""A model on this machine as the subject of an evaluation."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from foundling.decode.engine.engine import Engine, EngineOptions
from foundling.decode.likelihood import BATCH_TOKENS, continuation_scores, count_tokens
from foundling.decode.native.build import is_built
from foundling.decode.native.decoder import unsupported_reason
from foundling.decode.request import Request, check_generates, max_completion
from foundling.decode.sampling import Sampling
from foundling.errors import ConfigError, GenerationError, WeightsError
from foundling.evaluate.subject import (
    Continuation,
    Decoding,
    GeneratedText,
    GenerateRequest,
    LikelihoodRequest,
    Prompt,
    Refusals,
    prompt_text,
)
from foundling.evaluate.task import Task
from foundling.limits import SEQ_LEN, STEP_TOKENS
from foundling.models import family_of
from foundling.runtime.hub import local_directory
from foundling.runtime.machine import versions
from foundling.text import Tokenizer
from foundling.text.framing import Framing
from foundling.weights.directory import weights_hash
from foundling.weights.loading import files_of, load
from foundling.weights.text_spec import read_text_spec, text_spec

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_AT_ONCE = 512  # requests that an engine is given at once


class Loaded(NamedTuple):
    """What a directory holds, for whichever subject is made of it."""

    model: Any
    tokenizer: Tokenizer
    files: Path
    """where tokenizer and configuration are: of an adapter, its base's or its own"""
    name: str
    hash: str
    """of the weights as they were read, before a change of dtype"""


def load_parts(
    directory: str | Path,
    *,
    base: str | Path | None = None,
    dtype: str = "float32",
    device: str = "cpu",
    name: str | None = None,
) -> Loaded:
    """WeightsError for what is no model directory, ConfigError for another dtype."""
    directory = local_directory(directory)
    if dtype not in DTYPES:
        raise ConfigError(f"dtype {dtype!r} is unknown; use {', '.join(DTYPES)}")
    model = load(directory, base=base, merged=True).to(device)
    can = model.capabilities
    if not (can.task or can.generates or can.fills or can.embeds):
        raise WeightsError(f"{directory}: this {family_of(model).name} reads no text; no kind of task is for it")
    digest, files = weights_hash(model), files_of(directory, base)
    name = name or Path(directory).resolve().name
    return Loaded(model.to(DTYPES[dtype]), Tokenizer.load(files), Path(files), name, digest)


class LocalModel(Refusals):
    """`chat`: a text is a user's message, framed by the chat template; a conversation always is. `window`: tokens that
    a whole text is read in; `stride`: of these how many each window scores anew (a smaller stride gives each token more
    context: at least window − stride). `truncate`: a prompt that is too long loses its beginning; without, it is
    refused. `as_harness`: texts are read as lm-evaluation-harness reads them: special tokens that are written out in a
    prompt are special, and in a whole text those count that the tokenizer puts before it. `batch_tokens`: of a forward
    pass."""

    kind = "a model that generates text"
    serves = ("choice", "classify", "generate", "perplexity")

    def __init__(
        self,
        model: Any,
        text: Framing | Tokenizer,
        *,
        name: str = "model",
        chat: bool = False,
        engine: EngineOptions | None = None,
        model_hash: str | None = None,
        window: int | None = None,
        stride: int | None = None,
        truncate: bool = False,
        as_harness: bool = False,
        batch_tokens: int = BATCH_TOKENS,
    ) -> None:
        check_generates(model)
        self.model, self.name, self.chat, self.truncate = model, name, chat, truncate
        self.as_harness = as_harness
        self.framing = text if isinstance(text, Framing) else Framing(text, text_spec(model))
        self.engine_options = engine or EngineOptions()
        self.batch_tokens = STEP_TOKENS.check(batch_tokens, "batch_tokens")
        longest = model.config.max_seq_len
        self.window = min(SEQ_LEN.check(longest if window is None else window, "window"), longest)
        self.stride = SEQ_LEN.check(self.window if stride is None else stride, "stride")
        if self.stride > self.window:
            raise ConfigError(f"the stride is {self.stride}, the window {self.window}; a stride is at most a window")
        self._model_hash, self._engine = model_hash, None
        if chat and self.framing.tokenizer.chat_template is None:
            raise ConfigError(f"{name} has no chat template; leave out chat")

    @classmethod
    def load(
        cls,
        directory: str | Path,
        *,
        base: str | Path | None = None,
        chat: bool | None = None,
        dtype: str = "float32",
        device: str = "cpu",
        name: str | None = None,
        **options: Any,
    ) -> LocalModel:
        """From a model directory or an adapter's. `chat` None: False. WeightsError for what is no model directory."""
        loaded = load_parts(directory, base=base, dtype=dtype, device=device, name=name)
        return cls.of(loaded, chat=bool(chat), **options)

    @classmethod
    def of(cls, loaded: Loaded, **options: Any) -> LocalModel:
        framing = Framing(loaded.tokenizer, read_text_spec(loaded.files, loaded.model))
        return cls(loaded.model, framing, name=loaded.name, model_hash=loaded.hash, **options)

    @property
    def hashes(self) -> dict[str, str]:
        if self._model_hash is None:
            self._model_hash = weights_hash(self.model)
        tokenizer, parameter = self.framing.tokenizer, next(self.model.parameters())
        template = [
            tokenizer.backend.to_str(), tokenizer.chat_template, self.chat,
            repr(self.framing.spec), self.window, self.stride, self.truncate, self.as_harness,
        ]  # fmt: skip
        options, dtype = self.engine_options, str(parameter.dtype).removeprefix("torch.")
        native = options.native or options.weights
        if options.native is None and not native:
            native = is_built() and not unsupported_reason(self.model)
        kernels = f"native {options.weights or dtype}" if native else f"torch {dtype}"
        return {
            "model": self._model_hash,
            "template": hashlib.sha256(json.dumps(template).encode()).hexdigest(),
            "backend": f"{versions()}, {dtype} on {parameter.device.type}; generates by {kernels}",
        }

    # --- likelihoods --------------------------------------------------------------------------------------------------

    def loglikelihood(self, requests: Sequence[LikelihoodRequest]) -> Iterator[tuple[int, Continuation]]:
        """Prompt and continuation are tokenized together; from the first token that differs from the prompt's own, all
        count, so that no character of the continuation goes uncounted where a token spans the border."""
        pairs = self._within([self._encode_pair(prompt, text) for prompt, text in requests])
        for index, scores in continuation_scores(self.model, pairs, batch_tokens=self.batch_tokens):
            text, n_prompt = requests[index].continuation, len(pairs[index][0])
            yield index, Continuation(text, sum(scores.logprobs), len(scores.logprobs), scores.greedy, n_prompt)

    def rolling(self, texts: Sequence[str]) -> Iterator[tuple[int, Continuation]]:
        windows = [self._windows(text) for text in texts]
        flat = [(index, pair) for index, of_text in enumerate(windows) for pair in of_text]
        left, sums = [len(of_text) for of_text in windows], [(0.0, 0, True)] * len(texts)
        yield from ((i, Continuation(texts[i], 0.0, 0, True)) for i, n in enumerate(left) if not n)
        pairs = [pair for _, pair in flat]
        for place, scores in continuation_scores(self.model, pairs, batch_tokens=self.batch_tokens):
            index = flat[place][0]
            total, n, greedy = sums[index]
            sums[index] = total + sum(scores.logprobs), n + len(scores.logprobs), greedy and scores.greedy
            left[index] -= 1
            if not left[index]:
                yield index, Continuation(texts[index], *sums[index])

    def _windows(self, text: str) -> list[tuple[list[int], list[int]]]:
        """(context, tokens that count) of each window; every token of the text counts once."""
        ids, opening = self.framing.tokenizer.encode(text), self.framing.beginning("") or [self._opening]
        if self.as_harness:
            ids, opening = self.framing.beginning(text), [self._opening]
        whole, n_opening = [*opening, *ids], len(opening)
        pairs = list[tuple[list[int], list[int]]]()
        at = n_opening
        while at < len(whole):
            first = at == n_opening
            end = min(at + (self.window - n_opening + 1 if first else self.stride), len(whole))
            pairs.append((whole[max(0, end - self.window - 1) : at], whole[at:end]))
            at = end
        return pairs

    @property
    def _opening(self) -> int:
        tokenizer = self.framing.tokenizer
        return tokenizer.eos if tokenizer.bos is None else tokenizer.bos

    def _encode_pair(self, prompt: Prompt, continuation: str) -> tuple[list[int], list[int]]:
        if self.chat or not isinstance(prompt, str):
            # an answer of a conversation begins without the space that parts it from a prompt
            return self._encode(prompt), self.framing.tokenizer.encode(continuation.removeprefix(" "))
        return encode_pair(self.framing, prompt, continuation, as_harness=self.as_harness)

    def _within(self, pairs: list[tuple[list[int], list[int]]]) -> list[tuple[list[int], list[int]]]:
        """The pairs; those that are too long lose the beginning of their prompt. GenerationError unless `truncate`."""
        longest, source = self.model.config.max_seq_len, self.model.capabilities.reads_source
        if source:
            return pairs
        n_long = sum(len(before) + len(after) - 1 > longest for before, after in pairs)
        if n_long and not self.truncate:
            raise GenerationError(
                f"{n_long} of {len(pairs)} prompts with their answers are longer than the {longest} tokens that the "
                "model reads; use fewer examples in the prompt, or --truncate to cut the beginning of these"
            )
        cut = [max(0, len(before) + len(after) - 1 - longest) for before, after in pairs]
        return [(before[min(n, len(before) - 1) :], after) for (before, after), n in zip(pairs, cut)]

    def count(self, task: Task[Any]) -> tuple[int, int]:
        """(tokens that are computed for the prompts and options of a task, tokens that it generates, at most)"""
        prompts = [task.prompt(example) for example in task.examples]
        source = self.model.capabilities.reads_source
        if task.rolling:
            windows = [pair for prompt in prompts for pair in self._windows(prompt_text(prompt))]
            return count_tokens(windows, source), 0
        if task.continuations is None:
            return sum(len(self._encode(prompt)) for prompt in prompts), len(prompts) * task.decoding.max_tokens
        pairs = [self._encode_pair(prompt, text) for prompt, example in zip(prompts, task.examples)
                 for text in task.continuations(example)]  # fmt: skip
        return count_tokens(pairs, source), 0

    # --- generation ---------------------------------------------------------------------------------------------------

    def generate(self, requests: Sequence[GenerateRequest]) -> Iterator[tuple[int, GeneratedText]]:
        ready = [self._request(prompt, decoding) for prompt, decoding in requests]
        if self._engine is None:
            self._engine = Engine(self.model, self.engine_options)
        with torch.compiler.set_stance("force_eager"):
            for start in range(0, len(ready), _AT_ONCE):
                for output in self._engine.stream(ready[start : start + _AT_ONCE]):
                    if output.completion is not None:
                        index, done = start + output.request_id, output.completion
                        if done.finish_reason == "error":
                            raise GenerationError(f"an answer failed: {done.error}")
                        cut, n_prompt = done.finish_reason == "length", len(ready[index].prompt)
                        yield index, GeneratedText(done.text or "", cut, n_prompt, len(done.tokens))

    def _request(self, prompt: Prompt, decoding: Decoding) -> Request:
        ids = self._encode(prompt)
        available = self.model.config.max_seq_len - decoding.max_tokens
        if not self.model.capabilities.reads_source and len(ids) > available:
            if not self.truncate or available < 1:
                raise GenerationError(
                    f"a prompt of {len(ids)} tokens and {decoding.max_tokens} of an answer are more than the "
                    f"{self.model.config.max_seq_len} that the model reads; lower max_tokens, use fewer examples in "
                    "the prompt, or --truncate to cut its beginning"
                )
            ids = ids[len(ids) - available :]
        most = max_completion(self.model, ids)
        values = Sampling(
            temperature=decoding.temperature, top_p=decoding.top_p,
            logit_bias=dict.fromkeys(self.framing.unnamed_rows(), float("-inf")),
        )  # fmt: skip
        stop = (*self.framing.ends, *self.framing.stops(decoding.stop))
        n = decoding.max_tokens if most is None else min(decoding.max_tokens, most)
        return Request(ids, n, values, decoding.seed, stop, decoding.stop, self.framing.answer(ids))

    def _encode(self, prompt: Prompt) -> list[int]:
        if not isinstance(prompt, str):
            return self.framing.chat(prompt)
        if self.chat:
            return self.framing.chat([{"role": "user", "content": prompt}])
        return marked(self.framing, prompt) if self.as_harness else self.framing.prompt(prompt)


def marked(framing: Framing, text: str) -> list[int]:
    """As lm-evaluation-harness reads a text: special tokens that are written out are special, and what the tokenizer
    puts before a text stands there once."""
    first, _ = framing.tokenizer.frame
    ids = framing.marked(text)
    begins = framing.tokenizer.encode_marked(text)[: len(first)] == list(first)
    return ids if begins else [*framing.spec.virtual, *first, *ids[len(framing.spec.virtual) :]]


def encode_pair(
    framing: Framing, prompt: str, continuation: str, *, as_harness: bool = False
) -> tuple[list[int], list[int]]:
    """The ids of the prompt and those that count. An empty prompt begins with the tokenizer's bos or eos. `as_harness`:
    white space at the end of the prompt counts as well."""
    if framing.spec.reads_source:
        return framing.prompt(prompt), framing.tokenizer.encode(continuation)

    def encode(text: str) -> list[int]:
        return marked(framing, text) if as_harness else framing.beginning(text)

    whole = encode(prompt + continuation)
    before = encode(prompt.rstrip() if as_harness else prompt)
    same = next((i for i, (a, b) in enumerate(zip(before, whole)) if a != b), min(len(before), len(whole)))
    if not same:
        tokenizer = framing.tokenizer
        return [tokenizer.eos if tokenizer.bos is None else tokenizer.bos], whole
    return whole[:same], whole[same:]
