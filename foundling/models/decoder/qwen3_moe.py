# SPDX-License-Identifier: Apache-2.0
"""Qwen 3 with mixtures of experts (Yang et al. 2025, section 2): 128 small ones, of which a token meets eight."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import nn

from foundling.blocks.attention import Attention
from foundling.blocks.layer import Block, MoEBlock
from foundling.blocks.mlp import GatedMLP
from foundling.blocks.moe import MoE
from foundling.blocks.norm import RMSNorm
from foundling.blocks.position import RoPE, RopeScaling
from foundling.blocks.stack import Decoder
from foundling.contracts.checkpoint_map import Key
from foundling.errors import ConfigError
from foundling.models import published
from foundling.models.decoder import llama, qwen3


@dataclass(frozen=True)
class Qwen3MoEConfig:
    vocab_size: int
    d_model: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    d_ff: int
    """Of the layers without experts."""
    d_expert: int
    n_experts: int = 128
    n_active: int = 8
    normalised: bool = True
    """Whether the probabilities of the chosen experts are scaled to sum to one."""
    moe_period: int = 1
    """Every `moe_period`-th layer has experts, except those in `dense_at`."""
    dense_at: tuple[int, ...] = ()
    """Numbers of layers, from 0 on."""
    balance_weight: float = 0.001
    max_seq_len: int = 32768
    rope_theta: float = 1e6
    rope_scaling: RopeScaling | None = None
    norm_eps: float = 1e-6
    tie_embeddings: bool = False

    def __post_init__(self) -> None:
        published.check_heads(self, self.head_dim)
        if self.n_active > self.n_experts:
            raise ConfigError(f"n_active {self.n_active} is more than n_experts {self.n_experts}")
        if self.moe_period <= 0 or any(not 0 <= index < self.n_layers for index in self.dense_at):
            raise ConfigError(f"moe_period must be above 0, and dense_at {self.dense_at} below n_layers")

    def has_experts(self, index: int) -> bool:
        return (index + 1) % self.moe_period == 0 and index not in self.dense_at


class Qwen3MoE(Decoder):
    def __init__(self, config: Qwen3MoEConfig) -> None:
        c, norm = config, partial(RMSNorm, eps=config.norm_eps)
        layers: list[nn.Module] = []
        for index in range(c.n_layers):
            mixer = Attention(c.d_model, c.n_heads, c.n_kv_heads, c.head_dim, qk_norm=norm)
            if c.has_experts(index):
                moe = MoE(c.d_model, c.d_expert, c.n_experts, c.n_active, F.silu, normalised=c.normalised)
                layers.append(MoEBlock(norm(c.d_model), mixer, norm(c.d_model), moe))
            else:
                layers.append(Block(norm(c.d_model), mixer, norm(c.d_model), GatedMLP(c.d_model, c.d_ff, F.silu)))
        rope = RoPE(c.head_dim, c.rope_theta, c.rope_scaling, max_positions=c.max_seq_len)
        super().__init__(c, layers, norm(c.d_model), rope=rope)


def sized(vocab_size: int, max_seq_len: int, d_model: int, n_layers: int) -> dict[str, Any]:
    """Llama's proportions, with eight experts of half the feed-forward width, two per token."""
    fields = llama.sized(vocab_size, max_seq_len, d_model, n_layers)
    return fields | {"d_expert": -(-fields["d_ff"] // 64) * 32, "n_experts": 8, "n_active": 2}


PRESETS: dict[str, dict[str, Any]] = {
    "qwen3-30b-a3b": dict(
        vocab_size=151936, d_model=2048, n_layers=48, n_heads=32, n_kv_heads=4, head_dim=128, d_ff=6144, d_expert=768,
        max_seq_len=40960,
    ),
    "qwen3-235b-a22b": dict(
        vocab_size=151936, d_model=4096, n_layers=94, n_heads=64, n_kv_heads=4, head_dim=128, d_ff=12288,
        d_expert=1536, max_seq_len=40960,
    ),
}  # fmt: skip

_ROUTED = "layers.{i}.ffn.router.weight"
KEYS = [
    *[replace(key, unless=_ROUTED) if ".mlp." in key.theirs else key for key in qwen3.KEYS],
    Key("model.layers.{i}.mlp.gate.weight", _ROUTED),
    *[
        Key(
            f"model.layers.{{i}}.mlp.experts.{{e}}.{part}_proj.weight",
            f"layers.{{i}}.ffn.{part}.weight",
            ("stack_experts",),
            given=_ROUTED,
        )
        for part in ("gate", "up", "down")
    ],
]

CONFIG = replace(
    llama.CONFIG,
    model_type="qwen3_moe",
    architecture="Qwen3MoeForCausalLM",
    fields=llama.CONFIG.fields
    | {
        "moe_intermediate_size": "d_expert",
        "num_experts": "n_experts",
        "num_experts_per_tok": "n_active",
        "norm_topk_prob": "normalised",
        "decoder_sparse_step": "moe_period",
        "mlp_only_layers": "dense_at",
        "router_aux_loss_coef": "balance_weight",
    },
    derived=llama.CONFIG.derived
    | {
        **published.key_value_heads(4),
        "intermediate_size": lambda c: 6144,
        "max_position_embeddings": lambda c: 32768,
        "num_experts": lambda c: c.get("num_local_experts", 128),
        "num_experts_per_tok": lambda c: 8,
        "norm_topk_prob": lambda c: False,
        "decoder_sparse_step": lambda c: 1,
        "mlp_only_layers": lambda c: [],
        "router_aux_loss_coef": lambda c: 0.001,
    },
    only={"hidden_act": "silu", "attention_bias": False, "use_sliding_window": False},
    implied={"num_local_experts": lambda c: c["n_experts"]},  # as version 5 of transformers calls it too
    convert=llama.CONFIG.convert | {"mlp_only_layers": (tuple, list)},
)
