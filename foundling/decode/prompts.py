# SPDX-License-Identifier: Apache-2.0
"""Reading prompts: into the cache of a model that goes on from them, or into the memory of one that answers them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from foundling.decode.answer import Answer, told


def padded(rows: Sequence[Sequence[int]], device: Any) -> tuple[Tensor, Tensor]:
    """Token lists of different lengths -> ids and documents (B, T), -1 on the right."""
    longest = max(len(row) for row in rows)
    ids = torch.zeros(len(rows), longest, dtype=torch.int64)
    documents = torch.full_like(ids, -1)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = torch.tensor(row)
        documents[index, : len(row)] = 0
    return ids.to(device), documents.to(device)


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


def tell_prompt(model: Any, prompt: Sequence[int], alternatives: int, answer: Answer) -> None:
    """Writes the log-probabilities of the prompt's own tokens into the answer."""
    hidden = model(torch.tensor([list(prompt)], device=next(model.parameters()).device)).hidden[0, :-1]
    answer.prompt_logprobs, answer.prompt_alternatives = [None], [{}]
    for begin in range(0, len(hidden), 256):  # no (T, V) whole
        some = hidden[begin : begin + 256]
        for own, best in told(model.logits(some), prompt[begin + 1 : begin + 1 + len(some)], alternatives):
            answer.prompt_logprobs.append(own)
            answer.prompt_alternatives.append(best)
