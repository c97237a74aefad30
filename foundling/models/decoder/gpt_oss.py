# SPDX-License-Identifier: Apache-2.0
"""GPT-OSS (OpenAI 2025): mixtures of experts with biases, windows in every second layer, attention sinks.

A sink is a logit of each head that takes attention away from all keys. Equations are those of the released code,
openai/gpt-oss, gpt_oss/torch/model.py."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foundling.blocks.attention import Attend, Attention
from foundling.blocks.init import Role
from foundling.blocks.layer import MoEBlock
from foundling.blocks.mask import Mask, Reach
from foundling.blocks.moe import MoE
from foundling.blocks.norm import RMSNorm
from foundling.blocks.position import RoPE, RopeScaling
from foundling.blocks.stack import Decoder
from foundling.contracts.checkpoint_map import Key
from foundling.errors import ConfigError
from foundling.models import published
from foundling.models.decoder import llama, mixtral


@dataclass(frozen=True)
class GPTOSSConfig:
    vocab_size: int
    d_model: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    d_expert: int
    n_experts: int = 128
    n_active: int = 4
    balance_weight: float = 0.001
    window: int = 128
    """Of every second layer, from the first one on; the others have global attention."""
    gate_slope: float = 1.702
    """An expert computes down((up + 1) · gate · sigmoid(`gate_slope` · gate))."""
    gate_limit: float = 7.0
    """up is clamped to ± this, and gate to this from above."""
    max_seq_len: int = 131072
    rope_theta: float = 150_000.0
    rope_scaling: RopeScaling | None = None
    norm_eps: float = 1e-5
    tie_embeddings: bool = False

    def __post_init__(self) -> None:
        published.check_heads(self, self.head_dim)
        if self.n_active > self.n_experts:
            raise ConfigError(f"n_active {self.n_active} is more than n_experts {self.n_experts}")
        if self.window <= 0:
            raise ConfigError(f"window is {self.window}; expected at least 1")


class SinkAttend(Attend):
    """Attention of which a part may go nowhere: softmax over the scores and one learned logit per head, whose value is
    zero."""

    def __init__(self, n_heads: int) -> None:
        super().__init__()
        self.sinks = nn.Parameter(torch.zeros(n_heads))

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Mask) -> Tensor:
        """q (B, H, T, P), k and v (B, K, S, P) -> (B, H, T, P)"""
        assert mask.dense is not None and mask.dense.dtype == torch.bool
        q = q.unflatten(1, (k.shape[1], -1))  # (B, K, H / K, T, P): the heads that share keys and values
        scores = q @ k[:, :, None].transpose(-1, -2) * q.shape[-1] ** -0.5
        scores = scores.float().masked_fill(~mask.dense[:, None], -torch.inf)
        sinks = self.sinks.float().view(k.shape[1], -1, 1, 1).expand(*scores.shape[:-1], 1)
        weights = torch.softmax(torch.cat((scores, sinks), dim=-1), dim=-1)[..., :-1]
        return (weights.to(v.dtype) @ v[:, :, None]).flatten(1, 2)


class SinkAttention(Attention):
    def __init__(self, c: GPTOSSConfig, window: int | None) -> None:
        super().__init__(c.d_model, c.n_heads, c.n_kv_heads, c.head_dim, bias=True, window=window)
        self.attend = SinkAttend(c.n_heads)

    @property
    def reach(self) -> Reach:
        return super().reach._replace(needs_dense=True)


class BiasedMoE(MoE):
    """Experts and router with biases, gates and products clamped. The router's softmax over the chosen logits alone is
    that over all of them, scaled to sum to one."""

    def __init__(self, c: GPTOSSConfig) -> None:
        super().__init__(c.d_model, c.d_expert, c.n_experts, c.n_active, F.sigmoid)
        self.slope, self.limit = c.gate_slope, c.gate_limit
        self.router = nn.Linear(c.d_model, c.n_experts)
        self.gate_bias, self.up_bias, self.down_bias = (
            nn.Parameter(torch.zeros(c.n_experts, width)) for width in (c.d_expert, c.d_expert, c.d_model)
        )

    def roles(self) -> dict[str, Role]:
        return dict.fromkeys(("gate_bias", "up_bias", "down_bias"), Role("vector", 1))

    def experts(self, rows: Tensor, ends: Tensor) -> Tensor:
        expert = torch.searchsorted(ends, torch.arange(len(rows), device=ends.device, dtype=ends.dtype), right=True)
        gate = self.gate(rows, ends) + self.gate_bias[expert]
        up = self.up(rows, ends) + self.up_bias[expert]
        gate, up = gate.clamp(max=self.limit), up.clamp(-self.limit, self.limit)
        inner = (up + 1) * gate * self.activation(self.slope * gate)
        return self.down(inner, ends) + self.down_bias[expert]


class GPTOSS(Decoder):
    def __init__(self, config: GPTOSSConfig) -> None:
        c = config
        layers = [
            MoEBlock(
                RMSNorm(c.d_model, c.norm_eps),
                SinkAttention(c, None if index % 2 else c.window),
                RMSNorm(c.d_model, c.norm_eps),
                BiasedMoE(c),
            )
            for index in range(c.n_layers)
        ]
        rope = RoPE(c.head_dim, c.rope_theta, c.rope_scaling, max_positions=c.max_seq_len)
        super().__init__(c, [*layers], RMSNorm(c.d_model, c.norm_eps), rope=rope)


def sized(vocab_size: int, max_seq_len: int, d_model: int, n_layers: int) -> dict[str, Any]:
    """Mixtral's proportions; windows are a quarter of max_seq_len, and at most 128."""
    fields = mixtral.sized(vocab_size, max_seq_len, d_model, n_layers)
    return fields | {"n_experts": 8, "n_active": 2, "window": min(128, max(1, max_seq_len // 4))}


_YARN = {"kind": "yarn", "factor": 32.0, "original_max_seq_len": 4096, "truncate": False}
_SHARED: dict[str, Any] = dict(
    vocab_size=201088, d_model=2880, n_heads=64, n_kv_heads=8, head_dim=64, d_expert=2880, rope_scaling=_YARN,
    balance_weight=0.9,
)  # fmt: skip
PRESETS: dict[str, dict[str, Any]] = {
    "gpt-oss-20b": dict(n_layers=24, n_experts=32, **_SHARED),
    "gpt-oss-120b": dict(n_layers=36, n_experts=128, **_SHARED),
}

_EXPERTS, _OURS = "model.layers.{i}.mlp.experts.", "layers.{i}.ffn."
KEYS = [
    *[key for key in llama.KEYS if ".mlp." not in key.theirs],
    *[Key(f"model.layers.{{i}}.self_attn.{n}_proj.bias", f"layers.{{i}}.mixer.{n}.bias") for n in "qkvo"],
    Key("model.layers.{i}.self_attn.sinks", "layers.{i}.mixer.attend.sinks"),
    *[Key(f"model.layers.{{i}}.mlp.router.{kind}", f"{_OURS}router.{kind}") for kind in ("weight", "bias")],
    Key(f"{_EXPERTS}gate_up_proj", (f"{_OURS}gate.weight", f"{_OURS}up.weight"), ("transpose", "interleaved_experts")),
    Key(f"{_EXPERTS}gate_up_proj_bias", (f"{_OURS}gate_bias", f"{_OURS}up_bias"), ("interleaved_experts",)),
    Key(f"{_EXPERTS}down_proj", f"{_OURS}down.weight", ("transpose",)),
    Key(f"{_EXPERTS}down_proj_bias", f"{_OURS}down_bias"),
]


def _rope_scaling(c: dict[str, Any]) -> dict[str, Any] | None:
    """Of a file that names no type: only an explicit `default` is none."""
    return published.ROPE_SCALING[1](asdict(RopeScaling(**_YARN)))


CONFIG = replace(
    llama.CONFIG,
    model_type="gpt_oss",
    architecture="GptOssForCausalLM",
    fields={theirs: ours for theirs, ours in llama.CONFIG.fields.items() if ours != "d_ff"}
    | {
        "intermediate_size": "d_expert",
        "num_local_experts": "n_experts",
        "num_experts_per_tok": "n_active",
        "router_aux_loss_coef": "balance_weight",
        "sliding_window": "window",
        "swiglu_alpha": "gate_slope",
        "swiglu_limit": "gate_limit",
    },
    derived={"rope_scaling": _rope_scaling}
    | {key: value for key, value in llama.CONFIG.derived.items() if key != "rope_scaling"}
    | {
        **published.key_value_heads(8),
        "head_dim": lambda c: 64,
        "max_position_embeddings": lambda c: 131072,
        "rope_theta": lambda c: 150_000.0,
        "rms_norm_eps": lambda c: 1e-5,
        "num_local_experts": lambda c: 128,
        "num_experts_per_tok": lambda c: 4,
        "router_aux_loss_coef": lambda c: 0.001,
        "sliding_window": lambda c: 128,
        "swiglu_alpha": lambda c: 1.702,
        "swiglu_limit": lambda c: 7.0,
    },
    only={"hidden_act": "silu", "attention_bias": True},
    implied={
        "layer_types": lambda c: [
            "full_attention" if i % 2 else "sliding_attention" for i in range(c["n_layers"])
        ],
    },
    counted=("n_layers",),
    dequantised=("mxfp4",),
)  # fmt: skip
