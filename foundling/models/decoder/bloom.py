# SPDX-License-Identifier: Apache-2.0
"""BLOOM (Le Scao et al. 2022): ALiBi instead of position embeddings (Press et al. 2022), a norm after the embedding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from foundling.blocks.attention import Attention
from foundling.blocks.layer import Block
from foundling.blocks.mlp import MLP, gelu_tanh
from foundling.blocks.norm import LayerNorm
from foundling.blocks.stack import Decoder
from foundling.contracts.checkpoint_map import CLASSIFY, TAG_CLASSIFIER, ConfigMap, Key
from foundling.errors import ConfigError
from foundling.models import published
from foundling.models.decoder import gpt2


@dataclass(frozen=True)
class BloomConfig:
    vocab_size: int
    d_model: int
    n_layers: int
    n_heads: int
    max_seq_len: int = 2048
    norm_eps: float = 1e-5
    tie_embeddings: bool = True
    dropout: float = 0.0
    """On the output of each residual branch, in training."""
    attention_dropout: float = 0.0

    def __post_init__(self) -> None:
        published.check_dropout(self)
        if self.d_model % self.n_heads:
            raise ConfigError(f"d_model {self.d_model} is not a multiple of n_heads {self.n_heads}")


def slopes(n_heads: int) -> list[float]:
    """One slope per head: 2^(−8 i / n) if n is a power of two; otherwise the rest are every other slope for twice the
    next smaller power (Press et al. 2022, section 3, and their code)."""
    whole = 1 << (n_heads.bit_length() - 1)
    first = [2 ** (-8 * (i + 1) / whole) for i in range(whole)]
    return first + [2 ** (-4 * (i + 1) / whole) for i in range(0, 2 * (n_heads - whole), 2)]


class Bloom(Decoder):
    def __init__(self, config: BloomConfig) -> None:
        c = config
        layers = [
            Block(
                LayerNorm(c.d_model, c.norm_eps),
                Attention(
                    c.d_model, c.n_heads, c.n_heads, c.d_model // c.n_heads, bias=True, dropout=c.attention_dropout
                ),
                LayerNorm(c.d_model, c.norm_eps),
                MLP(c.d_model, 4 * c.d_model, gelu_tanh, bias=True),
                dropout=c.dropout,
            )
            for _ in range(c.n_layers)
        ]
        super().__init__(c, [*layers], LayerNorm(c.d_model, c.norm_eps))
        self.embedding_norm = LayerNorm(c.d_model, c.norm_eps)

    def embed_positions(self, x: Tensor, positions: Tensor) -> Tensor:
        return self.embedding_norm(x)

    def attention_bias(self, queries: Tensor, keys: Tensor) -> Tensor:
        slope = torch.tensor(slopes(self.config.n_heads), device=queries.device)[None, :, None, None]
        return slope * (keys[:, None, None, :] - queries[:, None, :, None])


def sized(vocab_size: int, max_seq_len: int, d_model: int, n_layers: int) -> dict[str, Any]:
    """A configuration with GPT-2's proportions."""
    fields = gpt2.sized(vocab_size, max_seq_len, d_model, n_layers)
    del fields["d_ff"]
    return fields


PRESETS: dict[str, dict[str, Any]] = {
    "bloom-560m": dict(vocab_size=250880, d_model=1024, n_layers=24, n_heads=16),
    "bloom-1b1": dict(vocab_size=250880, d_model=1536, n_layers=24, n_heads=16),
    "bloom-1b7": dict(vocab_size=250880, d_model=2048, n_layers=24, n_heads=16),
    "bloom-3b": dict(vocab_size=250880, d_model=2560, n_layers=30, n_heads=32),
    "bloom-7b1": dict(vocab_size=250880, d_model=4096, n_layers=30, n_heads=32),
    "bloom": dict(vocab_size=250880, d_model=14336, n_layers=70, n_heads=112),
    "poro-34b": dict(vocab_size=128000, d_model=7168, n_layers=54, n_heads=56),  # Luukkonen et al. 2024, section 3
}

KEYS = [
    Key("transformer.word_embeddings.weight", "embedding.weight"),
    *[Key(f"transformer.word_embeddings_layernorm.{kind}", f"embedding_norm.{kind}") for kind in ("weight", "bias")],
    *[
        Key(
            f"transformer.h.{{i}}.self_attention.query_key_value.{kind}",
            tuple(f"layers.{{i}}.mixer.{part}.{kind}" for part in "qkv"),
            ("qkv_interleave",),
        )
        for kind in ("weight", "bias")
    ],
    *[
        Key(f"transformer.h.{{i}}.{theirs}.{kind}", f"layers.{{i}}.{ours}.{kind}")
        for theirs, ours in (
            ("input_layernorm", "mixer_norm"), ("self_attention.dense", "mixer.o"),
            ("post_attention_layernorm", "ffn_norm"), ("mlp.dense_h_to_4h", "ffn.up"),
            ("mlp.dense_4h_to_h", "ffn.down"),
        )
        for kind in ("weight", "bias")
    ],
    *[Key(f"transformer.ln_f.{kind}", f"norm.{kind}") for kind in ("weight", "bias")],
    Key("lm_head.weight", "head.weight"),
]  # fmt: skip

CONFIG = ConfigMap(
    model_type="bloom",
    architecture="BloomForCausalLM",
    heads={"classify": CLASSIFY, "tag": TAG_CLASSIFIER},
    fields={
        "vocab_size": "vocab_size",
        "hidden_size": "d_model",
        "n_layer": "n_layers",
        "n_head": "n_heads",
        "seq_length": "max_seq_len",
        "layer_norm_epsilon": "norm_eps",
        "tie_word_embeddings": "tie_embeddings",
        "hidden_dropout": "dropout",
        "attention_dropout": "attention_dropout",
    },
    derived={
        "hidden_size": lambda c: c["n_embed"],
        "n_layer": lambda c: c["num_hidden_layers"],
        "n_head": lambda c: c["num_attention_heads"],
        "seq_length": lambda c: 2048,
        "layer_norm_epsilon": lambda c: 1e-5,
        "tie_word_embeddings": lambda c: True,
        **published.without_dropout("hidden_dropout", "attention_dropout"),
    },
    only={"apply_residual_connection_post_layernorm": False},
    base_prefix="transformer.",
    ignored=("lm_head.weight",),
)
