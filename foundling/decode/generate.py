# SPDX-License-Identifier: Apache-2.0
"""`foundling.generate`: by an engine where one was made, otherwise in the plain way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from foundling.decode import plain
from foundling.decode.answer import Answer, requests_of
from foundling.decode.engine.engine import Engine
from foundling.decode.processors import Processor
from foundling.decode.sampling import Sampling
from foundling.errors import GenerationError


def generate(
    model: Any,
    tokens: Sequence[Sequence[int]],
    *,
    max_tokens: int,
    sampling: Sampling | None = None,
    seed: int = 0,
    n: int = 1,
    stop: Sequence[int] = (),
    stop_strings: Sequence[str] = (),
    decode: Callable[[list[int]], str] | None = None,
    logprobs: int | None = None,
    prompt_logprobs: int | None = None,
    processors: Sequence[Processor] = (),
    **more: Any,
) -> list[Answer]:
    """Continues each prompt of ids; see `foundling.decode.plain.generate` for what everything means.

    `model` is a model, or an `Engine` of one, which is worth making (once) where speed counts: it reads prompts in
    pieces, shares their beginnings, and has its weights packed for the machine. Beams and draft models need the model.
    Raises GenerationError for what cannot be answered.
    """
    options: dict[str, Any] = dict(
        max_tokens=max_tokens, stop=stop, stop_strings=stop_strings, decode=decode, logprobs=logprobs,
        prompt_logprobs=prompt_logprobs, processors=processors,
    )  # fmt: skip
    if not isinstance(model, Engine):
        return plain.generate(model, tokens, sampling=sampling, seed=seed, n=n, **options, **more)
    only = sorted(more.keys() & {"beams", "length_penalty", "draft", "draft_tokens", "tell"})
    if only:
        raise GenerationError(f"an engine has no {', '.join(only)}; give generate the model itself")
    return model.answer(requests_of(tokens, n, seed, sampling, more, **options))
