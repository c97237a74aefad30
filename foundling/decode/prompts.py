# SPDX-License-Identifier: Apache-2.0
"""Reading prompts: into the cache of a model that goes on from them, or into the memory of one that answers them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from foundling.errors import GenerationError


def padded(rows: Sequence[Sequence[int]], device: Any) -> tuple[Tensor, Tensor]:
    """Token lists of different lengths -> ids and documents (B, T), -1 on the right."""
    longest = max(len(row) for row in rows)
    ids = torch.zeros(len(rows), longest, dtype=torch.int64)
    documents = torch.full_like(ids, -1)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = torch.tensor(row)
        documents[index, : len(row)] = 0
    return ids.to(device), documents.to(device)


def check(model: Any, tokens: Sequence[Sequence[int]], max_tokens: int) -> None:
    """GenerationError for what cannot be answered."""
    config = model.config
    if max_tokens < 1:
        raise GenerationError(f"max_tokens is {max_tokens}; expected at least 1")
    if not tokens or not all(tokens):
        raise GenerationError("the prompt is empty; give at least one token")
    if min(map(min, tokens)) < 0 or max(map(max, tokens)) >= config.vocab_size:
        raise GenerationError(f"the prompt holds an id outside the vocabulary of {config.vocab_size}")
    longest = max(map(len, tokens))
    if not hasattr(model, "encode") and longest + max_tokens > config.max_seq_len:
        raise GenerationError(
            f"a prompt of {longest} tokens and max_tokens {max_tokens} exceed the model's {config.max_seq_len}; "
            f"ask for at most {max(0, config.max_seq_len - longest)}"
        )


def prefill(model: Any, tokens: Sequence[Sequence[int]], room: int) -> tuple[Any, Tensor]:
    """The cache, with `room` for more tokens a row, and the hidden states (B, D) from which the first one follows. An
    encoder-decoder encodes the tokens, projects the memory once, and reads its start id."""
    device = next(model.parameters()).device
    ids, documents = padded(tokens, device)
    if hasattr(model, "encode"):
        cache = model.new_cache(len(tokens), room + 1, memory=model.encode(ids, documents=documents))
        start = torch.full((len(tokens), 1), model.config.start_id, device=device)
        return cache, model(start, cache=cache).hidden[:, -1]
    cache = model.new_cache(len(tokens), ids.shape[1] + room)
    hidden = model(ids, documents=documents, cache=cache).hidden
    last = (documents >= 0).sum(1) - 1
    return cache, hidden[torch.arange(len(tokens), device=device), last]
