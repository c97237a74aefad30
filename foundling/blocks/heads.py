# SPDX-License-Identifier: Apache-2.0
"""What a head on a model reads of a batch of texts, and what it predicts."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from foundling.blocks.encoder import row_means
from foundling.contracts.data import Batch
from foundling.contracts.model import ModelOutput, Pool
from foundling.contracts.objective import Term
from foundling.errors import ConfigError


def last_states(states: Tensor, documents: Tensor | None) -> Tensor:
    """states (B, T, D), documents (B, T) with −1 on the right as padding -> (B, D), at each row's last real token."""
    if documents is None:
        return states[:, -1]
    last = ((documents >= 0).sum(1) - 1).clamp_min(0)
    return states[torch.arange(len(states), device=states.device), last]


def pooled(states: Tensor, documents: Tensor | None, pool: Pool) -> Tensor:
    """states (B, T, D), documents (B, T) -> (B, D), (B, T, D) for "every", (B, 3 D) for "concat" """
    if pool == "every":
        return states
    if pool == "concat":
        largest = states.amax(1)
        if documents is not None:
            real = (documents >= 0)[..., None]
            largest = torch.where(real.any(1), states.masked_fill(~real, -torch.inf).amax(1), 0)
        return torch.cat((last_states(states, documents), largest, row_means(states, documents)), -1)
    if pool == "mean":
        return row_means(states, documents)
    return states[:, 0] if pool == "first" else last_states(states, documents)


def pooled_width(pool: Pool, d_model: int) -> int:
    """Numbers of what a head of this pool reads of one text."""
    return 3 * d_model if pool == "concat" else d_model


def head_states(model: Any, batch: Batch, pool: Pool, *, every: bool) -> ModelOutput:
    """What a head of this `pool` reads: hidden (B, D), or with `every` (B, T, D), of a model whose layers it mixes
    (…, L, D); and the losses that arise inside.

    `tokens` and `documents` (B, T) of the batch: a text a row, −1 as padding on its right; of an encoder `token_types`
    too. An encoder-decoder encodes the text; where its last state is asked for, its decoder reads the text again,
    shifted by its start id, as BART and T5 do in transformers."""
    tokens, documents = batch["tokens"], batch.get("documents")
    can, encoded = model.capabilities, not model.causal
    if encoded and every and pool == "model":
        out = model(tokens, documents=documents, token_types=batch.get("token_types"))
        return ModelOutput(out.hidden, out.aux)
    if can.mixes_layers:
        layers = model.layer_states(tokens, documents)
        return ModelOutput(torch.stack([pooled(states, documents, pool) for states in layers], -2), {})
    if encoded:
        memory = model.encode(tokens, documents=documents, token_types=batch.get("token_types"))
        states = memory.pooled if pool == "model" else pooled(memory.states, documents, pool)
        if states is None:
            raise ConfigError(f"this {type(model).__name__} has no pooled vector; take the pool 'first' or 'mean'")
        return ModelOutput(states, memory.aux)
    if pool == "model":
        raise ConfigError(f"{type(model).__name__} has no pooled vector; take the pool 'last' or 'mean'")
    if not can.reads_source:
        out = model(tokens, documents=documents)
        return ModelOutput(pooled(out.hidden, documents, pool), out.aux)
    memory = model.encode(tokens, documents=documents)
    if pool != "last":
        aux = {f"encoder_{name}": term for name, term in memory.aux.items()}
        return ModelOutput(pooled(memory.states, documents, pool), aux)
    shifted = torch.cat([torch.full_like(tokens[:, :1], model.config.start_id), tokens[:, :-1]], 1)
    out = model(shifted, documents=documents, memory=memory)
    return ModelOutput(last_states(out.hidden, documents), out.aux)


def scores_and_losses(model: Any, batch: Batch) -> tuple[Tensor, dict[str, Term]]:
    """`scores`, and the losses that arise inside the model."""
    task = model.capabilities.task
    if not task:
        raise ConfigError(f"this {type(model).__name__} has no head; put one on it with adapt.heads.add_head")
    out = head_states(model, batch, model.score.layout.pool, every=task == "tag")
    return model.score(out.hidden), out.aux


def scores(model: Any, batch: Batch) -> Tensor:
    """What the model's head predicts, in float32: logits of the classes of each text (B, n) or of each token (B, T, n),
    or standardised values (B, n). ConfigError for a model without a head."""
    return scores_and_losses(model, batch)[0]
