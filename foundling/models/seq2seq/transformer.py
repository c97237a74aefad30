# SPDX-License-Identifier: Apache-2.0
"""The Transformer (Vaswani et al. 2017): post-norm encoder and decoder, sinusoidal positions, one embedding for
source, target and head."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from foundling.blocks.attention import Attention, CrossAttention
from foundling.blocks.layer import PostNormBlock, PostNormCrossAttentionBlock
from foundling.blocks.mlp import MLP
from foundling.blocks.norm import LayerNorm
from foundling.blocks.position import sinusoids
from foundling.blocks.seq2seq import EncoderDecoder, SourceEncoder
from foundling.contracts.checkpoint_map import ConfigMap, Key
from foundling.errors import ConfigError
from foundling.models import published


@dataclass(frozen=True)
class TransformerConfig:
    vocab_size: int
    d_model: int
    n_layers: int
    n_decoder_layers: int
    n_heads: int
    d_ff: int
    max_seq_len: int = 512
    start_id: int = 0
    """The decoder's input before its first token."""
    tie_embeddings: bool = True
    dropout: float = 0.0
    """On embeddings and on the output of each residual branch, in training."""

    def __post_init__(self) -> None:
        published.check_dropout(self)
        if self.d_model % self.n_heads or self.d_model % 2:
            raise ConfigError(f"d_model {self.d_model} is odd or not a multiple of n_heads {self.n_heads}")


def norm(d_model: int) -> LayerNorm:
    return LayerNorm(d_model, 1e-5)


def layer(c: Any, activation: Callable[[Tensor], Tensor], *, reads: bool) -> nn.Module:
    """One layer of an encoder, or of a decoder with cross-attention (figure 1)."""
    sizes = (c.d_model, c.n_heads, c.n_heads, c.d_model // c.n_heads)
    p = getattr(c, "attention_dropout", 0.0)
    first = (norm(c.d_model), Attention(*sizes, bias=True, dropout=p))
    last = (norm(c.d_model), MLP(c.d_model, c.d_ff, activation, bias=True))
    if not reads:
        return PostNormBlock(*first, *last, dropout=c.dropout)
    cross = CrossAttention(*sizes, bias=True, dropout=p)
    return PostNormCrossAttentionBlock(*first, norm(c.d_model), cross, *last, dropout=c.dropout)


class SinusoidEncoder(SourceEncoder):
    def embed_positions(self, x: Tensor, positions: Tensor) -> Tensor:
        return x + sinusoids(positions, x.shape[-1]).to(x.dtype)


class Transformer(EncoderDecoder):
    def __init__(self, config: TransformerConfig) -> None:
        c = config
        sides = [layer(c, F.relu, reads=False) for _ in range(c.n_layers)]
        encoder = SinusoidEncoder(sides, nn.Identity(), dropout=c.dropout)
        layers = [layer(c, F.relu, reads=True) for _ in range(c.n_decoder_layers)]
        super().__init__(c, encoder, layers, nn.Identity(), dropout=c.dropout)

    def embed_tokens(self, tokens: Tensor) -> Tensor:
        return self.embedding(tokens) * self.config.d_model**0.5

    def embed_positions(self, x: Tensor, positions: Tensor) -> Tensor:
        return x + sinusoids(positions, x.shape[-1]).to(x.dtype)


def sized(vocab_size: int, max_seq_len: int, d_model: int, n_layers: int) -> dict[str, Any]:
    """`n_layers` each in encoder and decoder; heads of 64 (32 in narrow models), d_ff = 4 d_model."""
    head_dim = 64 if d_model % 64 == 0 and d_model >= 256 else 32
    return dict(
        vocab_size=vocab_size, max_seq_len=max_seq_len, d_model=d_model, n_layers=n_layers, n_decoder_layers=n_layers,
        n_heads=d_model // head_dim, d_ff=4 * d_model,
    )  # fmt: skip


PRESETS: dict[str, dict[str, Any]] = {
    "transformer-base": dict(vocab_size=37000, d_model=512, n_layers=6, n_decoder_layers=6, n_heads=8, d_ff=2048),
    "transformer-big": dict(vocab_size=37000, d_model=1024, n_layers=6, n_decoder_layers=6, n_heads=16, d_ff=4096),
}

KEYS = [
    Key("embedding.weight", "embedding.weight"),
    *[
        Key(name, name)
        for side, parts in (("encoder.", ("mixer", "ffn")), ("", ("mixer", "cross", "ffn")))
        for part in parts
        for inner in ("_norm", *((".up", ".down") if part == "ffn" else (".q", ".k", ".v", ".o")))
        for name in (f"{side}layers.{{i}}.{part}{inner}.weight", f"{side}layers.{{i}}.{part}{inner}.bias")
    ],
    Key("head.weight", "head.weight"),
]

CONFIG = ConfigMap(
    model_type="transformer",
    architecture="",
    fields={name: name for name in TransformerConfig.__dataclass_fields__},
    derived=published.without_dropout("dropout"),
)
