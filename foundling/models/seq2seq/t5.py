# SPDX-License-Identifier: Apache-2.0
"""T5 (Raffel et al. 2020): an encoder and a decoder with cross-attention; positions are a learned bias by distance."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foundling.blocks.attention import Attention, CrossAttention
from foundling.blocks.layer import Block, CrossAttentionBlock
from foundling.blocks.mlp import MLP, GatedMLP, gelu_tanh
from foundling.blocks.norm import RMSNorm
from foundling.blocks.seq2seq import EncoderDecoder, SourceEncoder
from foundling.contracts.checkpoint_map import ConfigMap, HeadMap, Key, projection
from foundling.models import published
from foundling.models.seq2seq import bart


@dataclass(frozen=True)
class T5Config:
    vocab_size: int
    d_model: int
    n_layers: int
    n_decoder_layers: int
    n_heads: int
    head_dim: int
    d_ff: int
    ffn: Literal["relu", "gated-gelu"] = "relu"
    n_buckets: int = 32
    max_distance: int = 128
    max_seq_len: int = 512
    start_id: int = 0
    """The decoder's input before its first token."""
    norm_eps: float = 1e-6
    tie_embeddings: bool = True
    scale_head: bool = True
    """Whether to multiply hidden states by d_model^-0.5 before the head, as in version 1.0."""
    dropout: float = 0.0
    """In training, of embeddings, attention weights, what is inside and what comes out of each residual branch, and the
    output of encoder and decoder (section 2.1)."""

    def __post_init__(self) -> None:
        published.check_dropout(self)


class RelativeBias(nn.Module):
    """A learned bias per head and bucket of distance: exact when near, logarithmic up to `max_distance` (section
    2.1). An encoder uses half of the buckets for later keys."""

    def __init__(self, n_buckets: int, max_distance: int, n_heads: int, *, both_ways: bool) -> None:
        super().__init__()
        self.max_distance, self.both_ways = max_distance, both_ways
        self.table = nn.Embedding(n_buckets, n_heads)

    def forward(self, queries: Tensor, keys: Tensor) -> Tensor:
        """queries (B or 1, T) and keys (B or 1, S), as positions in the row -> (B or 1, H, T, S)"""
        n, ahead = self.table.num_embeddings, keys[:, None, :] - queries[:, :, None]
        bucket, back = torch.zeros_like(ahead), (-ahead).clamp_min(0)
        if self.both_ways:
            n //= 2
            bucket, back = (ahead > 0) * n, ahead.abs()
        exact = n // 2
        far = torch.log(back.float().clamp_min(1) / exact) / math.log(self.max_distance / exact) * (n - exact)
        bucket = bucket + torch.where(back < exact, back, (exact + far.long()).clamp_max(n - 1))
        return self.table(bucket).permute(0, 3, 1, 2)


def feed_forward(c: T5Config) -> nn.Module:
    if c.ffn == "gated-gelu":
        return GatedMLP(c.d_model, c.d_ff, gelu_tanh, dropout=c.dropout)
    return MLP(c.d_model, c.d_ff, F.relu, dropout=c.dropout)


def attention(c: T5Config, kind: type[Attention] = Attention) -> Any:
    """Scores are not divided by √head_dim; the initial values of the query projection compensate (init scales in the
    reference code)."""
    mixer = kind(c.d_model, c.n_heads, c.n_heads, c.head_dim, scale=1.0, dropout=c.dropout)
    mixer.q.start_gain = c.head_dim**-0.5  # pyright: ignore[reportAttributeAccessIssue]
    return mixer


