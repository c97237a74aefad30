# SPDX-License-Identifier: Apache-2.0
"""A generation request, its completion, and the checks that a request must pass."""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from foundling.blocks.position import position_limit, short_limit
from foundling.decode.processors import LogitsProcessor
from foundling.decode.sampling import Sampling
from foundling.errors import GenerationError
from foundling.limits import COMPLETIONS, MAX_TOKENS, REQUESTS, SEED, TOKEN_ID, TOP_LOGPROBS, shown

FinishReason = Literal["end", "stop", "length", "cancelled", "error"]
"""an id of `stop` · one of `stop_strings` or `stop_tokens` · max_tokens · `Engine.cancel` · a processor or `decode`
raised"""


@dataclass(frozen=True)
class Request:
    """One completion of one prompt of token ids."""

    prompt: Sequence[int]
    max_tokens: int
    sampling: Sampling = field(default_factory=Sampling)
    seed: int = 0
    stop: Sequence[int] = ()
    """ids that end the completion; they are not part of it"""
    stop_strings: Sequence[str] = ()
    """strings that end the completion; its tokens include those that complete the string, its text is cut before it"""
    decode: Callable[[list[int]], str] | None = None
    """ids → text; sets `Completion.text`, and stop_strings require it"""
    logprobs: int | None = None
    """how many top log-probabilities to return beside that of each token; None returns no log-probabilities"""
    prompt_logprobs: int | None = None
    """the same for the tokens of the prompt"""
    processors: Sequence[LogitsProcessor] = ()
    """applied after the processors that `sampling` implies"""
    adapter: str | None = None
    """name of an adapter in the model's AdapterBank; only an engine reads it"""
    stop_tokens: Sequence[int] = ()
    """ids that cut the completion as `stop_strings` do, such as special tokens; they are not part of it"""

    def __post_init__(self) -> None:
        """GenerationError, naming the field, for a value of another type or beyond its limit."""
        if isinstance(self.stop, str) or isinstance(self.stop_strings, str):
            raise GenerationError("stop takes ids and stop_strings a list of strings; wrap the string in a list")
        check_ids(self.prompt, "the prompt")
        check_ids(self.stop, "stop")
        check_ids(self.stop_tokens, "stop_tokens")
        SEED.check(self.seed, "seed", GenerationError)
        MAX_TOKENS.check(self.max_tokens, "max_tokens", GenerationError)
        if not isinstance(self.sampling, Sampling):
            raise GenerationError(f"sampling is {shown(self.sampling)}; expected a Sampling")
        if not _is_listed(self.stop_strings, str):
            raise GenerationError(f"stop_strings is {shown(self.stop_strings)}; expected a list of strings")
        if not all(self.stop_strings):
            raise GenerationError("stop_strings contains an empty string, which matches everywhere; remove it")
        if self.stop_strings and self.decode is None:
            raise GenerationError("stop_strings require `decode`, a function from ids to text: pass the tokenizer's")
        listed = _is_listed(self.processors, object)
        if not listed or not all(callable(getattr(processor, "start", None)) for processor in self.processors):
            raise GenerationError(f"processors is {shown(self.processors)}; expected a list of LogitsProcessor")
        if self.decode is not None and not callable(self.decode):
            raise GenerationError(f"decode is {shown(self.decode)}; expected a function from ids to text")
        for name in ("logprobs", "prompt_logprobs"):
            value = getattr(self, name)
            if value is not None:
                TOP_LOGPROBS.check(value, f"{name} (None for none)", GenerationError)


def _is_listed(values: Any, kind: type) -> bool:
    return isinstance(values, list | tuple) and all(isinstance(value, kind) for value in values)


def check_ids(ids: Any, name: str) -> None:
    """GenerationError unless they are a sequence of token ids: whole numbers, NumPy's and torch's as well."""
    if isinstance(ids, str | bytes):
        raise GenerationError(f"{name} is a text, {shown(ids)}; expected token ids: encode it with the tokenizer first")
    values = ids.tolist() if hasattr(ids, "tolist") else ids
    try:
        values = list(values)
    except TypeError:
        raise GenerationError(f"{name} is {shown(ids)}; expected a list of token ids") from None
    if not ({*map(type, values)} <= {int} and 0 <= min(values, default=0) <= max(values, default=0) <= TOKEN_ID.high):
        for value in values:
            if isinstance(value, str):
                raise GenerationError(f"{name} contains the text {shown(value)}; expected ids of tokens")
            TOKEN_ID.check(value, f"{name} contains an id that", GenerationError)


@dataclass
class Completion:
    """The result of a request. Log-probabilities are natural logarithms under the model's own distribution, before
    temperature, penalties and truncation."""

    tokens: list[int]
    finish_reason: FinishReason | None = None
    error: str | None = None
    """the message, where finish_reason is "error" """
    text: str | None = None
    """where the request has `decode`; complete once the completion has finished"""
    logprobs: list[float] | None = None
    top_logprobs: list[dict[int, float]] | None = None
    """the most likely ids at each position, best first"""
    prompt_logprobs: list[float | None] | None = None
    """None for the first token, which has no context"""
    prompt_top_logprobs: list[dict[int, float]] | None = None
    n_shared: int = 0
    """tokens of the prompt whose keys and values an engine had computed for another request"""
    end: tuple[int, float, dict[int, float]] | None = None
    """the stop id that ended it, its log-probability and the most likely ids, where log-probabilities were requested;
    `tokens` does not have it"""
    exception: Exception | None = field(default=None, repr=False, compare=False)
    """what was raised, where finish_reason is "error": a FoundlingError is the request's own fault"""

    @property
    def mean_logprob(self) -> float:
        """Mean per token. Raises GenerationError where the request did not ask for log-probabilities."""
        if self.logprobs is None:
            raise GenerationError("the completion has no log-probabilities; request them with logprobs=0")
        return sum(self.logprobs) / max(1, len(self.logprobs))


