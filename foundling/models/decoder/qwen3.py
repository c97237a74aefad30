# SPDX-License-Identifier: Apache-2.0
"""Qwen 3 (Yang et al. 2025): Llama with norms on each head's queries and keys (section 2)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch.nn.functional as F

from foundling.blocks.attention import Attention
from foundling.blocks.layer import Block
from foundling.blocks.mlp import GatedMLP
from foundling.blocks.norm import RMSNorm
from foundling.blocks.position import RoPE, RopeScaling
from foundling.blocks.stack import Decoder
from foundling.contracts.checkpoint_map import Key
from foundling.models import published
from foundling.models.decoder import llama


@dataclass(frozen=True)
class Qwen3Config:
    vocab_size: int
    d_model: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    d_ff: int
    max_seq_len: int = 32768
    rope_theta: float = 1e6
    rope_scaling: RopeScaling | None = None
    norm_eps: float = 1e-6
    tie_embeddings: bool = False

    def __post_init__(self) -> None:
        published.check_heads(self, self.head_dim)


class Qwen3(Decoder):
    def __init__(self, config: Qwen3Config) -> None:
        c = config
        norm = partial(RMSNorm, eps=c.norm_eps)
        super().__init__(
            c,
            [
                Block(
                    norm(c.d_model),
                    Attention(c.d_model, c.n_heads, c.n_kv_heads, c.head_dim, qk_norm=norm),
                    norm(c.d_model),
                    GatedMLP(c.d_model, c.d_ff, F.silu),
                )
                for _ in range(c.n_layers)
            ],
            norm(c.d_model),
            rope=RoPE(c.head_dim, c.rope_theta, c.rope_scaling, max_positions=c.max_seq_len),
        )


sized = llama.sized

PRESETS: dict[str, dict[str, Any]] = {
    "qwen3-0.6b": dict(
        vocab_size=151936, d_model=1024, n_layers=28, n_heads=16, n_kv_heads=8, head_dim=128, d_ff=3072,
        max_seq_len=40960, tie_embeddings=True,
    ),
    "qwen3-1.7b": dict(
        vocab_size=151936, d_model=2048, n_layers=28, n_heads=16, n_kv_heads=8, head_dim=128, d_ff=6144,
        max_seq_len=40960, tie_embeddings=True,
    ),
    "qwen3-4b": dict(
        vocab_size=151936, d_model=2560, n_layers=36, n_heads=32, n_kv_heads=8, head_dim=128, d_ff=9728,
        max_seq_len=40960, tie_embeddings=True,
    ),
    "qwen3-8b": dict(
        vocab_size=151936, d_model=4096, n_layers=36, n_heads=32, n_kv_heads=8, head_dim=128, d_ff=12288,
        max_seq_len=40960,
    ),
    "qwen3-14b": dict(
        vocab_size=151936, d_model=5120, n_layers=40, n_heads=40, n_kv_heads=8, head_dim=128, d_ff=17408,
        max_seq_len=40960,
    ),
    "qwen3-32b": dict(
        vocab_size=151936, d_model=5120, n_layers=64, n_heads=64, n_kv_heads=8, head_dim=128, d_ff=25600,
        max_seq_len=40960,
    ),
}  # fmt: skip

KEYS = [
    *llama.KEYS,
    *[Key(f"model.layers.{{i}}.self_attn.{n}_norm.weight", f"layers.{{i}}.mixer.{n}_norm.weight") for n in "qk"],
]
CONFIG = replace(
    llama.CONFIG,
    model_type="qwen3",
    architecture="Qwen3ForCausalLM",
    derived=llama.CONFIG.derived | published.key_value_heads(32) | {"max_position_embeddings": lambda c: 32768},
    only={"hidden_act": "silu", "attention_bias": False, "use_sliding_window": False},
)
