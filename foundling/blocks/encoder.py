# SPDX-License-Identifier: Apache-2.0
"""A bidirectional encoder, and what may stand on it: a pooled vector, a head over the vocabulary."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foundling.blocks.attention import reaches_of
from foundling.blocks.context import Context, build_masks
from foundling.blocks.layer import balance_terms, forward_layers
from foundling.blocks.mask import MaskRule
from foundling.blocks.norm import LayerNorm
from foundling.blocks.position import PositionTable, check_positions, positions_of
from foundling.contracts.data import Batch
from foundling.contracts.model import Capabilities, EncoderOutput, HeadLayout, ModelOutput, Task
from foundling.contracts.objective import Term
from foundling.errors import ConfigError


class TextEmbedder(nn.Module):
    """Embeds texts by the mean of what `encode` gives."""

    encode: Any

    def embed(self, name: str, batch: Batch) -> Tensor:
        """The vectors (B, D) of length 1 of the texts in `tokens` (B, T), one a row, −1 in `documents` (B, T) on its
        right: the mean of the last layer's states over the tokens of a row, padding apart (Reimers & Gurevych 2019,
        Sentence-BERT, section 3). `token_types` of the batch are read too. ConfigError for another name than "text"."""
        if name != "text":
            raise ConfigError(f"{type(self).__name__} embeds 'text', not '{name}'")
        out = self.encode(
            batch["tokens"], documents=batch.get("documents"), token_types=batch.get("token_types")
        )  # fmt: skip
        return F.normalize(row_means(out.states.float(), out.documents), dim=-1)


class Encoder(TextEmbedder):
    """A normalised sum of embeddings, bidirectional layers, and a transformed state for the head (Devlin et al. 2019,
    sections 3 and A.2). The family builds the layers; `config` says which parts stand on top: `pooled`, `masked` (the
    head over the vocabulary) and `n_classes` (those of pretraining, beside it).

    `d_embed`: the width of the embeddings, where it is not that of the layers; `first_position`: the row of the
    position table that a document's first token reads; `dropout` is of the embeddings, in training."""

    capabilities = Capabilities(embeds=True, fills=True, takes_head=True)
    causal = False

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
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        c, width = config, config.d_model if d_embed is None else d_embed
        self.config = c
        self.capabilities = self.capabilities._replace(fills=c.masked)
        self.activation, self.pool_activation = activation, pool_activation
        self.embedding = nn.Embedding(c.vocab_size, width)
        self.position_embedding = PositionTable(c.max_seq_len, width, first_position)
        self.type_embedding = nn.Embedding(n_types, width) if n_types else None
        self.embedding_norm = LayerNorm(width, c.norm_eps)
        self.dropout = nn.Dropout(dropout)
        self.widen = nn.Identity() if d_embed is None else nn.Linear(width, c.d_model)
        self.layers = nn.ModuleList(layers)
        self.reaches = reaches_of(layers)
        self.pooler = nn.Linear(c.d_model, c.d_model) if c.pooled else None
        self.transform = nn.Linear(c.d_model, width) if c.masked else None
        self.norm = LayerNorm(width, c.norm_eps) if c.masked else None
        self.head = nn.Linear(width, c.vocab_size) if c.masked else None
        if self.head is not None and c.tie_embeddings:
            self.head.weight = self.embedding.weight
        self.classifier = nn.Linear(c.d_model, c.n_classes) if c.n_classes else None

    def embed_tokens(self, tokens: Tensor) -> Tensor:
        """(B, T) -> (B, T, D), of tokens alone"""
        return self.embedding(tokens)

    def embed_positions(self, x: Tensor, positions: Tensor) -> Tensor:
        """x (B, T, D), embeddings, and positions (B or 1, T) in each document -> x with what its positions add."""
        return x + self.position_embedding(positions)

    def build_ropes(self, positions: Tensor) -> dict[str, Any]:
        """positions (B or 1, T) -> kind of attention layer -> its rotation; {} where none rotates."""
        return {}

    def pool(self, states: Tensor, documents: Tensor | None) -> Tensor | None:
        """The last layer's states (B, T, D), of `documents` (B, T) -> (B, D), where the model has one vector for a
        row."""
        return None if self.pooler is None else self.pool_activation(self.pooler(states[:, 0]))

    def encode(
        self,
        x: Tensor,
        *,
        documents: Tensor | None = None,
        positions: Tensor | None = None,
        token_types: Tensor | None = None,
    ) -> EncoderOutput:
        """x (B, T) ids or (B, T, D) embeddings, token_types (B, T), 0 by default -> the last layer's states; `pooled`
        as `pool` gives it. GenerationError for a text longer than max_seq_len, ConfigError for token_types that the
        model has no table for."""
        places = positions_of(x, documents) if positions is None else positions
        check_positions(self.config.max_seq_len, places, x.shape[1] if positions is None else None)
        y = x if x.is_floating_point() else self.embed_tokens(x)
        y = self.embed_positions(y, places)
        if self.type_embedding is not None:
            y = y + (self.type_embedding.weight[0] if token_types is None else self.type_embedding(token_types))
        elif token_types is not None:
            raise ConfigError(f"{type(self).__name__} has no token_types; leave them out")
        y, aux = self.forward_layers(self.widen(self.dropout(self.embedding_norm(y))), documents, places)
        return EncoderOutput(y, documents, self.pool(y, documents), aux)

    def forward_layers(self, x: Tensor, documents: Tensor | None, positions: Tensor) -> tuple[Tensor, dict[str, Term]]:
        """x (B, T, D), documents (B, T), positions (B or 1, T) -> (B, T, D), and the losses that arise in the layers"""
        rule = MaskRule(causal=self.causal, documents=documents)
        masks = build_masks(self.reaches, rule, x.shape[1], x.shape[1], x)
        ctx = Context(masks, self.build_ropes(positions), documents=documents)
        x, routings = forward_layers(self.layer_sequence(), x, ctx)
        return x, balance_terms(routings, self.config)

    def layer_sequence(self) -> Iterable[nn.Module]:
        """The layers in the order that they are run; one may come more than once."""
        return self.layers

    def forward(
        self,
        x: Tensor,
        *,
        documents: Tensor | None = None,
        positions: Tensor | None = None,
        token_types: Tensor | None = None,
    ) -> ModelOutput:
        """As `encode`, but gives what the head over the vocabulary reads; ConfigError without that head."""
        self.check_masked()
        out = self.encode(x, documents=documents, positions=positions, token_types=token_types)
        return ModelOutput(self.transformed(out.states), out.aux)

    def check_masked(self) -> None:
        """ConfigError without a head over the vocabulary."""
        if self.head is None:
            raise ConfigError(f"this {type(self).__name__} has no head over its vocabulary; use encode(…)")

    def transformed(self, states: Tensor) -> Tensor:
        """The last layer's states (..., D) -> what `logits` reads"""
        self.check_masked()
        assert self.transform is not None and self.norm is not None
        return self.norm(self.activation(self.transform(states)))

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden of `forward`, (..., D) -> (..., V)"""
        assert self.head is not None
        return self.head(hidden)

    def classify(self, pooled: Tensor) -> Tensor:
        """`encode(…).pooled` (B, D) -> (B, n_classes), of what was pretrained beside the head over the vocabulary, such
        as next-sentence prediction; ConfigError without it. The classes of a head are `blocks.heads.scores`."""
        if self.classifier is None:
            raise ConfigError(
                f"this {type(self).__name__} has no classifier of its pretraining; build it with n_classes"
            )
        return self.classifier(pooled)

    def head_layout(self, task: Task) -> HeadLayout:
        """BERT's: on the pooled vector, or with a dense layer in its place (Devlin et al. 2019, section 4)."""
        dropout = self.config.dropout
        if task == "tag":
            return HeadLayout("every", dropout=dropout)
        if self.pooler is not None:
            return HeadLayout("model", dropout=dropout)
        return HeadLayout("first", "tanh", dropout=dropout)


def row_means(states: Tensor, documents: Tensor | None) -> Tensor:
    """states (B, T, D) -> (B, D), the mean over each row's tokens, without its padding: −1 in `documents` (B, T)."""
    if documents is None:
        return states.mean(1)
    real = (documents >= 0).to(states.dtype)[..., None]
    return (states * real).sum(1) / real.sum(1).clamp_min(1)