def _longest_text(model: Any, prompt: Sequence[int], rereads: bool) -> int:
    """How many tokens a prompt and its completion may have. Longrope scaling rotates a long text otherwise from its
    first token on, so a short one stays short, unless it is read again where it becomes long."""
    longest, short = model.config.max_seq_len, short_limit(model)
    return longest if rereads or short is None or len(prompt) > short else min(short, longest)


def max_completion(model: Any, prompt: Sequence[int], *, rereads: bool = False) -> int | None:
    """The most tokens that the model can generate for this prompt; None where only memory limits them. The source of an
    encoder-decoder does not share positions with its completion, and without a table of positions (T5, the original
    Transformer) neither is limited. `rereads`: see check_request. GenerationError for a source that is too long."""
    if not model.capabilities.reads_source:
        return max(0, _longest_text(model, prompt, rereads) - len(prompt))
    limit = position_limit(model)
    if limit is not None and len(prompt) > limit:
        raise GenerationError(f"the source is {len(prompt)} tokens, the model reads at most {limit}; shorten it")
    return limit


def check_request(model: Any, request: Request, *, rereads: bool = False) -> None:
    """Raises GenerationError for a request that this model cannot serve. `rereads`: whether a text is read again where
    longrope scaling begins to rotate it as a long one; without, a prompt and its completion end there."""
    prompt, vocab_size, max_tokens = request.prompt, model.config.vocab_size, request.max_tokens
    if not len(prompt):
        raise GenerationError("the prompt is empty; pass at least one token")
    if min(prompt) < 0 or max(prompt) >= model.embedding.num_embeddings:  # those of a soft prompt are beyond vocab_size
        raise GenerationError(f"the prompt contains an id outside the vocabulary of {vocab_size}")
    available = max_completion(model, prompt, rereads=rereads)
    if available is not None and max_tokens > available:
        both = "" if model.capabilities.reads_source else f"a prompt of {len(prompt)} tokens and "
        limit = f"the model's max_seq_len {model.config.max_seq_len}"
        longest = model.config.max_seq_len
        if not model.capabilities.reads_source and (short := _longest_text(model, prompt, rereads)) < longest:
            limit = f"the {short} tokens of a short text (longrope scaling rotates a longer one from its start anew)"
        way = f"request at most {available}" if available else "shorten the prompt"
        raise GenerationError(f"{both}max_tokens {max_tokens} exceed {limit}; {way}")
    request.sampling.check(vocab_size)


def check_generates(model: Any) -> None:
    """Raises GenerationError for a model that does not predict the next token."""
    if not model.capabilities.generates:
        name = type(model).__name__
        if type(model).capabilities.generates:
            raise GenerationError(f"this {name} has no head: it reads, and predicts no tokens")
        raise GenerationError(f"{name} does not generate text; see `foundling fill`")


def sample_seed(seed: int, k: int) -> int:
    """The seed of sample k of what is drawn by `seed`; sample 0 has `seed` itself. With seed + k, all samples of seed 0
    but the first would be samples of seed 1."""
    return int.from_bytes(hashlib.sha256(f"{seed} {k}".encode()).digest()[:8], "little") >> 1 if k else seed


def build_sampling(sampling: Sampling | None, fields_by_name: dict[str, Any]) -> Sampling:
    """Either `sampling` or its fields by name. GenerationError for both, or for unknown names."""
    if sampling is not None and fields_by_name:
        raise GenerationError(f"pass either `sampling` or {', '.join(sorted(fields_by_name))}, not both")
    known = [f.name for f in fields(Sampling)]
    for name in fields_by_name:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            raise GenerationError(f"unknown option '{name}'" + (f"; did you mean '{close[0]}'?" if close else ""))
    return Sampling(**fields_by_name) if sampling is None else sampling


def build_requests(
    prompts: Sequence[Sequence[int]],
    n: int,
    seed: int,
    sampling: Sampling,
    **options: Any,
) -> list[Request]:
    """`n` requests per prompt: completion j of prompt i is request i·n + j, and draws by sample_seed(seed, i·n + j).
    `options` are other fields of Request."""
    COMPLETIONS.check(n, "n", GenerationError)
    SEED.check(seed, "seed", GenerationError)
    if isinstance(prompts, str | bytes) or not hasattr(prompts, "__len__"):
        raise GenerationError(f"the prompts are {shown(prompts)}; expected a list of lists of token ids")
    if not len(prompts):
        raise GenerationError("the list of prompts is empty; pass at least one")
    REQUESTS.check(len(prompts) * n, "the number of completions", GenerationError)
    repeated = [prompt for prompt in prompts for _ in range(n)]
    return [
        Request(prompt=prompt, sampling=sampling, seed=sample_seed(seed, row), **options)
        for row, prompt in enumerate(repeated)
    ]
