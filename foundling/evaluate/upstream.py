# SPDX-License-Identifier: Apache-2.0
"""Models behind an OpenAI-compatible API as subjects of an evaluation. Imports no torch."""

from __future__ import annotations

import difflib
import hashlib
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, NamedTuple

from foundling.errors import ConfigError, GenerationError
from foundling.evaluate.endpoint import Endpoint, read_key
from foundling.evaluate.endpoint_errors import error_text
from foundling.evaluate.recorded import REPORTED
from foundling.evaluate.subject import (
    Continuation,
    Decoding,
    GeneratedText,
    GenerateRequest,
    LikelihoodRequest,
    Prompt,
    Refusals,
)
from foundling.evaluate.token_spans import Echo, spans_of_echo
from foundling.limits import WORKERS, check_number, shown

PROVIDERS: dict[str, tuple[str, str]] = {
    "openai": ("https://api.openai.com/v1", "OPENAI_API_KEY"),
    "anthropic": ("https://api.anthropic.com/v1", "ANTHROPIC_API_KEY"),
    "google": ("https://generativelanguage.googleapis.com/v1beta/openai", "GEMINI_API_KEY"),
    "mistral": ("https://api.mistral.ai/v1", "MISTRAL_API_KEY"),
    "groq": ("https://api.groq.com/openai/v1", "GROQ_API_KEY"),
    "together": ("https://api.together.xyz/v1", "TOGETHER_API_KEY"),
    "openrouter": ("https://openrouter.ai/api/v1", "OPENROUTER_API_KEY"),
    "deepseek": ("https://api.deepseek.com/v1", "DEEPSEEK_API_KEY"),
    "xai": ("https://api.x.ai/v1", "XAI_API_KEY"),
    "fireworks": ("https://api.fireworks.ai/inference/v1", "FIREWORKS_API_KEY"),
    "cerebras": ("https://api.cerebras.ai/v1", "CEREBRAS_API_KEY"),
    "huggingface": ("https://router.huggingface.co/v1", "HF_TOKEN"),
    "ollama": ("http://localhost:11434/v1", ""),
    "vllm": ("http://localhost:8000/v1", ""),
    "llama-server": ("http://localhost:8080/v1", ""),
    "lmstudio": ("http://localhost:1234/v1", ""),
}
"""name -> (base URL of its OpenAI-compatible API, environment variable of the key; "" where none is needed)"""

RENAMED: dict[str, dict[str, str]] = {
    "openai": {"max_tokens": "max_completion_tokens"},  # its reasoning models refuse the older name
    "mistral": {"seed": "random_seed"},
}
"""provider -> fields of a request that it has another name for"""

CUT = {"length", "model_length", "max_tokens", "MAX_TOKENS"}
"""finish reasons of an answer that reached a limit: OpenAI's, Mistral's, Anthropic's, Google's"""
BROKEN = {"error", "insufficient_system_resource"}
"""finish reasons of an answer that the server did not complete: OpenRouter's and Mistral's, DeepSeek's"""
FIELDS = ("max_tokens", "seed", "stop", "temperature", "top_p")
"""fields of a request that can be left out"""
MAX_STOPS = 4
"""strings that the API takes; further ones cut the text here"""


class Usage(NamedTuple):
    """What was asked so far, as the server counts."""

    requests: int
    retries: int
    prompt_tokens: int
    new_tokens: int
    filtered: int
    """answers that a filter of the provider removed or cut"""
    dollars: float | None
    """by `price`; None without one"""


