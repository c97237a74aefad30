# SPDX-License-Identifier: Apache-2.0
"""Phi 3 and 4 (Abdin et al. 2024): Llama with one matrix for queries, keys and values in its files, a window, and
rotations of a part of each head, each slowed by a factor of its own (LongRoPE)."""

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
from foundling.contracts.checkpoint_map import Key
from foundling.errors import ConfigError
from foundling.models import published
from foundling.models.decoder import llama


@dataclass(frozen=True)
class Phi3Config:
    vocab_size: int
    d_model: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    d_ff: int
    window: int | None = None
    max_seq_len: int = 4096
    rope_theta: float = 10_000.0
    rope_fraction: float = 1.0
    """The part of each head that is rotated."""
    rope_scaling: RopeScaling | None = None
    norm_eps: float = 1e-5
    tie_embeddings: bool = False
    dropout: float = 0.0
    """On the output of each residual branch, in training."""
    attention_dropout: float = 0.0

    def __post_init__(self) -> None:
        published.check_dropout(self)
        published.check_heads(self)
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

    @property
    def qkv_heads(self) -> tuple[int, int, int]:
        """Of the rows of the published matrix."""
        return self.n_heads, self.n_kv_heads, self.n_kv_heads


class Phi3(Decoder):
    def __init__(self, config: Phi3Config) -> None:
        c = config
        sizes = (c.d_model, c.n_heads, c.n_kv_heads, c.head_dim)
        super().__init__(
            c,
            [
                Block(
                    RMSNorm(c.d_model, c.norm_eps),
                    Attention(*sizes, window=c.window, dropout=c.attention_dropout),
                    RMSNorm(c.d_model, c.norm_eps),
                    GatedMLP(c.d_model, c.d_ff, F.silu),
                    dropout=c.dropout,
                )
                for _ in range(c.n_layers)
            ],
            RMSNorm(c.d_model, c.norm_eps),
            rope=RoPE(c.rope_dim, c.rope_theta, c.rope_scaling, max_positions=c.max_seq_len),
        )


def sized(vocab_size: int, max_seq_len: int, d_model: int, n_layers: int) -> dict[str, Any]:
    """Llama's proportions."""
    fields = llama.sized(vocab_size, max_seq_len, d_model, n_layers)
    del fields["head_dim"]
    return fields


PRESETS: dict[str, dict[str, Any]] = {
    "phi-3-mini-4k": dict(
        vocab_size=32064, d_model=3072, n_layers=32, n_heads=32, n_kv_heads=32, d_ff=8192, window=2047,
    ),
    "phi-3-medium-4k": dict(
        vocab_size=32064, d_model=5120, n_layers=40, n_heads=40, n_kv_heads=10, d_ff=17920, window=2047,
    ),
    "phi-4": dict(
        vocab_size=100352, d_model=5120, n_layers=40, n_heads=40, n_kv_heads=10, d_ff=17920, max_seq_len=16384,
        rope_theta=250_000.0,
    ),
}  # fmt: skip

FUSED = tuple(f".{name}_proj.weight" for name in ("q", "k", "v", "gate", "up"))
KEYS = [
    *[key for key in llama.KEYS if not key.theirs.endswith(FUSED)],
    Key(
        "model.layers.{i}.self_attn.qkv_proj.weight", tuple(f"layers.{{i}}.mixer.{n}.weight" for n in "qkv"),
        ("split_heads",), heads="qkv_heads",
    ),
    Key(
        "model.layers.{i}.mlp.gate_up_proj.weight", ("layers.{i}.ffn.gate.weight", "layers.{i}.ffn.up.weight"),
        ("split",),
    ),
]  # fmt: skip


def _read_scaling(value: dict[str, Any] | None) -> dict[str, Any] | None:
    """Phi-3's files call longrope "su" or "yarn" too; transformers reads no other type."""
    if value is None:
        return None
    kind = value.get("rope_type") or value.get("type")
    if kind not in ("longrope", "su", "yarn"):
        raise ValueError(f"rope_type '{kind}' is not supported; supported: default, longrope")
    return published.ROPE_SCALING[0](value | {"rope_type": "longrope"})


CONFIG = replace(
    llama.CONFIG,
    model_type="phi3",
    architecture="Phi3ForCausalLM",
    fields={theirs: ours for theirs, ours in llama.CONFIG.fields.items() if ours != "head_dim"}
    | {
        "sliding_window": "window",
        "partial_rotary_factor": "rope_fraction",
        "resid_pdrop": "dropout",
        "attention_dropout": "attention_dropout",
    },
    derived={theirs: default for theirs, default in llama.CONFIG.derived.items() if theirs != "head_dim"}
    | {
        "max_position_embeddings": lambda c: 4096,
        "original_max_position_embeddings": lambda c: 4096,
        "rms_norm_eps": lambda c: 1e-5,
        "sliding_window": lambda c: None,
        "partial_rotary_factor": lambda c: 1.0,
        **published.without_dropout("resid_pdrop", "attention_dropout"),
    },
    only={"hidden_act": "silu"},
    convert={"rope_scaling": (_read_scaling, published.ROPE_SCALING[1])},
    filled={
        "original_max_position_embeddings": lambda c: (c["rope_scaling"] or {}).get("original_max_seq_len"),
        **published.padding(32000),
    },
)
