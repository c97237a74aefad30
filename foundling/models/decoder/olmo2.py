# SPDX-License-Identifier: Apache-2.0
"""OLMo 2 (OLMo team 2024): norms after each sublayer instead of before it, and over all queries and keys (section
3.3)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from foundling.blocks.attention import Attention
from foundling.blocks.context import Context
from foundling.blocks.layer import Block
from foundling.blocks.mlp import GatedMLP
from foundling.blocks.norm import RMSNorm
from foundling.blocks.position import RoPE, RopeScaling
from foundling.blocks.stack import Decoder
from foundling.contracts.checkpoint_map import CLASSIFY, Key
from foundling.models import published
from foundling.models.decoder import llama


@dataclass(frozen=True)
class OLMo2Config:
    vocab_size: int
    d_model: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    d_ff: int
    max_seq_len: int = 4096
    rope_theta: float = 500_000.0
    rope_scaling: RopeScaling | None = None
    norm_eps: float = 1e-6
    tie_embeddings: bool = False

    def __post_init__(self) -> None:
        published.check_heads(self, self.d_model // self.n_heads)

    @property
    def head_dim(self) -> int:
        return self.d_model // self.n_heads


class OLMo2Attention(Attention):
    """Queries and keys are normalised before they are split into heads."""

    def __init__(self, c: OLMo2Config) -> None:
        super().__init__(c.d_model, c.n_heads, c.n_kv_heads, c.head_dim)
        self.q_norm = RMSNorm(c.n_heads * c.head_dim, c.norm_eps)
        self.k_norm = RMSNorm(c.n_kv_heads * c.head_dim, c.norm_eps)

    def qkv(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        assert self.q_norm is not None and self.k_norm is not None
        return self.heads(self.q_norm(self.q(x))), self.heads(self.k_norm(self.k(x))), self.heads(self.v(x))


class OLMo2Block(Block):
    """x + norm(mixer(x)), then x + norm(ffn(x))."""

    def __init__(self, c: OLMo2Config) -> None:
        norms = (RMSNorm(c.d_model, c.norm_eps, start=0.0) for _ in range(2))
        super().__init__(next(norms), OLMo2Attention(c), next(norms), GatedMLP(c.d_model, c.d_ff, F.silu))

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        x = x + self.mixer_norm(self.mixer(x, ctx))
        return x + self.ffn_norm(self.ffn(x))


class OLMo2(Decoder):
    def __init__(self, config: OLMo2Config) -> None:
        c = config
        super().__init__(
            c,
            [OLMo2Block(c) for _ in range(c.n_layers)],
            RMSNorm(c.d_model, c.norm_eps),
            rope=RoPE(c.head_dim, c.rope_theta, c.rope_scaling, max_positions=c.max_seq_len),
        )


def sized(vocab_size: int, max_seq_len: int, d_model: int, n_layers: int) -> dict[str, Any]:
    """A configuration with Llama's proportions."""
    fields = llama.sized(vocab_size, max_seq_len, d_model, n_layers)
    del fields["head_dim"]
    return fields


PRESETS: dict[str, dict[str, Any]] = {
    "olmo-2-1b": dict(vocab_size=100352, d_model=2048, n_layers=16, n_heads=16, n_kv_heads=16, d_ff=8192),
    "olmo-2-7b": dict(vocab_size=100352, d_model=4096, n_layers=32, n_heads=32, n_kv_heads=32, d_ff=11008),
    "olmo-2-13b": dict(vocab_size=100352, d_model=5120, n_layers=40, n_heads=40, n_kv_heads=40, d_ff=13824),
    "olmo-2-32b": dict(vocab_size=100352, d_model=5120, n_layers=64, n_heads=40, n_kv_heads=8, d_ff=27648),
}

KEYS = [
    *[key for key in llama.KEYS if "layernorm" not in key.theirs],
    Key("model.layers.{i}.post_attention_layernorm.weight", "layers.{i}.mixer_norm.weight"),
    Key("model.layers.{i}.post_feedforward_layernorm.weight", "layers.{i}.ffn_norm.weight"),
    *[Key(f"model.layers.{{i}}.self_attn.{n}_norm.weight", f"layers.{{i}}.mixer.{n}_norm.weight") for n in "qk"],
]
CONFIG = replace(
    llama.CONFIG,
    model_type="olmo2",
    architecture="Olmo2ForCausalLM",
    heads={"classify": CLASSIFY},
    fields={theirs: ours for theirs, ours in llama.CONFIG.fields.items() if ours != "head_dim"},
    derived={k: v for k, v in llama.CONFIG.derived.items() if k != "head_dim"} | {"rms_norm_eps": lambda c: 1e-5},
    only={"hidden_act": "silu", "attention_bias": False},
)
