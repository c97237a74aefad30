# SPDX-License-Identifier: Apache-2.0
"""What is asked, what comes back, and an answer while it is being written."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal

import torch
from torch import Tensor

from foundling.decode.processors import Processor, Progress, processors_of
from foundling.decode.sampling import Sampling, choose
from foundling.errors import GenerationError

Finish = Literal["end", "stop", "length", "cancelled", "error"]
"""an id of `stop`; a string of `stop_strings`; max_tokens; whoever asked; a processor or `decode` that failed"""
MAX_ALTERNATIVES = 1000


@dataclass(frozen=True)
class Request:
    """One answer to one prompt of ids."""

    prompt: Sequence[int]
    max_tokens: int
    sampling: Sampling = field(default_factory=Sampling)
    seed: int = 0
    stop: Sequence[int] = ()
    """ids that end the answer and are left out of it"""
    stop_strings: Sequence[str] = ()
    """texts that end it; the answer keeps the ids that complete one, its text is cut before it"""
    decode: Callable[[list[int]], str] | None = None
    """ids to text: fills the answer's text, and stop_strings need it"""
    logprobs: int | None = None
    """how many alternatives to tell beside each token's own log-probability; None tells nothing"""
    prompt_logprobs: int | None = None
    """the same of the prompt's tokens"""
    processors: Sequence[Processor] = ()
    """besides those that `sampling` asks for, after them"""
    adapter: str | None = None
    """a name of the model's AdapterBank; for an engine"""

    def __post_init__(self) -> None:
        if isinstance(self.stop, str) or isinstance(self.stop_strings, str):
            raise GenerationError("stop takes ids and stop_strings a list of texts; wrap the string in a list")
        if not all(self.stop_strings):
            raise GenerationError("stop_strings holds an empty text, which is found everywhere; leave it out")
        if self.stop_strings and self.decode is None:
            raise GenerationError("stop_strings need `decode`, ids to text: pass the tokenizer's")
        wrong = [i for i in self.stop if isinstance(i, bool) or not isinstance(i, int)]
        if wrong:
            raise GenerationError(f"stop holds {wrong[0]!r}; expected ids (texts go into stop_strings)")
        for name in ("logprobs", "prompt_logprobs"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, int) and 0 <= value <= MAX_ALTERNATIVES):
                raise GenerationError(f"{name} is {value!r}; expected 0 to {MAX_ALTERNATIVES} alternatives, or None")


@dataclass
class Answer:
    """Log-probabilities are natural, of the model's own distribution: before temperature, penalties and cuts."""

    tokens: list[int]
    finish: Finish | None = None
    error: str | None = None
    """why, where it ended by one"""
    text: str | None = None
    """where the request has a `decode`; complete once the answer has ended"""
    logprobs: list[float] | None = None
    alternatives: list[dict[int, float]] | None = None
    """the likeliest ids at each place, best first"""
    prompt_logprobs: list[float | None] | None = None
    """None for a place that nothing stands before"""
    prompt_alternatives: list[dict[int, float]] | None = None

    @property
    def mean_logprob(self) -> float:
        """Per token; GenerationError where none were asked for."""
        if self.logprobs is None:
            raise GenerationError("the answer has no log-probabilities; ask with logprobs=0")
        return sum(self.logprobs) / max(1, len(self.logprobs))


def told(logits: Tensor, tokens: Sequence[int], alternatives: int) -> list[tuple[float, dict[int, float]]]:
    """(n, V) logits and the n tokens that followed -> each one's log-probability and the likeliest."""
    logprobs = torch.log_softmax(logits.float(), dim=-1)
    own = logprobs.gather(-1, torch.tensor(tokens, device=logits.device)[:, None])[:, 0].tolist()
    values, ids = logprobs.topk(min(alternatives, logits.shape[-1]), dim=-1)
    best = [dict(zip(i, v, strict=True)) for i, v in zip(ids.tolist(), values.tolist(), strict=True)]
    return list(zip(own, best, strict=True))


