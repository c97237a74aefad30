# SPDX-License-Identifier: Apache-2.0
"""Mixtral (Jiang et al. 2024): Llama with mixtures of experts as feed-forward layers, two of eight per token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F

from foundling.blocks.attention import Attention
from foundling.blocks.layer import MoEBlock
from foundling.blocks.moe import MoE
from foundling.blocks.norm import RMSNorm
from foundling.blocks.position import RoPE, RopeScaling
from foundling.blocks.stack import Decoder
from foundling.contracts.checkpoint_map import CLASSIFY, TAG, ConfigMap, Key
from foundling.errors import ConfigError
from foundling.models import published
from foundling.models.decoder import llama


@dataclass(frozen=True)
class MixtralConfig:
    vocab_size: int
    d_model: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    d_expert: int
    n_experts: int = 8
    n_active: int = 2
    balance_weight: float = 0.001
    max_seq_len: int = 2048
    rope_theta: float = 1e6
    rope_scaling: RopeScaling | None = None
    norm_eps: float = 1e-5
    tie_embeddings: bool = False

    def __post_init__(self) -> None:
        published.check_heads(self, self.head_dim)
        if self.n_active > self.n_experts:
            raise ConfigError(f"n_active {self.n_active} is more than n_experts {self.n_experts}")


class Mixtral(Decoder):
    def __init__(self, config: MixtralConfig) -> None:
        c = config
        layers = [
            MoEBlock(
                RMSNorm(c.d_model, c.norm_eps),
                Attention(c.d_model, c.n_heads, c.n_kv_heads, c.head_dim),
                RMSNorm(c.d_model, c.norm_eps),
                MoE(c.d_model, c.d_expert, c.n_experts, c.n_active, F.silu),
            )
            for _ in range(c.n_layers)
        ]
        rope = RoPE(c.head_dim, c.rope_theta, c.rope_scaling, max_positions=c.max_seq_len)
        super().__init__(c, [*layers], RMSNorm(c.d_model, c.norm_eps), rope=rope)


def sized(vocab_size: int, max_seq_len: int, d_model: int, n_layers: int) -> dict[str, Any]:
    """Llama's proportions, with eight experts of half the feed-forward width, two per token."""
    fields = llama.sized(vocab_size, max_seq_len, d_model, n_layers)
    return fields | {"d_expert": -(-fields.pop("d_ff") // 64) * 32}


PRESETS: dict[str, dict[str, Any]] = {
    "mixtral-8x7b": dict(
        vocab_size=32000, d_model=4096, n_layers=32, n_heads=32, n_kv_heads=8, head_dim=128, d_expert=14336,
        max_seq_len=32768,
    ),
    "mixtral-8x22b": dict(
        vocab_size=32768, d_model=6144, n_layers=56, n_heads=48, n_kv_heads=8, head_dim=128, d_expert=16384,
        max_seq_len=65536,
    ),
}  # fmt: skip

# transformers stores the three matrices of each expert separately.
KEYS = [key for key in llama.KEYS if ".mlp." not in key.theirs] + [
    Key("model.layers.{i}.block_sparse_moe.gate.weight", "layers.{i}.ffn.router.weight"),
    *[
        Key(
            f"model.layers.{{i}}.block_sparse_moe.experts.{{e}}.{theirs}.weight",
            f"layers.{{i}}.ffn.{ours}.weight",
            ("stack_experts",),
        )
        for theirs, ours in (("w1", "gate"), ("w2", "down"), ("w3", "up"))
    ],
]

CONFIG = ConfigMap(
    model_type="mixtral",
    architecture="MixtralForCausalLM",
    heads={"classify": CLASSIFY, "tag": TAG},
    fields={
        **{theirs: ours for theirs, ours in llama.CONFIG.fields.items() if ours != "d_ff"},
        "intermediate_size": "d_expert",
        "num_local_experts": "n_experts",
        "num_experts_per_tok": "n_active",
        "router_aux_loss_coef": "balance_weight",
    },
    derived={
        **llama.CONFIG.derived,
        **published.key_value_heads(8),
        "rope_theta": lambda c: 1e6,
        "rms_norm_eps": lambda c: 1e-5,
        "max_position_embeddings": lambda c: 4096 * 32,
        "num_local_experts": lambda c: 8,
        "num_experts_per_tok": lambda c: 2,
        "router_aux_loss_coef": lambda c: 0.001,
    },
    only={"hidden_act": "silu", "sliding_window": None, "router_jitter_noise": 0.0},
    convert=llama.CONFIG.convert,
    base_prefix="model.",
    ignored=llama.CONFIG.ignored,
)
