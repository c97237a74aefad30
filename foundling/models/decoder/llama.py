# SPDX-License-Identifier: Apache-2.0
"""Llama (Touvron et al. 2023): RMSNorm before each sublayer, rotary positions, gated SiLU feed-forward, no biases."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch.nn.functional as F

from foundling.blocks.attention import Attention
from foundling.blocks.layer import Block
from foundling.blocks.mlp import GatedMLP
from foundling.blocks.norm import RMSNorm
from foundling.blocks.position import RoPE, RopeScaling
from foundling.blocks.stack import Decoder
from foundling.contracts.checkpoint_map import CLASSIFY, TAG, ConfigMap, Key
from foundling.models import published


@dataclass(frozen=True)
class LlamaConfig:
    vocab_size: int
    d_model: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    d_ff: int
    max_seq_len: int = 2048
    rope_theta: float = 10_000.0
    rope_scaling: RopeScaling | None = None
    norm_eps: float = 1e-5
    tie_embeddings: bool = False

    def __post_init__(self) -> None:
        published.check_heads(self, self.head_dim)


class Llama(Decoder):
    def __init__(self, config: LlamaConfig) -> None:
        c = config
        super().__init__(
            c,
            [
                Block(
                    RMSNorm(c.d_model, c.norm_eps),
                    Attention(c.d_model, c.n_heads, c.n_kv_heads, c.head_dim),
                    RMSNorm(c.d_model, c.norm_eps),
                    GatedMLP(c.d_model, c.d_ff, F.silu),
                )
                for _ in range(c.n_layers)
            ],
            RMSNorm(c.d_model, c.norm_eps),
            rope=RoPE(c.head_dim, c.rope_theta, c.rope_scaling, max_positions=c.max_seq_len),
        )


def sized(vocab_size: int, max_seq_len: int, d_model: int, n_layers: int) -> dict[str, Any]:
    """Configuration fields with the usual proportions: heads of 64 (32 in narrow models), d_ff = 8/3 d_model."""
    head_dim = 64 if d_model % 64 == 0 and d_model >= 256 else 32
    return {
        "vocab_size": vocab_size,
        "max_seq_len": max_seq_len,
        "d_model": d_model,
        "n_layers": n_layers,
        "n_heads": d_model // head_dim,
        "n_kv_heads": d_model // head_dim,
        "head_dim": head_dim,
        "d_ff": -(-8 * d_model // 3 // 32) * 32,
    }


PRESETS: dict[str, dict[str, Any]] = {
    "llama-2-7b": dict(
        vocab_size=32000, d_model=4096, n_layers=32, n_heads=32, n_kv_heads=32, head_dim=128, d_ff=11008,
        max_seq_len=4096,
    ),
    "llama-2-13b": dict(
        vocab_size=32000, d_model=5120, n_layers=40, n_heads=40, n_kv_heads=40, head_dim=128, d_ff=13824,
        max_seq_len=4096,
    ),
    "llama-2-70b": dict(
        vocab_size=32000, d_model=8192, n_layers=80, n_heads=64, n_kv_heads=8, head_dim=128, d_ff=28672,
        max_seq_len=4096,
    ),
    "llama-3-8b": dict(
        vocab_size=128256, d_model=4096, n_layers=32, n_heads=32, n_kv_heads=8, head_dim=128, d_ff=14336,
        max_seq_len=8192, rope_theta=500_000.0,
    ),
    "llama-3-70b": dict(
        vocab_size=128256, d_model=8192, n_layers=80, n_heads=64, n_kv_heads=8, head_dim=128, d_ff=28672,
        max_seq_len=8192, rope_theta=500_000.0,
    ),
    "llama-3.1-8b": dict(
        vocab_size=128256, d_model=4096, n_layers=32, n_heads=32, n_kv_heads=8, head_dim=128, d_ff=14336,
        max_seq_len=131072, rope_theta=500_000.0, rope_scaling={"kind": "llama3", "factor": 8.0},
    ),
    "llama-3.1-70b": dict(
        vocab_size=128256, d_model=8192, n_layers=80, n_heads=64, n_kv_heads=8, head_dim=128, d_ff=28672,
        max_seq_len=131072, rope_theta=500_000.0, rope_scaling={"kind": "llama3", "factor": 8.0},
    ),
    "llama-3.1-405b": dict(
        vocab_size=128256, d_model=16384, n_layers=126, n_heads=128, n_kv_heads=8, head_dim=128, d_ff=53248,
        max_seq_len=131072, rope_theta=500_000.0, rope_scaling={"kind": "llama3", "factor": 8.0},
    ),
    "llama-3.2-1b": dict(
        vocab_size=128256, d_model=2048, n_layers=16, n_heads=32, n_kv_heads=8, head_dim=64, d_ff=8192,
        max_seq_len=131072, rope_theta=500_000.0, rope_scaling={"kind": "llama3", "factor": 32.0},
        tie_embeddings=True,
    ),
    "llama-3.2-3b": dict(
        vocab_size=128256, d_model=3072, n_layers=28, n_heads=24, n_kv_heads=8, head_dim=128, d_ff=8192,
        max_seq_len=131072, rope_theta=500_000.0, rope_scaling={"kind": "llama3", "factor": 32.0},
        tie_embeddings=True,
    ),
    "llama-3.3-70b": dict(
        vocab_size=128256, d_model=8192, n_layers=80, n_heads=64, n_kv_heads=8, head_dim=128, d_ff=28672,
        max_seq_len=131072, rope_theta=500_000.0, rope_scaling={"kind": "llama3", "factor": 8.0},
    ),
    # For planning only: the weights are not public. Gopher (Rae et al. 2021, table 1) and Chinchilla (Hoffmann et al.
    # 2022, table 4) have RMSNorm as here, but a plain feed-forward layer of 4 d_model and Transformer-XL's positions,
    # which each layer projects: 13 d_model² of matrices a layer, as many as with a gated one of 3 d_model.
    "gopher-280b": dict(
        vocab_size=32000, d_model=16384, n_layers=80, n_heads=128, n_kv_heads=128, head_dim=128, d_ff=3 * 16384,
        tie_embeddings=True,
    ),
    "chinchilla-70b": dict(
        vocab_size=32000, d_model=8192, n_layers=80, n_heads=64, n_kv_heads=64, head_dim=128, d_ff=3 * 8192,
        tie_embeddings=True,
    ),
}  # fmt: skip

KEYS = [
    Key("model.embed_tokens.weight", "embedding.weight"),
    Key("model.layers.{i}.input_layernorm.weight", "layers.{i}.mixer_norm.weight"),
    Key("model.layers.{i}.self_attn.q_proj.weight", "layers.{i}.mixer.q.weight"),
    Key("model.layers.{i}.self_attn.k_proj.weight", "layers.{i}.mixer.k.weight"),
    Key("model.layers.{i}.self_attn.v_proj.weight", "layers.{i}.mixer.v.weight"),
    Key("model.layers.{i}.self_attn.o_proj.weight", "layers.{i}.mixer.o.weight"),
    Key("model.layers.{i}.post_attention_layernorm.weight", "layers.{i}.ffn_norm.weight"),
    Key("model.layers.{i}.mlp.gate_proj.weight", "layers.{i}.ffn.gate.weight"),
    Key("model.layers.{i}.mlp.up_proj.weight", "layers.{i}.ffn.up.weight"),
    Key("model.layers.{i}.mlp.down_proj.weight", "layers.{i}.ffn.down.weight"),
    Key("model.norm.weight", "norm.weight"),
    Key("lm_head.weight", "head.weight"),
]

CONFIG = ConfigMap(
    model_type="llama",
    architecture="LlamaForCausalLM",
    heads={"classify": CLASSIFY, "tag": TAG},
    fields={
        "vocab_size": "vocab_size",
        "hidden_size": "d_model",
        "num_hidden_layers": "n_layers",
        "num_attention_heads": "n_heads",
        "num_key_value_heads": "n_kv_heads",
        "head_dim": "head_dim",
        "intermediate_size": "d_ff",
        "max_position_embeddings": "max_seq_len",
        "rope_theta": "rope_theta",
        "rope_scaling": "rope_scaling",
        "rms_norm_eps": "norm_eps",
        "tie_word_embeddings": "tie_embeddings",
    },
    derived={
        "num_key_value_heads": lambda c: c["num_attention_heads"],
        "head_dim": lambda c: c["hidden_size"] // c["num_attention_heads"],
        "max_position_embeddings": lambda c: 2048,
        "rope_theta": lambda c: 10_000.0,
        "rope_scaling": lambda c: None,
        "rms_norm_eps": lambda c: 1e-6,
        "tie_word_embeddings": lambda c: False,
    },
    only={
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "pretraining_tp": 1,
    },
    convert={"rope_scaling": published.ROPE_SCALING},
    base_prefix="model.",
    ignored=("rotary_emb.inv_freq", "lm_head.weight"),
)

PLAIN_ROPE = replace(
    CONFIG,
    fields={theirs: ours for theirs, ours in CONFIG.fields.items() if ours != "rope_scaling"},
    derived={key: value for key, value in CONFIG.derived.items() if key != "rope_scaling"},
    only={**CONFIG.only, "rope_scaling": None},
    convert={},
)
"""For families like Llama without RoPE scaling."""