class Upstream(Refusals):
    """A model behind an OpenAI-compatible API. It is asked by /chat/completions, or with chat=False by /completions,
    which alone gives log-probabilities of a text (`echo` with `logprobs`), where the server has that at all.

    `key_env`: the environment variable that holds the key; `key_file`: a file that only its owner may read, instead.
    Without either no key is sent. `price`: dollars for a million tokens of prompts and of answers. `workers`: requests
    at a time. `omit`: those of FIELDS that the model refuses, such as "temperature"; `rename`: fields with another name
    there. `start`: with chat=False, a text before each text of `rolling` and each empty prompt, such as
    "<|endoftext|>": the first token of all has no log-probability. `options`: timeout, retries, backoff, max_wait of
    `endpoint.Endpoint`.

    Raises ConfigError for a URL that is not https (http on this machine), where a named key is missing, for fields of
    `omit` that a request has not, and for `start` with chat.
    """

    kind = "a model behind an API"
    serves = ("choice", "classify", "generate", "perplexity")

    def __init__(
        self,
        url: str,
        model: str,
        *,
        key_env: str = "",
        key_file: Path | None = None,
        chat: bool = True,
        price: tuple[float, float] | None = None,
        workers: int = 8,
        omit: Sequence[str] = (),
        rename: dict[str, str] | None = None,
        start: str = "",
        **options: Any,
    ) -> None:
        if not model or not model.isprintable() or len(model) > 256:
            raise ConfigError(f"the model is {shown(model)}; expected its name as the server lists it")
        key = read_key(key_env, key_file)
        self.endpoint = Endpoint(url, key, **options)
        if not key and (key_file or key_env):
            way = f"write it into {key_file}" if key_file else f"set the environment variable {key_env}, or give a file"
            raise ConfigError(f"{self.endpoint.host}: no key; {way}")
        if strange := [name for name in omit if name not in FIELDS]:
            raise ConfigError(f"omit has {shown(strange[0])}; expected fields of {', '.join(FIELDS)}")
        if start and chat:
            raise ConfigError(f"start is {shown(start)}; it begins a text: use chat=False (--completions)")
        self.model, self.chat, self.start = model, chat, start
        self.name = f"{model}@{self.endpoint.host}"
        self.price = price and (check_number(price[0], "price", 0), check_number(price[1], "price", 0))
        self.workers = WORKERS.check(workers, "workers")
        self.omit, self.rename = tuple(sorted(omit)), dict(rename or {})
        self._reports: dict[str, None] = {}
        self._prompt_tokens = self._new_tokens = self._filtered = 0

    @property
    def hashes(self) -> dict[str, str]:
        """ "backend" is what the server reported with its answers: the version of the model, its own fingerprint."""
        url = self.endpoint.url.partition("://")[2]
        model = hashlib.sha256(json.dumps([url, self.model]).encode()).hexdigest()
        template = f"upstream {'chat' if self.chat else 'completions'}"
        if self.omit:
            template += f" without {', '.join(self.omit)}"
        if self.start:
            template += f" after {self.start!r}"
        backend = REPORTED + "; ".join(sorted(self._reports) or ["nothing yet"])
        return {"model": model, "template": template, "backend": backend}

    @property
    def usage(self) -> Usage:
        dollars = None
        if self.price:
            dollars = (self._prompt_tokens * self.price[0] + self._new_tokens * self.price[1]) / 1e6
        end = self.endpoint
        counts = self._prompt_tokens, self._new_tokens, self._filtered
        return Usage(end.n_requests, end.n_retries, *counts, dollars)

    def generate(self, requests: Sequence[GenerateRequest]) -> Iterator[tuple[int, GeneratedText]]:
        """GenerationError for a conversation without chat, and for what the server refuses or never answers; the
        answers under way come before it is raised."""
        bodies = [self._generate_body(request) for request in requests]
        path = "/chat/completions" if self.chat else "/completions"

        def ask(index: int, stop: threading.Event) -> GeneratedText:
            choice, usage = self._choice(self.endpoint.post(path, bodies[index], stop, _broken))
            text, cut = self._text_of(choice)
            for end in requests[index].decoding.stop:
                text, stopped, _ = text.partition(end)
                cut = cut and not stopped
            return GeneratedText(text, cut, *usage)

        return in_parallel(ask, len(requests), self.workers, self.endpoint.abort)

    def loglikelihood(self, requests: Sequence[LikelihoodRequest]) -> Iterator[tuple[int, Continuation]]:
        """GenerationError for a conversation, with chat, and where the server does not echo log-probabilities."""
        prompts = [self._plain_prompt(request.prompt) or self.start for request in requests]

        def ask(index: int, stop: threading.Event) -> Continuation:
            return self._score(prompts[index], requests[index].continuation, stop)

        return in_parallel(ask, len(requests), self.workers, self.endpoint.abort)

    def rolling(self, texts: Sequence[str]) -> Iterator[tuple[int, Continuation]]:
        """Each text in one request: the server refuses those beyond its context."""
        self._plain_prompt("")

        def ask(index: int, stop: threading.Event) -> Continuation:
            return self._score(self.start, texts[index], stop)

        return in_parallel(ask, len(texts), self.workers, self.endpoint.abort)

    def _generate_body(self, request: GenerateRequest) -> dict[str, Any]:
        prompt, decoding = request
        if self.chat:
            messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
            return self._body(decoding, {"messages": messages})
        return self._body(decoding, {"prompt": self._plain_prompt(prompt) or self.start})

    def _body(self, decoding: Decoding, body: dict[str, Any]) -> dict[str, Any]:
        body = {"model": self.model, **body, "max_tokens": decoding.max_tokens, "temperature": decoding.temperature}
        if decoding.stop:
            body["stop"] = list(decoding.stop[:MAX_STOPS])
        if decoding.temperature > 0:
            body["seed"] = decoding.seed % 2**31  # what servers take
            if decoding.top_p != 1:
                body["top_p"] = decoding.top_p
        return {self.rename.get(name, name): value for name, value in body.items() if name not in self.omit}

    def _plain_prompt(self, prompt: Prompt) -> str:
        if self.chat and not isinstance(prompt, str):
            raise GenerationError(f"{self.name}: an API gives no log-probability of an answer to a conversation")
        if not isinstance(prompt, str):
            raise GenerationError(f"{self.name}: /completions takes a text and no conversation; use chat=True")
        if self.chat:
            raise GenerationError(f"{self.name}: chat gives no log-probability; use chat=False (--completions)")
        return prompt

    def _choice(self, value: Any) -> tuple[dict[str, Any], tuple[int, int]]:
        """The choice, with the tokens of prompt and answer."""
        choices = value.get("choices") if isinstance(value, dict) else None
        if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
            text = self.endpoint.key.cut(error_text(value, json.dumps(value)))
            raise GenerationError(f"{self.endpoint.url}: an answer without choices ({shown(text)}); check the URL")
        usage: Any = value.get("usage") if isinstance(value.get("usage"), dict) else {}
        counts = _count(usage.get("prompt_tokens")), _count(usage.get("completion_tokens"))
        parts = [
            self.endpoint.key.cut(str(value[name]), 200) for name in ("model", "system_fingerprint") if value.get(name)
        ]
        report = " ".join(parts).replace(";", ",")
        with self.endpoint.lock:
            self._prompt_tokens += counts[0]
            self._new_tokens += counts[1]
            if report:
                self._reports[report] = None
        return choices[0], counts

    def _text_of(self, choice: dict[str, Any]) -> tuple[str, bool]:
        """(text, cut). Reasoning that stands apart from the answer is no part of it."""
        message = choice.get("message") if self.chat else choice
        message = message if isinstance(message, dict) else {}
        content = message.get("content" if self.chat else "text")
        if isinstance(content, list):
            parts = [part for part in content if isinstance(part, dict) and part.get("type", "text") == "text"]
            content = "".join(str(part.get("text") or "") for part in parts)
        if content is None:
            content = message.get("refusal") or ""
        if not isinstance(content, str):
            raise GenerationError(f"{self.endpoint.url}: the content of an answer is {shown(content)}, no text")
        reason = choice.get("finish_reason")
        if reason in ("content_filter", "SAFETY"):
            with self.endpoint.lock:
                self._filtered += 1
        return self.endpoint.key.removed(content), reason in CUT

    def _score(self, prompt: str, continuation: str, stop: threading.Event) -> Continuation:
        text = prompt + continuation
        if not continuation:
            return Continuation("", 0.0, 0, greedy=True)
        body = self._body(Decoding(max_tokens=1), {"prompt": text})  # several servers refuse 0
        choice, (n_prompt, _) = self._choice(
            self.endpoint.post("/completions", body | {"echo": True, "logprobs": 1}, stop)
        )
        try:
            tokens = spans_of_echo(Echo.of(choice.get("logprobs")), text)
        except ValueError as error:
            raise GenerationError(f"{self.endpoint.url}: {self.endpoint.key.cut(str(error))}") from None
        begin = len(prompt.encode())
        counted = [token for token in tokens if token.end > begin]
        logprobs = [token.logprob for token in counted]
        if None in logprobs:
            raise GenerationError(
                f"{self.endpoint.url}: no log-probability of the first token; give `start` (--start), the text that "
                'begins a document for the model, such as "<|endoftext|>"'
            )
        total = sum(value for value in logprobs if value is not None)
        n_before = n_prompt and max(0, n_prompt - len(counted))
        return Continuation(continuation, total, len(counted), all(token.greedy for token in counted), n_before)