class OutputNorm(RMSNorm):
    """The norm at the end of a stack, and dropout of what it gives."""

    def __init__(self, c: T5Config) -> None:
        super().__init__(c.d_model, c.norm_eps)
        self.dropout = nn.Dropout(c.dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(super().forward(x))


def norm(c: T5Config) -> RMSNorm:
    return RMSNorm(c.d_model, c.norm_eps)


class T5Encoder(SourceEncoder):
    def __init__(self, c: T5Config) -> None:
        layers: list[nn.Module] = [
            Block(norm(c), attention(c), norm(c), feed_forward(c), dropout=c.dropout) for _ in range(c.n_layers)
        ]
        super().__init__(layers, OutputNorm(c), dropout=c.dropout)
        self.relative = RelativeBias(c.n_buckets, c.max_distance, c.n_heads, both_ways=True)

    def attention_bias(self, queries: Tensor, keys: Tensor) -> Tensor | None:
        return self.relative(queries, keys)


def decoder_layer(c: T5Config) -> nn.Module:
    return CrossAttentionBlock(
        norm(c), attention(c), norm(c), attention(c, CrossAttention), norm(c), feed_forward(c), dropout=c.dropout
    )


class T5(EncoderDecoder):
    def __init__(self, config: T5Config) -> None:
        c = config
        layers = [decoder_layer(c) for _ in range(c.n_decoder_layers)]
        super().__init__(c, T5Encoder(c), layers, OutputNorm(c), dropout=c.dropout)
        self.relative = RelativeBias(c.n_buckets, c.max_distance, c.n_heads, both_ways=False)

    def attention_bias(self, queries: Tensor, keys: Tensor) -> Tensor | None:
        return self.relative(queries, keys)

    def logits(self, hidden: Tensor) -> Tensor:
        return self.head(hidden * self.config.d_model**-0.5 if self.config.scale_head else hidden)


def sized(vocab_size: int, max_seq_len: int, d_model: int, n_layers: int) -> dict[str, Any]:
    """`n_layers` each in encoder and decoder; heads of 64 (32 in narrow models), d_ff = 4 d_model."""
    head_dim = 64 if d_model % 64 == 0 and d_model >= 256 else 32
    return dict(
        vocab_size=vocab_size, max_seq_len=max_seq_len, d_model=d_model, n_layers=n_layers, n_decoder_layers=n_layers,
        n_heads=d_model // head_dim, head_dim=head_dim, d_ff=4 * d_model,
    )  # fmt: skip


def _preset(d_model: int, n_layers: int, n_heads: int, d_ff: int, head_dim: int = 64, **more: Any) -> dict[str, Any]:
    return dict(
        vocab_size=32128, d_model=d_model, n_layers=n_layers, n_decoder_layers=n_layers, n_heads=n_heads,
        head_dim=head_dim, d_ff=d_ff, **more,
    )  # fmt: skip


V1_1: dict[str, Any] = dict(ffn="gated-gelu", tie_embeddings=False, scale_head=False)
PRESETS: dict[str, dict[str, Any]] = {
    "t5-small": _preset(512, 6, 8, 2048),
    "t5-base": _preset(768, 12, 12, 3072),
    "t5-large": _preset(1024, 24, 16, 4096),
    "t5-3b": _preset(1024, 24, 32, 16384, head_dim=128),
    "t5-11b": _preset(1024, 24, 128, 65536, head_dim=128),
    "t5-v1.1-small": _preset(512, 8, 6, 1024, **V1_1),
    "t5-v1.1-base": _preset(768, 12, 12, 2048, **V1_1),
    "t5-v1.1-large": _preset(1024, 24, 16, 2816, **V1_1),
    "t5-v1.1-xl": _preset(2048, 24, 32, 5120, **V1_1),
    "t5-v1.1-xxl": _preset(4096, 24, 64, 10240, **V1_1),
}


def _layer(side: str, number: int, theirs: str, part: str) -> list[Key]:
    """Keys of one residual branch: its norm and its matrices; `side` is encoder or decoder."""
    block, layer = f"{side}.block.{{i}}.layer.{number}", "encoder.layers.{i}" if side == "encoder" else "layers.{i}"
    keys = [Key(f"{block}.layer_norm.weight", f"{layer}.{part}_norm.weight")]
    if part != "ffn":
        return keys + [Key(f"{block}.{theirs}.{x}.weight", f"{layer}.{part}.{x}.weight") for x in "qkvo"]
    gate, up = f"{layer}.ffn.gate.weight", f"{layer}.ffn.up.weight"
    return keys + [
        Key(f"{block}.{theirs}.wi.weight", up, unless=gate),
        Key(f"{block}.{theirs}.wi_0.weight", gate),
        Key(f"{block}.{theirs}.wi_1.weight", up, given=gate),
        Key(f"{block}.{theirs}.wo.weight", f"{layer}.ffn.down.weight"),
    ]


RELATIVE = "block.0.layer.0.SelfAttention.relative_attention_bias.weight"
KEYS = [
    Key("shared.weight", "embedding.weight"),
    Key(f"encoder.{RELATIVE}", "encoder.relative.table.weight"),
    Key(f"decoder.{RELATIVE}", "relative.table.weight"),
    *_layer("encoder", 0, "SelfAttention", "mixer"),
    *_layer("encoder", 1, "DenseReluDense", "ffn"),
    *_layer("decoder", 0, "SelfAttention", "mixer"),
    *_layer("decoder", 1, "EncDecAttention", "cross"),
    *_layer("decoder", 2, "DenseReluDense", "ffn"),
    Key("encoder.final_layer_norm.weight", "encoder.norm.weight"),
    Key("decoder.final_layer_norm.weight", "norm.weight"),
    Key("lm_head.weight", "head.weight"),
]

CONFIG = ConfigMap(
    model_type="t5",
    architecture="T5ForConditionalGeneration",
    heads={
        "classify": bart.head_map("transformer."),
        "tag": HeadMap("ForTokenClassification", projection("classifier"), "transformer."),
    },
    fields={
        "vocab_size": "vocab_size",
        "d_model": "d_model",
        "num_layers": "n_layers",
        "num_decoder_layers": "n_decoder_layers",
        "num_heads": "n_heads",
        "d_kv": "head_dim",
        "d_ff": "d_ff",
        "feed_forward_proj": "ffn",
        "relative_attention_num_buckets": "n_buckets",
        "relative_attention_max_distance": "max_distance",
        "n_positions": "max_seq_len",
        "decoder_start_token_id": "start_id",
        "layer_norm_epsilon": "norm_eps",
        "tie_word_embeddings": "tie_embeddings",
        "scale_decoder_outputs": "scale_head",
        "dropout_rate": "dropout",
    },
    derived={
        "num_decoder_layers": lambda c: c["num_layers"],
        "feed_forward_proj": lambda c: "relu",
        "relative_attention_num_buckets": lambda c: 32,
        "relative_attention_max_distance": lambda c: 128,
        "n_positions": lambda c: 512,
        "decoder_start_token_id": lambda c: c.get("pad_token_id") or 0,
        "layer_norm_epsilon": lambda c: 1e-6,
        "tie_word_embeddings": lambda c: True,
        "scale_decoder_outputs": lambda c: c["tie_word_embeddings"],
        **published.without_dropout("dropout_rate"),
    },
    ignored=("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight"),
)
