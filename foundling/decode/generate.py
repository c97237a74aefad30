# SPDX-License-Identifier: Apache-2.0
"""`foundling.generate`: with a model by plain decoding, with an engine by the engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from foundling.decode import plain
from foundling.decode.engine.engine import Engine
from foundling.decode.processors import LogitsProcessor
from foundling.decode.request import Completion, build_requests, build_sampling
from foundling.decode.sampling import Sampling
from foundling.errors import GenerationError

MODEL_ONLY = {"beams", "length_penalty", "draft", "draft_tokens", "on_token"}


def generate(
    model: Any,
    tokens: Sequence[Sequence[int]],
    *,
    max_tokens: int,
    sampling: Sampling | None = None,
    seed: int = 0,
    n: int = 1,
    stop: Sequence[int] = (),
    stop_tokens: Sequence[int] = (),
    stop_strings: Sequence[str] = (),
    decode: Callable[[list[int]], str] | None = None,
    logprobs: int | None = None,
    prompt_logprobs: int | None = None,
    processors: Sequence[LogitsProcessor] = (),
    **more: Any,
) -> list[Completion]:
    """Continues each prompt of ids; `foundling.decode.plain.generate` documents the options.

    `model` is a model or an `Engine` of one. An engine is worth creating (once) where speed matters: it chunks long
    prompts, shares common prefixes, and can pack weights for native code. Beam search, draft models and `on_token` need
    the model. Raises GenerationError for a request that cannot be served.
    """
    options: dict[str, Any] = dict(
        max_tokens=max_tokens, stop=stop, stop_tokens=stop_tokens, stop_strings=stop_strings, decode=decode,
        logprobs=logprobs, prompt_logprobs=prompt_logprobs, processors=processors,
    )  # fmt: skip
    if not isinstance(model, Engine):
        return plain.generate(model, tokens, sampling=sampling, seed=seed, n=n, **options, **more)
    unsupported = sorted(more.keys() & MODEL_ONLY)
    if unsupported:
        raise GenerationError(f"an engine does not support {', '.join(unsupported)}; pass the model itself")
    return model.generate(build_requests(tokens, n, seed, build_sampling(sampling, more), **options))