def subject_of(spec: str, **options: Any) -> Upstream:
    """`openai:gpt-4o`, `ollama:llama3:8b` (a provider of PROVIDERS and its name of a model), or `NAME@URL` of any other
    server. `options`: those of Upstream. A provider's own variable holds the key for its own URL alone: NAME@URL has no
    key but that of `key_env` or `key_file`. Raises ConfigError for what is neither."""
    for scheme in ("@https://", "@http://"):
        if scheme in spec:
            model, _, rest = spec.partition(scheme)
            return Upstream(scheme[1:] + rest, model, **options)
    provider, colon, model = spec.partition(":")
    if not colon or not model or provider not in PROVIDERS:
        close = difflib.get_close_matches(provider, PROVIDERS, 1)
        meant = f"; did you mean {close[0]}:{model or 'MODEL'}?" if close and provider not in PROVIDERS else ""
        names = ", ".join(PROVIDERS)
        raise ConfigError(f"{shown(spec)}: no model of an API; expected PROVIDER:MODEL ({names}) or NAME@URL{meant}")
    url, variable = PROVIDERS[provider]
    return Upstream(url, model, **{"key_env": variable, "rename": RENAMED.get(provider, {})} | options)


def in_parallel(
    ask: Callable[[int, threading.Event], Any], n: int, workers: int, abort: Callable[[], None]
) -> Iterator[tuple[int, Any]]:
    """(i, ask(i, stop)) for i below n, as they come, from `workers` threads. After an error no further one begins,
    those under way are waited for and yielded, and then it is raised. Where the caller leaves, `stop` is set and
    `abort` called, so that no thread keeps the process."""
    stop, failure = threading.Event(), None
    pool = ThreadPoolExecutor(workers, thread_name_prefix="upstream")
    running: dict[Future[Any], int] = {}
    left = iter(range(n))
    try:
        while True:
            while failure is None and len(running) < workers and (index := next(left, None)) is not None:
                running[pool.submit(ask, index, stop)] = index
            if not running:
                break
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in sorted(done, key=running.__getitem__):
                index = running.pop(future)
                try:
                    value = future.result()
                except GenerationError as error:
                    failure = failure or error
                    continue
                yield index, value
    finally:
        stop.set()
        if running:
            abort()
        pool.shutdown(wait=False, cancel_futures=True)
    if failure is not None:
        raise failure


def _broken(value: Any) -> str:
    choices = value.get("choices") if isinstance(value, dict) else None
    choice = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}
    if choice.get("finish_reason") in BROKEN or choice.get("error"):
        return (
            f"the server broke off an answer: {error_text(choice) if choice.get('error') else choice['finish_reason']}"
        )
    return ""


def _count(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0