class Writing:
    """An answer under way: what its processors know, and when it ends."""

    def __init__(self, request: Request, begin: Sequence[int] | None = None) -> None:
        """`begin` is what stands before the answer where that is not the prompt (an encoder-decoder's start id)."""
        self.request, self.answer = request, Answer([])
        before = request.prompt if begin is None else begin
        chosen = [*processors_of(request.sampling), *request.processors]
        self.progress: list[Progress] = [processor.start(before) for processor in chosen]
        self.shape = request.sampling.shape
        if request.logprobs is not None:
            self.answer.logprobs, self.answer.alternatives = [], []
        if request.stop_strings:
            self.answer.text = ""
            self.longest = max(map(len, request.stop_strings))

    @property
    def position(self) -> int:
        return len(self.answer.tokens)

    @property
    def ended(self) -> bool:
        return self.answer.finish is not None

    def filtered(self, logits: Tensor) -> Tensor:
        """(V,) float32 -> (V,), after all processors"""
        for progress in self.progress:
            logits = progress.apply(logits)
        return logits

    def take(self, token: int, logits: Tensor) -> None:
        """Appends a token that followed the model's `logits` (V,), unless it ends the answer."""
        request, answer = self.request, self.answer
        if token in request.stop:
            self.end("end")
            return
        answer.tokens.append(token)
        for progress in self.progress:
            progress.accept(token)
        if request.logprobs is not None:
            ((own, best),) = told(logits[None], [token], request.logprobs)
            answer.logprobs.append(own)  # pyright: ignore
            answer.alternatives.append(best)  # pyright: ignore
        if request.stop_strings:
            self._look_for_strings()
        if not self.ended and len(answer.tokens) == request.max_tokens:
            self.end("length")

    def end(self, finish: Finish) -> None:
        """The answer is complete as it stands."""
        self.answer.finish = finish
        if self.request.decode is not None and finish != "stop":
            self.answer.text = self.request.decode(self.answer.tokens)

    def _look_for_strings(self) -> None:
        """A string may span tokens, and a token may hold more than the end of it."""
        assert self.request.decode is not None
        answer, before = self.answer, len(self.answer.text or "")
        answer.text = self.request.decode(answer.tokens)
        # ids that end inside a character decode to a replacement that the next one takes back: look a little further
        start = max(0, before - self.longest - 8)
        found = [at for s in self.request.stop_strings if (at := answer.text.find(s, start)) >= 0]
        if found:
            answer.text = answer.text[: min(found)]
            self.end("stop")


def next_tokens(writings: Sequence[Writing], logits: Tensor) -> list[int]:
    """(B, V) logits, one row a writing -> a token each, after its processors and sampling; taken by none yet."""
    logits = filtered(writings, logits.float())
    return choose(
        logits, [w.shape for w in writings], [w.request.seed for w in writings], [w.position for w in writings]
    )


def filtered(writings: Sequence[Writing], logits: Tensor) -> Tensor:
    """(B, V) float32 after each row's processors; GenerationError where they leave nothing to say."""
    if not any(w.progress for w in writings):
        return logits
    rows = [w.filtered(row) for w, row in zip(writings, logits, strict=True)]
    logits = torch.stack(rows)
    if bool(torch.isneginf(logits.amax(-1)).any()):
        raise GenerationError("every token is forbidden here: constraints, bad_words and logit_bias exclude each other")
    return logits


def check_request(config: Any, request: Request, *, encodes: bool) -> None:
    """GenerationError for what the model cannot answer."""
    prompt, vocab = request.prompt, config.vocab_size
    most = request.max_tokens
    if isinstance(most, bool) or not isinstance(most, int) or most < 1:
        raise GenerationError(f"max_tokens is {most!r}; expected a whole number, at least 1")
    if not len(prompt):
        raise GenerationError("the prompt is empty; give at least one token")
    if min(prompt) < 0 or max(prompt) >= vocab:
        raise GenerationError(f"the prompt holds an id outside the vocabulary of {vocab}")
    if not encodes and len(prompt) + request.max_tokens > config.max_seq_len:
        raise GenerationError(
            f"a prompt of {len(prompt)} tokens and max_tokens {request.max_tokens} exceed the model's "
            f"{config.max_seq_len}; ask for at most {max(0, config.max_seq_len - len(prompt))}"
        )
    request.sampling.check(vocab)


def check_writes(model: Any) -> None:
    """GenerationError for a model that reads both ways, or no text at all."""
    if not hasattr(model, "new_cache"):
        raise GenerationError(f"{type(model).__name__} does not write from left to right; see `foundling fill`")


def requests_of(
    tokens: Sequence[Sequence[int]],
    n: int,
    seed: int,
    sampling: Sampling | None,
    cuts: dict[str, Any],
    **options: Any,
) -> list[Request]:
    """`n` requests a prompt, answer j of prompt i at i·n + j, drawing by seed + row. `cuts` are fields of Sampling, or
    `sampling` is one. GenerationError for names it has not, and for what excludes each other."""
    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        raise GenerationError(f"n is {n!r}; expected a whole number, at least 1")
    if sampling is not None and cuts:
        raise GenerationError(f"give `sampling` or {', '.join(sorted(cuts))}, not both")
    known = [f.name for f in fields(Sampling)]
    for name in cuts:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            raise GenerationError(f"unknown option '{name}'" + (f"; did you mean '{close[0]}'?" if close else ""))
    sampling = Sampling(**cuts) if sampling is None else sampling
    if not len(tokens):
        raise GenerationError("the prompt is empty; give at least one")
    prompts = [prompt for prompt in tokens for _ in range(n)]
    return [Request(prompt=prompt, sampling=sampling, seed=seed + row, **options) for row, prompt in enumerate(prompts)]
