# SPDX-License-Identifier: Apache-2.0
"""Llama 4's text model (Meta 2025): routed experts plus a shared one, attention in chunks, every fourth layer without
rotary positions.

Layers with rotary positions attend within chunks of 8,192 tokens. The others have global attention, and scale their
queries by the logarithm of the position (Nakanishi 2025, Scalable-Softmax).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foundling.blocks.attention import Attention
from foundling.blocks.context import GLOBAL
from foundling.blocks.layer import Block, MoEBlock
from foundling.blocks.mlp import GatedMLP
from foundling.blocks.moe import MoE, Routing
from foundling.blocks.norm import RMSNorm
from foundling.blocks.position import RoPE, RopeScaling
from foundling.blocks.stack import Decoder
from foundling.contracts.checkpoint_map import Key
from foundling.errors import ConfigError
from foundling.models import published
from foundling.models.decoder import llama


@dataclass(frozen=True)
class Llama4Config:
    vocab_size: int
    d_model: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    d_ff: int
    """Of the layers without experts."""
    d_expert: int
    n_experts: int = 16
    n_active: int = 1
    moe_period: int = 1
    """Every `moe_period`-th layer has experts."""
    balance_weight: float = 0.001
    chunk: int = 8192
    rope_period: int = 4
    """Every `rope_period`-th layer has global attention without rotary positions."""
    qk_norm: bool = True
    tempered: bool = True
    """Whether queries without rotary positions are scaled by `temper` · log(1 + ⌊(position + 1) / `temper_from`⌋) +
    1"""
    temper: float = 0.1
    temper_from: int = 8192
    max_seq_len: int = 131072
    rope_theta: float = 500_000.0
    rope_scaling: RopeScaling | None = None
    norm_eps: float = 1e-5
    tie_embeddings: bool = False

    def __post_init__(self) -> None:
        published.check_heads(self, self.head_dim)
        if self.n_active > self.n_experts:
            raise ConfigError(f"n_active {self.n_active} is more than n_experts {self.n_experts}")
        if min(self.moe_period, self.rope_period, self.chunk, self.temper_from) <= 0:
            raise ConfigError("moe_period, rope_period, chunk and temper_from must be above 0")


class UnitNorm(nn.Module):
    """x / rms(x) over the last axis. A rotation preserves length, so the norm may come first."""

    def __init__(self, eps: float) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), x.shape[-1:], eps=self.eps).to(x.dtype)


class NoPEAttention(Attention):
    """Attention without rotary positions; multiplies each query by its temperature, (B or 1, 1, T, 1)."""

    def apply_rope(self, q: Tensor, k: Tensor, rope: Tensor) -> tuple[Tensor, Tensor]:
        return (q * rope).to(q.dtype), k


class SharedMoE(MoE):
    """A shared expert for every token, plus the most probable routed ones, with inputs weighted by the sigmoid of the
    router's logits."""

    weighs_input = True

    def __init__(self, d_model: int, d_expert: int, n_experts: int, n_active: int) -> None:
        super().__init__(d_model, d_expert, n_experts, n_active, F.silu)
        self.shared = GatedMLP(d_model, d_expert, F.silu)

    def choose(self, logits: Tensor, probability: Tensor) -> tuple[Tensor, Tensor]:
        top, expert = logits.topk(self.n_active, dim=-1)
        return torch.sigmoid(top), expert

    def forward(self, x: Tensor, real: Tensor | None = None) -> tuple[Tensor, Routing]:
        y, routing = super().forward(x, real)
        return y + self.shared(x), routing


class Llama4(Decoder):
    def __init__(self, config: Llama4Config) -> None:
        super().__init__(
            config,
            [self._layer(config, i + 1) for i in range(config.n_layers)],
            RMSNorm(config.d_model, config.norm_eps),
            rope=RoPE(config.head_dim, config.rope_theta, config.rope_scaling, max_positions=config.max_seq_len),
        )

    def _layer(self, c: Llama4Config, number: int) -> nn.Module:
        sizes = c.d_model, c.n_heads, c.n_kv_heads, c.head_dim
        norm = (lambda width: UnitNorm(c.norm_eps)) if c.qk_norm else None
        mixer = Attention(*sizes, chunk=c.chunk, qk_norm=norm) if number % c.rope_period else NoPEAttention(*sizes)
        norms = RMSNorm(c.d_model, c.norm_eps), RMSNorm(c.d_model, c.norm_eps)
        if number % c.moe_period:
            return Block(norms[0], mixer, norms[1], GatedMLP(c.d_model, c.d_ff, F.silu))
        return MoEBlock(norms[0], mixer, norms[1], SharedMoE(c.d_model, c.d_expert, c.n_experts, c.n_active))

    def build_ropes(self, positions: Tensor) -> dict[str, Any]:
        c, temperature = self.config, None
        if c.tempered:
            spans = torch.floor((positions[:, None, :, None].float() + 1) / c.temper_from)
            temperature = torch.log1p(spans) * c.temper + 1
        return super().build_ropes(positions) | {GLOBAL: temperature}


