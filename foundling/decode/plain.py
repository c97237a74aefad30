# SPDX-License-Identifier: Apache-2.0
"""Generation in its plainest form — prefill, step, cache — which faster paths are held against."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from foundling.decode.sampling import Sampling, distribution, draw
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
    stop: Sequence[int] = (),
    tell: Callable[[list[int]], None] | None = None,
) -> list[list[int]]:
    """Continues each prompt of `tokens` by up to `max_tokens` ids, the stopping one left out; row i draws by seed + i.

    `tell` hears the new id of each row, -1 for a row that has ended. Raises GenerationError for an empty prompt, values
    that make no sense, ids outside the vocabulary or more tokens than the model's max_seq_len.
    """
    sampling = Sampling(temperature, top_k, top_p)
    config, device = model.config, next(model.parameters()).device
    if max_tokens < 1:
        raise GenerationError(f"max_tokens is {max_tokens}; expected at least 1")
    if not tokens or not all(tokens):
        raise GenerationError("the prompt is empty; give at least one token")
    lengths = [len(row) for row in tokens]
    longest = max(lengths)
    if longest + max_tokens > config.max_seq_len:
        raise GenerationError(
            f"a prompt of {longest} tokens and max_tokens {max_tokens} exceed the model's {config.max_seq_len}; "
            f"ask for at most {max(0, config.max_seq_len - longest)}"
        )
    ids = torch.zeros(len(tokens), longest, dtype=torch.int64)
    documents = torch.full_like(ids, -1)
    for row, prompt in enumerate(tokens):
        ids[row, : len(prompt)] = torch.tensor(prompt)
        documents[row, : len(prompt)] = 0
    if int(ids.min()) < 0 or int(ids.max()) >= config.vocab_size:
        raise GenerationError(f"the prompt holds an id outside the vocabulary of {config.vocab_size}")

    cache = model.new_cache(len(tokens), longest + max_tokens)
    hidden = model(ids.to(device), documents=documents.to(device), cache=cache).hidden
    last = hidden[torch.arange(len(tokens)), torch.tensor(lengths) - 1]
    answers: list[list[int]] = [[] for _ in tokens]
    alive = list(range(len(tokens)))  # row of the cache -> row of the answers
    for n in range(max_tokens):
        probs = distribution(model.logits(last), sampling)
        chosen = draw(probs, [seed + row for row in alive], [n] * len(alive)).tolist()
        if tell:
            heard = dict(zip(alive, chosen, strict=True))
            tell([heard.get(row, -1) for row in range(len(tokens))])
        ended = [token in stop for token in chosen]
        for row, token, end in zip(alive, chosen, ended, strict=True):
            if not end:
                answers[row].append(token)
        if all(ended) or n == max_tokens - 1:
            break
        if any(ended):
            stay = [i for i, end in enumerate(ended) if not end]
            cache = cache.select(torch.tensor(stay, device=device))
            alive, chosen = [alive[i] for i in stay], [chosen[i] for i in stay]
        last = model(torch.tensor(chosen, device=device)[:, None], cache=cache).hidden[:, -1]
    return answers
