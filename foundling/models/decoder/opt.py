# SPDX-License-Identifier: Apache-2.0
"""OPT (Zhang et al. 2022): GPT-2 with ReLU; positions start at 2."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from foundling.blocks.attention import Attention
from foundling.blocks.layer import Block
from foundling.blocks.mlp import MLP
from foundling.blocks.norm import LayerNorm
from foundling.blocks.position import PositionTable
from foundling.blocks.stack import Decoder
from foundling.contracts.checkpoint_map import CLASSIFY, ConfigMap, Key
from foundling.errors import ConfigError
from foundling.models import published
from foundling.models.decoder import gpt2

FIRST_POSITION = 2


@dataclass(frozen=True)
class OPTConfig:
    vocab_size: int
    d_model: int
    n_layers: int
    n_heads: int
    d_ff: int
    max_seq_len: int = 2048
    tie_embeddings: bool = True
    dropout: float = 0.0
    """On the output of each residual branch, in training."""
    attention_dropout: float = 0.0

    def __post_init__(self) -> None:
        published.check_dropout(self)
        if self.d_model % self.n_heads:
            raise ConfigError(f"d_model {self.d_model} is not a multiple of n_heads {self.n_heads}")


class OPT(Decoder):
    def __init__(self, config: OPTConfig) -> None:
        c = config
        layers = [
            Block(
                LayerNorm(c.d_model, 1e-5),
                Attention(
                    c.d_model, c.n_heads, c.n_heads, c.d_model // c.n_heads, bias=True, dropout=c.attention_dropout
                ),
                LayerNorm(c.d_model, 1e-5),
                MLP(c.d_model, c.d_ff, F.relu, bias=True),
                dropout=c.dropout,
            )
            for _ in range(c.n_layers)
        ]
        super().__init__(c, [*layers], LayerNorm(c.d_model, 1e-5))
        self.position_embedding = PositionTable(c.max_seq_len, c.d_model, FIRST_POSITION)

    def embed_positions(self, x: Tensor, positions: Tensor) -> Tensor:
        return x + self.position_embedding(positions)


sized = gpt2.sized

PRESETS: dict[str, dict[str, Any]] = {
    "opt-125m": dict(vocab_size=50272, d_model=768, n_layers=12, n_heads=12, d_ff=3072),
    "opt-1.3b": dict(vocab_size=50272, d_model=2048, n_layers=24, n_heads=32, d_ff=8192),
    "opt-2.7b": dict(vocab_size=50272, d_model=2560, n_layers=32, n_heads=32, d_ff=10240),
    "opt-6.7b": dict(vocab_size=50272, d_model=4096, n_layers=32, n_heads=32, d_ff=16384),
    "opt-13b": dict(vocab_size=50272, d_model=5120, n_layers=40, n_heads=40, d_ff=20480),
    "opt-30b": dict(vocab_size=50272, d_model=7168, n_layers=48, n_heads=56, d_ff=28672),
    "opt-66b": dict(vocab_size=50272, d_model=9216, n_layers=64, n_heads=72, d_ff=36864),
    "opt-175b": dict(vocab_size=50272, d_model=12288, n_layers=96, n_heads=96, d_ff=49152),
}

KEYS = [
    Key("model.decoder.embed_tokens.weight", "embedding.weight"),
    Key("model.decoder.embed_positions.weight", "position_embedding.weight"),
    *[
        Key(f"model.decoder.layers.{{i}}.{theirs}.{kind}", f"layers.{{i}}.{ours}.{kind}")
        for theirs, ours in (
            ("self_attn_layer_norm", "mixer_norm"), ("self_attn.q_proj", "mixer.q"), ("self_attn.k_proj", "mixer.k"),
            ("self_attn.v_proj", "mixer.v"), ("self_attn.out_proj", "mixer.o"), ("final_layer_norm", "ffn_norm"),
            ("fc1", "ffn.up"), ("fc2", "ffn.down"),
        )
        for kind in ("weight", "bias")
    ],
    *[Key(f"model.decoder.final_layer_norm.{kind}", f"norm.{kind}") for kind in ("weight", "bias")],
    Key("lm_head.weight", "head.weight"),
]  # fmt: skip

CONFIG = ConfigMap(
    model_type="opt",
    architecture="OPTForCausalLM",
    heads={"classify": CLASSIFY},
    fields={
        "vocab_size": "vocab_size",
        "hidden_size": "d_model",
        "num_hidden_layers": "n_layers",
        "num_attention_heads": "n_heads",
        "ffn_dim": "d_ff",
        "max_position_embeddings": "max_seq_len",
        "tie_word_embeddings": "tie_embeddings",
        "dropout": "dropout",
        "attention_dropout": "attention_dropout",
    },
    derived={
        "max_position_embeddings": lambda c: 2048,
        "tie_word_embeddings": lambda c: True,
        **published.without_dropout("dropout", "attention_dropout"),
    },
    only={
        "activation_function": "relu",
        "do_layer_norm_before": True,
        "enable_bias": True,
        "layer_norm_elementwise_affine": True,
        "_remove_final_layer_norm": False,
    },
    implied={"word_embed_proj_dim": lambda c: c["d_model"]},
    base_prefix="model.",
    ignored=("lm_head.weight",),
)