def sized(vocab_size: int, max_seq_len: int, d_model: int, n_layers: int) -> dict[str, Any]:
    """Llama's proportions; every second layer has four experts of half the width, one per token, and chunks are a
    quarter of max_seq_len."""
    fields = llama.sized(vocab_size, max_seq_len, d_model, n_layers)
    return fields | {
        "d_expert": -(-fields["d_ff"] // 64) * 32, "n_experts": 4, "moe_period": min(2, n_layers),
        "rope_period": min(4, n_layers), "chunk": max(1, max_seq_len // 4), "temper_from": max(1, max_seq_len // 4),
    }  # fmt: skip


PRESETS: dict[str, dict[str, Any]] = {
    "llama-4-scout": dict(
        vocab_size=202048, d_model=5120, n_layers=48, n_heads=40, n_kv_heads=8, head_dim=128, d_ff=16384,
        d_expert=8192, max_seq_len=10485760, rope_scaling={"kind": "llama3", "factor": 16.0, "high_freq_factor": 1.0},
    ),
    "llama-4-maverick": dict(
        vocab_size=202048, d_model=5120, n_layers=48, n_heads=40, n_kv_heads=8, head_dim=128, d_ff=16384,
        d_expert=8192, n_experts=128, moe_period=2, qk_norm=False, max_seq_len=1048576,
    ),
}  # fmt: skip

_ROUTED = "layers.{i}.ffn.router.weight"
_TURNED = {f"mixer.{part}.weight": dict(transforms=("rope_pairs",), heads=heads)
           for part, heads in (("q", "n_heads"), ("k", "n_kv_heads"))}  # fmt: skip

KEYS = [
    *[
        replace(key, **_TURNED.get(key.targets[0].removeprefix("layers.{i}."), {}))
        for key in llama.KEYS
        if ".mlp." not in key.theirs
    ],
    *[
        Key(f"model.layers.{{i}}.feed_forward.{part}_proj.weight", f"layers.{{i}}.ffn.{part}.weight", unless=_ROUTED)
        for part in ("gate", "up", "down")
    ],
    *[
        Key(
            f"model.layers.{{i}}.feed_forward.shared_expert.{part}_proj.weight",
            f"layers.{{i}}.ffn.shared.{part}.weight",
        )
        for part in ("gate", "up", "down")
    ],
    Key("model.layers.{i}.feed_forward.router.weight", _ROUTED),
    Key(
        "model.layers.{i}.feed_forward.experts.gate_up_proj",
        ("layers.{i}.ffn.gate.weight", "layers.{i}.ffn.up.weight"),
        ("transpose", "split_experts"),
        given=_ROUTED,
    ),
    Key(
        "model.layers.{i}.feed_forward.experts.down_proj",
        "layers.{i}.ffn.down.weight",
        ("transpose",),
        given=_ROUTED,
    ),
]

CONFIG = replace(
    llama.CONFIG,
    model_type="llama4_text",
    architecture="Llama4ForCausalLM",
    heads={},
    fields=llama.CONFIG.fields
    | {
        "intermediate_size": "d_expert",
        "intermediate_size_mlp": "d_ff",
        "num_local_experts": "n_experts",
        "num_experts_per_tok": "n_active",
        "interleave_moe_layer_step": "moe_period",
        "router_aux_loss_coef": "balance_weight",
        "attention_chunk_size": "chunk",
        "no_rope_layer_interval": "rope_period",
        "use_qk_norm": "qk_norm",
        "attn_temperature_tuning": "tempered",
        "attn_scale": "temper",
        "floor_scale": "temper_from",
    },
    derived=llama.CONFIG.derived
    | {
        **published.key_value_heads(8),
        "head_dim": lambda c: 128,
        "max_position_embeddings": lambda c: 4096 * 32,
        "rope_theta": lambda c: 500_000.0,
        "rms_norm_eps": lambda c: 1e-5,
        "intermediate_size_mlp": lambda c: 16384,
        "num_local_experts": lambda c: 16,
        "num_experts_per_tok": lambda c: 1,
        "interleave_moe_layer_step": lambda c: 1,
        "router_aux_loss_coef": lambda c: 0.001,
        "attention_chunk_size": lambda c: 8192,
        "no_rope_layer_interval": lambda c: 4,
        "use_qk_norm": lambda c: True,
        "attn_temperature_tuning": lambda c: True,
        "attn_scale": lambda c: 0.1,
        "floor_scale": lambda c: 8192,
    },
    only={"hidden_act": "silu", "attention_bias": False, "router_jitter_noise": 0.0},
    convert=llama.CONFIG.convert | {"attn_temperature_tuning": (bool, bool)},  # some releases say 4
    counted=("n_layers",),
    implied={
        "no_rope_layers": lambda c: [int((i + 1) % c["rope_period"] != 0) for i in range(c["n_layers"])],
        "layer_types": lambda c: [
            "chunked_attention" if (i + 1) % c["rope_period"] else "full_attention" for i in range(c["n_layers"])
        ],
        "moe_layers": lambda c: [i for i in range(c["n_layers"]) if (i + 1) % c["moe_period"] == 0],
    },
)
