# SPDX-License-Identifier: Apache-2.0
"""Generation in its plainest form — prefill, step, cache — which faster paths are held against."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from foundling.decode.answer import Answer, Writing, check_request, check_writes, next_tokens, requests_of
from foundling.decode.beam import beam_search
from foundling.decode.processors import Processor
from foundling.decode.prompts import prefill, tell_prompt
from foundling.decode.sampling import Sampling
from foundling.decode.speculative import Guesser, ModelGuesser, speculate
from foundling.errors import GenerationError


@torch.inference_mode()
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
    beams: int = 1,
    length_penalty: float = 1.0,
    draft: Any = None,
    draft_tokens: int = 4,
    tell: Callable[[list[int]], None] | None = None,
    **cuts: Any,
) -> list[Answer]:
    """Continues each prompt of `tokens` by up to `max_tokens` ids, the stopping one left out; an encoder-decoder reads
    them as its source and answers. Other options are those of `Request`; `cuts` are fields of `Sampling` (temperature,
    top_k, …), in place of `sampling`.

    `n` answers a prompt, which is read once: answer j of prompt i is row i·n + j and draws by seed + row. `beams` above
    1 searches for likely answers instead of drawing (decode/beam.py) and gives the n best. `draft`, a smaller model of
    the same vocabulary or a `Guesser`, proposes `draft_tokens` at a time; what is drawn has the same distribution
    (decode/speculative.py). `tell` hears the new id of each row, -1 for a row that has ended.

    Raises GenerationError for an empty prompt, values that make no sense or exclude each other, ids outside the
    vocabulary or more tokens than the model's max_seq_len.
    """
    check_writes(model)
    requests = requests_of(
        tokens, n, seed, sampling, cuts, max_tokens=max_tokens, stop=stop, stop_strings=stop_strings, decode=decode,
        logprobs=logprobs, prompt_logprobs=prompt_logprobs, processors=processors,
    )  # fmt: skip
    encodes = hasattr(model, "encode")
    for request in requests:
        check_request(model.config, request, encodes=encodes)
    if prompt_logprobs is not None and encodes:
        raise GenerationError("an encoder-decoder does not predict its source: leave prompt_logprobs out")
    writings = [Writing(request, [model.config.start_id] if encodes else None) for request in requests]
    if beams != 1:
        _only_beams(writings[0], beams, n, draft is not None or tell is not None)
        found = beam_search(model, tokens, max_tokens, beams, n, stop, length_penalty)
        return [Answer(row, "length" if len(row) == max_tokens else "end") for row in found]
    if tell and draft is not None:
        raise GenerationError("tell hears one token at a time; a draft proposes several: leave one of them out")
    if prompt_logprobs is not None:
        for writing in writings:
            tell_prompt(model, writing.request.prompt, prompt_logprobs, writing.answer)
    if draft is not None:
        guesser: Guesser = draft if isinstance(draft, Guesser) else ModelGuesser(model, draft)
        speculate(model, guesser, writings, draft_tokens)
        return [w.answer for w in writings]

    cache, last = prefill(model, tokens, max_tokens)
    if n > 1:
        rows = torch.arange(len(tokens), device=last.device).repeat_interleave(n)
        cache, last = cache.select(rows), last[rows]
    alive = list(range(len(writings)))  # row of the cache -> answer
    while True:
        logits = model.logits(last).float()
        chosen = next_tokens([writings[i] for i in alive], logits)
        if tell:
            heard = dict(zip(alive, chosen, strict=True))
            tell([heard.get(i, -1) for i in range(len(writings))])
        for i, token, row in zip(alive, chosen, logits, strict=True):
            writings[i].take(token, row)
        stay = [row for row, i in enumerate(alive) if not writings[i].ended]
        if not stay:
            return [w.answer for w in writings]
        if len(stay) < len(alive):
            cache = cache.select(torch.tensor(stay, device=last.device))
            alive, chosen = [alive[row] for row in stay], [chosen[row] for row in stay]
        last = model(torch.tensor(chosen, device=last.device)[:, None], cache=cache).hidden[:, -1]


def _only_beams(of: Writing, beams: int, n: int, more: bool) -> None:
    if beams < 1:
        raise GenerationError(f"beams is {beams}; expected at least 1")
    asks = of.request
    if more or asks.sampling not in (Sampling(), Sampling(temperature=0)) or asks.processors or asks.stop_strings:
        raise GenerationError(
            "beams search and do not draw: leave sampling options, processors, stop_strings, draft and tell out"
        )
    if asks.logprobs is not None or asks.prompt_logprobs is not None:
        raise GenerationError("beams are scored whole: leave logprobs and prompt_logprobs out")
    if n > beams:
        raise GenerationError(f"{n} answers of {beams} beams; ask for at most {beams}")
