# SPDX-License-Identifier: Apache-2.0
"""A stack that reads a text from both sides at once, and what may stand on it: a pooled vector, the tokens that belong
into gaps, classes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foundling.blocks.norm import LayerNorm
from foundling.blocks.position import positions_of
from foundling.contracts.model import Capabilities, EncoderOutput, Mask, ModelOutput
from foundling.errors import ConfigError, GenerationError


class Encoder(nn.Module):
    """Sums of embeddings, normalised; layers without a direction; a transformed state for the head (Devlin et al. 2019,
    sections 3 and A.2). The family builds the layers; `config` says which of the parts on top there are: `pooled`,
    `masked` (the head over the vocabulary) and `n_classes`.

    `d_embed`: the embeddings' width, where it is not the layers'; `first_position`: the row of the table that a
    document's first token reads."""

    capabilities = Capabilities(embeds=True)

    def __init__(
        self,
        config: Any,
        layers: list[nn.Module],
        *,
        d_embed: int | None = None,
        n_types: int = 0,
        first_position: int = 0,
        activation: Callable[[Tensor], Tensor] = F.gelu,
        pool_activation: Callable[[Tensor], Tensor] = torch.tanh,
    ) -> None:
        super().__init__()
        c, width = config, config.d_model if d_embed is None else d_embed
        self.config, self.first_position = c, first_position
        self.activation, self.pool_activation = activation, pool_activation
        self.embedding = nn.Embedding(c.vocab_size, width)
        self.position_embedding = nn.Embedding(c.max_seq_len + first_position, width)
        self.type_embedding = nn.Embedding(n_types, width) if n_types else None
        self.embedding_norm = LayerNorm(width, c.norm_eps)
        self.widen = nn.Identity() if d_embed is None else nn.Linear(width, c.d_model)
        self.layers = nn.ModuleList(layers)
        self.pooler = nn.Linear(c.d_model, c.d_model) if c.pooled else None
        self.transform = nn.Linear(c.d_model, width) if c.masked else None
        self.norm = LayerNorm(width, c.norm_eps) if c.masked else None
        self.head = nn.Linear(width, c.vocab_size) if c.masked else None
        if self.head is not None and c.tie_embeddings:
            self.head.weight = self.embedding.weight
        self.classifier = nn.Linear(c.d_model, c.n_classes) if c.n_classes else None

    def embed(self, tokens: Tensor) -> Tensor:
        """(B, T) -> (B, T, D), of tokens alone"""
        return self.embedding(tokens)

    def encode(
        self,
        x: Tensor,
        *,
        documents: Tensor | None = None,
        positions: Tensor | None = None,
        token_types: Tensor | None = None,
    ) -> EncoderOutput:
        """x (B, T) ids or (B, T, D) embeddings, token_types (B, T), 0 unless given -> the last layer's states; `pooled`
        (B, D) is made of each row's first one, where the model has a pooler."""
        places = positions_of(x, documents) if positions is None else positions
        if x.shape[1] > self.config.max_seq_len and int(places.max()) >= self.config.max_seq_len:
            raise GenerationError(f"a text is longer than {self.config.max_seq_len} tokens, which is all that is read")
        y = x if x.is_floating_point() else self.embed(x)
        y = y + self.position_embedding(places + self.first_position)
        if self.type_embedding is not None:
            y = y + (self.type_embedding.weight[0] if token_types is None else self.type_embedding(token_types))
        elif token_types is not None:
            raise ConfigError(f"{type(self).__name__} knows no token_types; leave them out")
        y = self.read(self.widen(self.embedding_norm(y)), Mask(causal=False, documents=documents))
        pooled = None if self.pooler is None else self.pool_activation(self.pooler(y[:, 0]))
        if documents is None:
            documents = torch.zeros(x.shape[:2], dtype=torch.int64, device=x.device)
        return EncoderOutput(y, documents, pooled)

    def read(self, x: Tensor, mask: Mask) -> Tensor:
        """x (B, T, D) -> (B, T, D), through the layers"""
        for layer in self.passes():
            x = layer(x, mask)
        return x

    def passes(self) -> Iterable[nn.Module]:
        """The layers in the order that they are passed in; one may come more than once."""
        return self.layers

    def forward(
        self,
        x: Tensor,
        *,
        documents: Tensor | None = None,
        positions: Tensor | None = None,
        token_types: Tensor | None = None,
    ) -> ModelOutput:
        """As `encode`, but what the head over the vocabulary reads; ConfigError without that head."""
        if self.transform is None or self.norm is None:
            raise ConfigError(f"this {type(self).__name__} has no head over its vocabulary; use encode(…)")
        states = self.encode(x, documents=documents, positions=positions, token_types=token_types).states
        return ModelOutput(self.norm(self.activation(self.transform(states))), {})

    def logits(self, hidden: Tensor) -> Tensor:
        """What forward gives, (..., D) -> (..., V)"""
        assert self.head is not None
        return self.head(hidden)

    def classify(self, pooled: Tensor) -> Tensor:
        """`encode(…).pooled` (B, D) -> (B, n_classes); ConfigError where the model was made without classes."""
        if self.classifier is None:
            raise ConfigError(f"this {type(self).__name__} tells no classes apart; make it with n_classes")
        return self.classifier(pooled)
