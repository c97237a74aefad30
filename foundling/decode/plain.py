# SPDX-License-Identifier: Apache-2.0
"""Generation in its plainest form — prefill, step, cache — which faster paths are held against."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from foundling.decode.beam import beam_search
from foundling.decode.prompts import check, prefill
from foundling.decode.sampling import Sampling, distribution, draw
from foundling.decode.speculative import speculate
from foundling.errors import GenerationError


@torch.inference_mode()
def generate(
    model: Any,
    tokens: Sequence[Sequence[int]],
    *,
    max_tokens: int,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
    n: int = 1,
    stop: Sequence[int] = (),
    beams: int = 1,
    length_penalty: float = 1.0,
    draft: Any = None,
    draft_tokens: int = 4,
    tell: Callable[[list[int]], None] | None = None,
) -> list[list[int]]:
    """Continues each prompt of `tokens` by up to `max_tokens` ids, the stopping one left out; an encoder-decoder reads
    them as its source and answers.

    `n` answers a prompt, which is read once: answer j of prompt i is row i·n + j and draws by seed + row. `beams` above
    1 searches for likely answers instead of drawing (decode/beam.py) and gives the n best. `draft`, a smaller model of
    the same vocabulary, proposes `draft_tokens` at a time; what is drawn has the same distribution
    (decode/speculative.py). `tell` hears the new id of each row, -1 for a row that has ended.

    Raises GenerationError for an empty prompt, values that make no sense or exclude each other, ids outside the
    vocabulary or more tokens than the model's max_seq_len.
    """
    sampling = Sampling(temperature, top_k, top_p)
    check(model, tokens, max_tokens)
    if n < 1 or beams < 1:
        raise GenerationError(f"n is {n} and beams {beams}; expected at least 1 of each")
    if beams > 1:
        if draft is not None or tell or temperature not in (0.0, 1.0) or top_k or top_p < 1:
            raise GenerationError("beams search and do not draw: leave temperature, top_k, top_p, draft and tell out")
        if n > beams:
            raise GenerationError(f"{n} answers of {beams} beams; ask for at most {beams}")
        return beam_search(model, tokens, max_tokens, beams, n, stop, length_penalty)
    if tell and draft is not None:
        raise GenerationError("tell hears one token at a time; a draft proposes several: leave one of them out")
    seeds = [seed + row for row in range(len(tokens) * n)]
    if draft is not None:
        return speculate(model, draft, [row for row in tokens for _ in range(n)], max_tokens, sampling, seeds, stop,
                         draft_tokens)[0]  # fmt: skip

    cache, last = prefill(model, tokens, max_tokens)
    if n > 1:
        rows = torch.arange(len(tokens), device=last.device).repeat_interleave(n)
        cache, last = cache.select(rows), last[rows]
    answers: list[list[int]] = [[] for _ in seeds]
    alive = list(range(len(seeds)))  # row of the cache -> row of the answers
    for position in range(max_tokens):
        probs = distribution(model.logits(last), sampling)
        chosen = draw(probs, [seeds[row] for row in alive], [position] * len(alive)).tolist()
        if tell:
            heard = dict(zip(alive, chosen, strict=True))
            tell([heard.get(row, -1) for row in range(len(seeds))])
        ended = [token in stop for token in chosen]
        for row, token, end in zip(alive, chosen, ended, strict=True):
            if not end:
                answers[row].append(token)
        if all(ended) or position == max_tokens - 1:
            break
        if any(ended):
            stay = [i for i, end in enumerate(ended) if not end]
            cache = cache.select(torch.tensor(stay, device=last.device))
            alive, chosen = [alive[i] for i in stay], [chosen[i] for i in stay]
        last = model(torch.tensor(chosen, device=last.device)[:, None], cache=cache).hidden[:, -1]
    return answers
