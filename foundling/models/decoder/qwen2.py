# SPDX-License-Identifier: Apache-2.0
"""Qwen 2 and 2.5 (Qwen team 2024): Llama with biases on queries, keys and values, and windows in its later layers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch.nn.functional as F
from torch import nn

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
class Qwen2Config:
    vocab_size: int
    d_model: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    d_ff: int
    windowed: bool = False
    """Whether the layers from `window_starts_at` on have a window; no published model uses it."""
    window: int | None = 4096
    window_starts_at: int = 28
    max_seq_len: int = 32768
    rope_theta: float = 10_000.0
    rope_scaling: RopeScaling | None = None
    norm_eps: float = 1e-6
    tie_embeddings: bool = False

    def __post_init__(self) -> None:
        published.check_heads(self, self.head_dim)

    def window_of(self, layer: int) -> int | None:
        return self.window if self.windowed and layer >= self.window_starts_at else None


def attention(c: Qwen2Config, window: int | None) -> Attention:
    """Biases on q, k and v, none on o (Bai et al. 2023, Qwen, section 2.3)."""
    mixer = Attention(c.d_model, c.n_heads, c.n_kv_heads, c.head_dim, bias=True, window=window)
    mixer.o = nn.Linear(c.n_heads * c.head_dim, c.d_model, bias=False)
    return mixer


class Qwen2(Decoder):
    def __init__(self, config: Qwen2Config) -> None:
        c = config
        layers: list[nn.Module] = [
            Block(
                RMSNorm(c.d_model, c.norm_eps),
                attention(c, c.window_of(index)),
                RMSNorm(c.d_model, c.norm_eps),
                GatedMLP(c.d_model, c.d_ff, F.silu),
            )
            for index in range(c.n_layers)
        ]
        rope = RoPE(c.head_dim, c.rope_theta, c.rope_scaling, max_positions=c.max_seq_len)
        super().__init__(c, layers, RMSNorm(c.d_model, c.norm_eps), rope=rope)


sized = llama.sized

_ALL = dict(vocab_size=151936, head_dim=128, max_seq_len=32768, rope_theta=1e6)
_LARGE = _ALL | dict(vocab_size=152064, max_seq_len=131072)
PRESETS: dict[str, dict[str, Any]] = {
    "qwen2.5-0.5b": _ALL | dict(
        d_model=896, n_layers=24, n_heads=14, n_kv_heads=2, head_dim=64, d_ff=4864, tie_embeddings=True
    ),
    "qwen2.5-1.5b": _ALL | dict(d_model=1536, n_layers=28, n_heads=12, n_kv_heads=2, d_ff=8960, tie_embeddings=True),
    "qwen2.5-3b": _ALL | dict(d_model=2048, n_layers=36, n_heads=16, n_kv_heads=2, d_ff=11008, tie_embeddings=True),
    "qwen2.5-7b": _LARGE | dict(d_model=3584, n_layers=28, n_heads=28, n_kv_heads=4, d_ff=18944),
    "qwen2.5-14b": _LARGE | dict(norm_eps=1e-5, d_model=5120, n_layers=48, n_heads=40, n_kv_heads=8, d_ff=13824),
    "qwen2.5-32b": _LARGE | dict(norm_eps=1e-5, d_model=5120, n_layers=64, n_heads=40, n_kv_heads=8, d_ff=27648),
    "qwen2.5-72b": _LARGE | dict(norm_eps=1e-5, d_model=8192, n_layers=80, n_heads=64, n_kv_heads=8, d_ff=29568),
}  # fmt: skip

KEYS = [
    *llama.KEYS,
    *[Key(f"model.layers.{{i}}.self_attn.{n}_proj.bias", f"layers.{{i}}.mixer.{n}.bias") for n in "qkv"],
]


def _layer_types(c: dict[str, Any]) -> list[str]:
    starts = c["window_starts_at"] if c["windowed"] and c["window"] is not None else c["n_layers"]
    return ["sliding_attention" if i >= starts else "full_attention" for i in range(c["n_layers"])]


CONFIG = replace(
    llama.CONFIG,
    model_type="qwen2",
    architecture="Qwen2ForCausalLM",
    fields=llama.CONFIG.fields
    | {"use_sliding_window": "windowed", "sliding_window": "window", "max_window_layers": "window_starts_at"},
    derived=llama.CONFIG.derived
    | {
        **published.key_value_heads(32),
        "max_position_embeddings": lambda c: 32768,
        "use_sliding_window": lambda c: False,
        "sliding_window": lambda c: 4096,
        "max_window_layers": lambda c: 28,
    },
    only={"hidden_act": "silu"},
    implied={"layer_types": _layer_types},
)
