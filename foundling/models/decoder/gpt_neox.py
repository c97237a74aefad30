# SPDX-License-Identifier: Apache-2.0
"""GPT-NeoX (Black et al. 2022): attention and feed-forward in parallel, rotary positions on a quarter of each head
(section 2.1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from foundling.blocks.attention import Attention
from foundling.blocks.context import Context
from foundling.blocks.layer import Block
from foundling.blocks.mlp import MLP
from foundling.blocks.norm import LayerNorm
from foundling.blocks.position import RoPE
from foundling.blocks.stack import Decoder
from foundling.contracts.checkpoint_map import CLASSIFY, TAG_CLASSIFIER, ConfigMap, Key
from foundling.errors import ConfigError
from foundling.models import published
from foundling.models.decoder import gpt2


@dataclass(frozen=True)
class GPTNeoXConfig:
    vocab_size: int
    d_model: int
    n_layers: int
    n_heads: int
    d_ff: int
    max_seq_len: int = 2048
    rope_fraction: float = 0.25
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-5
    parallel: bool = True
    tie_embeddings: bool = False
    dropout: float = 0.0
    """On embeddings and on the output of each residual branch, in training."""
    attention_dropout: float = 0.0

    def __post_init__(self) -> None:
        published.check_dropout(self)
        if self.d_model % self.n_heads:
            raise ConfigError(f"d_model {self.d_model} is not a multiple of n_heads {self.n_heads}")
        if not 0 < self.rope_fraction <= 1 or self.rope_dim % 2 or not self.rope_dim:
            raise ConfigError(
                f"rope_fraction {self.rope_fraction} of heads of {self.head_dim} is not an even number of dimensions"
            )

    @property
    def head_dim(self) -> int:
        return self.d_model // self.n_heads

    @property
    def rope_dim(self) -> int:
        return int(self.head_dim * self.rope_fraction)


class ParallelBlock(Block):
    """x + mixer(norm(x)) + ffn(norm'(x)) (Wang & Komatsuzaki 2021, GPT-J)."""

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        mixed = self.dropout(self.mixer(self.mixer_norm(x), ctx))
        return x + mixed + self.dropout(self.ffn(self.ffn_norm(x)))


class GPTNeoX(Decoder):
    def __init__(self, config: GPTNeoXConfig) -> None:
        c = config
        layers: list[nn.Module] = [
            (ParallelBlock if c.parallel else Block)(
                LayerNorm(c.d_model, c.norm_eps),
                Attention(c.d_model, c.n_heads, c.n_heads, c.head_dim, bias=True, dropout=c.attention_dropout),
                LayerNorm(c.d_model, c.norm_eps),
                MLP(c.d_model, c.d_ff, F.gelu, bias=True),
                dropout=c.dropout,
            )
            for _ in range(c.n_layers)
        ]
        rope = RoPE(c.rope_dim, c.rope_theta)
        super().__init__(c, layers, LayerNorm(c.d_model, c.norm_eps), rope=rope, dropout=c.dropout)


sized = gpt2.sized

PRESETS: dict[str, dict[str, Any]] = {
    "gpt-neox-20b": dict(vocab_size=50432, d_model=6144, n_layers=44, n_heads=64, d_ff=24576),
    "pythia-70m": dict(vocab_size=50304, d_model=512, n_layers=6, n_heads=8, d_ff=2048),
    "pythia-160m": dict(vocab_size=50304, d_model=768, n_layers=12, n_heads=12, d_ff=3072),
    "pythia-410m": dict(vocab_size=50304, d_model=1024, n_layers=24, n_heads=16, d_ff=4096),
    "pythia-1.4b": dict(vocab_size=50304, d_model=2048, n_layers=24, n_heads=16, d_ff=8192),
    "pythia-6.9b": dict(vocab_size=50432, d_model=4096, n_layers=32, n_heads=32, d_ff=16384),
    "pythia-12b": dict(vocab_size=50688, d_model=5120, n_layers=36, n_heads=40, d_ff=20480),
}

# One matrix holds q, k and v, interleaved by head.
KEYS = [
    Key("gpt_neox.embed_in.weight", "embedding.weight"),
    *[
        Key(
            f"gpt_neox.layers.{{i}}.attention.query_key_value.{kind}",
            tuple(f"layers.{{i}}.mixer.{part}.{kind}" for part in "qkv"),
            ("qkv_interleave",),
        )
        for kind in ("weight", "bias")
    ],
    *[
        Key(f"gpt_neox.layers.{{i}}.{theirs}.{kind}", f"layers.{{i}}.{ours}.{kind}")
        for theirs, ours in (
            ("input_layernorm", "mixer_norm"), ("post_attention_layernorm", "ffn_norm"), ("attention.dense", "mixer.o"),
            ("mlp.dense_h_to_4h", "ffn.up"), ("mlp.dense_4h_to_h", "ffn.down"),
        )
        for kind in ("weight", "bias")
    ],
    *[Key(f"gpt_neox.final_layer_norm.{kind}", f"norm.{kind}") for kind in ("weight", "bias")],
    Key("embed_out.weight", "head.weight"),
]  # fmt: skip

CONFIG = ConfigMap(
    model_type="gpt_neox",
    architecture="GPTNeoXForCausalLM",
    heads={"classify": CLASSIFY, "tag": TAG_CLASSIFIER},
    fields={
        "vocab_size": "vocab_size",
        "hidden_size": "d_model",
        "num_hidden_layers": "n_layers",
        "num_attention_heads": "n_heads",
        "intermediate_size": "d_ff",
        "max_position_embeddings": "max_seq_len",
        "partial_rotary_factor": "rope_fraction",
        "rope_theta": "rope_theta",
        "layer_norm_eps": "norm_eps",
        "use_parallel_residual": "parallel",
        "tie_word_embeddings": "tie_embeddings",
        "hidden_dropout": "dropout",
        "attention_dropout": "attention_dropout",
    },
    derived={
        "max_position_embeddings": lambda c: 2048,
        "partial_rotary_factor": lambda c: c.get("rotary_pct", 0.25),
        "rope_theta": lambda c: c.get("rotary_emb_base", 10_000.0),
        "layer_norm_eps": lambda c: 1e-5,
        "use_parallel_residual": lambda c: True,
        "tie_word_embeddings": lambda c: False,
        **published.without_dropout("hidden_dropout", "attention_dropout"),
    },
    only={"hidden_act": "gelu", "attention_bias": True, "rope_scaling": None},
    implied={"rotary_pct": lambda c: c["rope_fraction"], "rotary_emb_base": lambda c: c["rope_theta"]},
    base_prefix="gpt_neox.",
    ignored=(".attention.bias", ".attention.masked_bias", ".rotary_emb.inv_freq"),
)
