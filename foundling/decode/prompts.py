# SPDX-License-Identifier: Apache-2.0
"""Prefill: prompts go into the cache of a decoder, or through the encoder of an encoder-decoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from foundling.decode.request import Completion
from foundling.decode.sequence_state import token_logprobs


def pad_prompts(rows: Sequence[Sequence[int]], device: Any, width: int = 1) -> tuple[Tensor, Tensor]:
    """Token lists of different lengths → ids and documents (B, T), −1 on the right; T is at least `width`."""
    longest = max((len(row) for row in rows), default=0)
    ids = torch.zeros(len(rows), max(width, longest), dtype=torch.int64)
    documents = torch.full_like(ids, -1)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = torch.tensor(list(row), dtype=torch.int64)
        documents[index, : len(row)] = 0
    return ids.to(device), documents.to(device)


def prefill(model: Any, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> tuple[Any, Tensor]:
    """The cache, with space for `max_new_tokens` more per row, and the hidden states (B, D) that predict the first new
    token. An encoder-decoder encodes the prompts, projects the encoder output once, and reads its start id."""
    device = next(model.parameters()).device
    ids, documents = pad_prompts(prompts, device)
    if model.capabilities.reads_source:
        padded = len({len(prompt) for prompt in prompts}) > 1
        memory = model.encode(ids, documents=documents if padded else None)
        cache = model.new_cache(len(prompts), max_new_tokens + 1, memory=memory)
        start = torch.full((len(prompts), 1), model.config.start_id, device=device)
        return cache, model(start, cache=cache).hidden[:, -1]
    cache = model.new_cache(len(prompts), ids.shape[1] + max_new_tokens)
    hidden = model(ids, documents=documents, cache=cache).hidden
    last = (documents >= 0).sum(1) - 1
    return cache, hidden[torch.arange(len(prompts), device=device), last]


def add_prompt_logprobs(model: Any, prompt: Sequence[int], n_top: int, completion: Completion) -> None:
    """Fills in the log-probabilities of the prompt's own tokens."""
    hidden = model(torch.tensor([list(prompt)], device=next(model.parameters()).device)).hidden[0, :-1]
    completion.prompt_logprobs, completion.prompt_top_logprobs = [None], [{}]
    for start in range(0, len(hidden), 256):  # in chunks, so that no (T, V) is held
        chunk = hidden[start : start + 256]
        targets = prompt[start + 1 : start + 1 + len(chunk)]
        for logprob, top in token_logprobs(model.logits(chunk), targets, n_top):
            completion.prompt_logprobs.append(logprob)
            completion.prompt_top_logprobs.append(top)
