# SPDX-License-Identifier: Apache-2.0
"""An encoder of a source, and a decoder whose layers read it (Vaswani et al. 2017, section 3.1)."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from foundling.blocks.attention import reaches_of
from foundling.blocks.context import Context, build_masks
from foundling.blocks.layer import balance_terms, forward_layers
from foundling.blocks.mask import MaskRule
from foundling.blocks.moe import Routing
from foundling.blocks.position import check_positions, position_limit, positions_of
from foundling.blocks.stack import Decoder
from foundling.contracts.model import Capabilities, EncoderOutput, HeadLayout, Task


class SourceEncoder(nn.Module):
    """Bidirectional layers and a final norm (nn.Identity after post-norm layers). A family overrides `embed_positions`
    or `attention_bias`, which mean what they do in Decoder. `dropout` is of the embeddings, in training."""

    causal = False

    def __init__(self, layers: list[nn.Module], norm: nn.Module, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.ModuleList(layers)
        self.norm = norm
        self.reaches = reaches_of(layers)

    def embed_positions(self, x: Tensor, positions: Tensor) -> Tensor:
        return x

    def attention_bias(self, queries: Tensor, keys: Tensor) -> Tensor | None:
        return None

    @cached_property
    def max_positions(self) -> int | None:
        """As of Decoder"""
        return position_limit(self)

    def forward(self, x: Tensor, documents: Tensor | None = None) -> tuple[Tensor, list[Routing]]:
        """x (B, S, D), documents (B, S) -> (B, S, D), and what the routers did. GenerationError for a text beyond a
        table of positions."""
        positions = positions_of(x, documents)
        check_positions(self.max_positions, positions, x.shape[1])
        steps = torch.arange(x.shape[1], device=x.device)[None]
        rule, bias = MaskRule(causal=self.causal, documents=documents), self.attention_bias(steps, steps)
        ctx = Context(build_masks(self.reaches, rule, x.shape[1], x.shape[1], x, bias), documents=documents)
        x = self.dropout(self.embed_positions(x, positions))
        x, routings = forward_layers(self.layers, x, ctx)
        return self.norm(x), routings


class EncoderDecoder(Decoder):
    """A decoder of cross-attention blocks and the encoder of its memory; both embed by one table."""

    capabilities = Capabilities(generates=True, reads_source=True, takes_head=True)

    def __init__(
        self, config: Any, encoder: SourceEncoder, layers: list[nn.Module], norm: nn.Module, *, dropout: float = 0.0
    ) -> None:
        super().__init__(config, layers, norm, dropout=dropout)
        self.encoder = encoder

    def encode(self, x: Tensor, *, documents: Tensor | None = None) -> EncoderOutput:
        """x (B, S) ids or (B, S, D) embeddings -> what the decoder reads as its memory"""
        states, routings = self.encoder(x if x.is_floating_point() else self.embed_tokens(x), documents)
        return EncoderOutput(states, documents, aux=balance_terms(routings, self.config))

    def head_layout(self, task: Task) -> HeadLayout:
        """Of a text: the decoder reads it again, shifted, and its last state is taken (Lewis et al. 2020, BART, section
        3.1). Of each token: the encoder's states."""
        dropout = self.config.dropout
        return HeadLayout("every", dropout=dropout) if task == "tag" else HeadLayout("last", "tanh", dropout=dropout)
