# SPDX-License-Identifier: Apache-2.0
"""Gemma 3 (Gemma team 2025): Gemma 2 with five local layers per global layer, norms on queries and keys, no
soft-caps."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from foundling.blocks.attention import Attention
from foundling.blocks.context import LOCAL
from foundling.blocks.layer import SandwichBlock
from foundling.blocks.mlp import GatedMLP, gelu_tanh
from foundling.blocks.norm import RMSNorm
from foundling.blocks.position import RoPE, RopeScaling
from foundling.blocks.stack import Decoder
from foundling.contracts.checkpoint_map import CLASSIFY, Key
from foundling.errors import ConfigError
from foundling.models import published
from foundling.models.decoder import gemma2, llama


@dataclass(frozen=True)
class Gemma3Config:
    vocab_size: int
    d_model: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    d_ff: int
    window: int = 1024
    period: int = 6
    """Every `period`-th layer has global attention; the others have a window."""
    query_scale: int = 256
    max_seq_len: int = 131072
    rope_theta: float = 1e6
    rope_local_theta: float = 10_000.0
    rope_scaling: RopeScaling | None = None
    """Of the global layers."""
    norm_eps: float = 1e-6
    tie_embeddings: bool = True

    def __post_init__(self) -> None:
        published.check_heads(self, self.head_dim)
        if min(self.window, self.query_scale, self.period) <= 0:
            raise ConfigError("window, query_scale and period must be above 0")


class Gemma3(Decoder):
    def __init__(self, config: Gemma3Config) -> None:
        c = config
        norm = partial(RMSNorm, eps=c.norm_eps, offset=1.0)
        layers = [
            SandwichBlock(
                norm(c.d_model),
                Attention(
                    c.d_model, c.n_heads, c.n_kv_heads, c.head_dim, scale=c.query_scale**-0.5, qk_norm=norm,
                    window=c.window if (index + 1) % c.period else None,
                ),
                norm(c.d_model, start=0.0),
                norm(c.d_model),
                GatedMLP(c.d_model, c.d_ff, gelu_tanh),
                norm(c.d_model, start=0.0),
            )
            for index in range(c.n_layers)
        ]  # fmt: skip
        super().__init__(
            c,
            [*layers],
            norm(c.d_model),
            rope=RoPE(c.head_dim, c.rope_theta, c.rope_scaling, max_positions=c.max_seq_len),
        )
        self.local_rope = RoPE(c.head_dim, c.rope_local_theta)

    def embed_tokens(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        return x * torch.tensor(self.config.d_model**0.5, dtype=x.dtype)

    def build_ropes(self, positions: Tensor) -> dict[str, Any]:
        return super().build_ropes(positions) | {LOCAL: self.local_rope(positions)}


def sized(vocab_size: int, max_seq_len: int, d_model: int, n_layers: int) -> dict[str, Any]:
    """Llama's proportions; the window is a quarter of max_seq_len, and the last layer is global."""
    fields = llama.sized(vocab_size, max_seq_len, d_model, n_layers)
    period = min(6, n_layers)
    return fields | {
        "window": max(1, max_seq_len // 4), "period": period, "query_scale": fields["head_dim"],
    }  # fmt: skip


PRESETS: dict[str, dict[str, Any]] = {
    "gemma-3-1b": dict(
        vocab_size=262144, d_model=1152, n_layers=26, n_heads=4, n_kv_heads=1, head_dim=256, d_ff=6912, window=512,
        max_seq_len=32768,
    ),
    "gemma-3-4b": dict(
        vocab_size=262208, d_model=2560, n_layers=34, n_heads=8, n_kv_heads=4, head_dim=256, d_ff=10240,
        rope_scaling={"kind": "linear", "factor": 8.0},
    ),
}  # fmt: skip

KEYS = [
    *gemma2.KEYS,
    *[Key(f"model.layers.{{i}}.self_attn.{n}_norm.weight", f"layers.{{i}}.mixer.{n}_norm.weight") for n in "qk"],
]


def _period(types: list[str]) -> int:
    """The period from the kinds of the layers; `implied` checks that all layers follow it."""
    return types.index("full_attention") + 1 if "full_attention" in types else len(types) + 1


CONFIG = replace(
    gemma2.CONFIG,
    model_type="gemma3_text",
    architecture="Gemma3ForCausalLM",
    heads={"classify": replace(CLASSIFY, ending="TextForSequenceClassification")},
    fields={k: v for k, v in gemma2.CONFIG.fields.items() if "softcapping" not in k}
    | {"rope_local_base_freq": "rope_local_theta", "rope_scaling": "rope_scaling", "sliding_window_pattern": "period"},
    derived={k: v for k, v in gemma2.CONFIG.derived.items() if "softcapping" not in k}
    | {
        "max_position_embeddings": lambda c: 131072,
        "rope_theta": lambda c: 1e6,
        "rope_local_base_freq": lambda c: 10_000.0,
        "rope_scaling": lambda c: None,
        "sliding_window_pattern": lambda c: _period(c["layer_types"]) if c.get("layer_types") else 6,
    },
    only={
        "hidden_activation": "gelu_pytorch_tanh", "attention_bias": False, "attn_logit_softcapping": None,
        "final_logit_softcapping": None, "use_bidirectional_attention": False,
    },
    convert={"rope_scaling": published.ROPE_SCALING},
    implied={
        "layer_types": lambda c: [
            "sliding_attention" if (i + 1) % c["period"] else "full_attention" for i in range(c["n_layers"])
        ],
    },
)  # fmt: skip
