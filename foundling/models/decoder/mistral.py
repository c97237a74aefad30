# SPDX-License-Identifier: Apache-2.0
"""Mistral (Jiang et al. 2023): Llama with sliding-window attention (section 2)."""

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
from foundling.errors import ConfigError
from foundling.models import published
from foundling.models.decoder import llama


@dataclass(frozen=True)
class MistralConfig:
    vocab_size: int
    d_model: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    d_ff: int
    window: int | None = 4096
    """None for full attention, as from version 0.2 on."""
    max_seq_len: int = 32768
    rope_theta: float = 10_000.0
    rope_scaling: RopeScaling | None = None
    norm_eps: float = 1e-5
    tie_embeddings: bool = False

    def __post_init__(self) -> None:
        published.check_heads(self, self.head_dim)
        if self.window is not None and self.window < 1:
            raise ConfigError(f"window is {self.window}; expected at least 1, or null")


class Mistral(Decoder):
    def __init__(self, config: MistralConfig) -> None:
        c = config
        super().__init__(
            c,
            [
                Block(
                    RMSNorm(c.d_model, c.norm_eps),
                    Attention(c.d_model, c.n_heads, c.n_kv_heads, c.head_dim, window=c.window),
                    RMSNorm(c.d_model, c.norm_eps),
                    GatedMLP(c.d_model, c.d_ff, F.silu),
                )
                for _ in range(c.n_layers)
            ],
            RMSNorm(c.d_model, c.norm_eps),
            rope=RoPE(c.head_dim, c.rope_theta, c.rope_scaling, max_positions=c.max_seq_len),
        )


def sized(vocab_size: int, max_seq_len: int, d_model: int, n_layers: int) -> dict[str, Any]:
    """Llama's proportions; the window is half of max_seq_len."""
    return llama.sized(vocab_size, max_seq_len, d_model, n_layers) | {"window": max(1, max_seq_len // 2)}


_SEVEN = dict(
    vocab_size=32000, d_model=4096, n_layers=32, n_heads=32, n_kv_heads=8, head_dim=128, d_ff=14336, max_seq_len=32768
)
PRESETS: dict[str, dict[str, Any]] = {
    "mistral-7b-v0.1": _SEVEN | dict(window=4096),
    "mistral-7b-v0.3": _SEVEN | dict(vocab_size=32768, window=None, rope_theta=1e6),
    "mistral-nemo-12b": dict(
        vocab_size=131072, d_model=5120, n_layers=40, n_heads=32, n_kv_heads=8, head_dim=128, d_ff=14336, window=None,
        max_seq_len=131072, rope_theta=1e6,
    ),
}  # fmt: skip

KEYS = llama.KEYS
CONFIG = replace(
    llama.CONFIG,
    model_type="mistral",
    architecture="MistralForCausalLM",
    fields=llama.CONFIG.fields | {"sliding_window": "window"},
    derived=llama.CONFIG.derived
    | {
        **published.key_value_heads(8),
        "max_position_embeddings": lambda c: 131072,
        "sliding_window": lambda c: 4096,
    },
    only={"hidden_act": "silu"},
)
