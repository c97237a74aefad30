# SPDX-License-Identifier: Apache-2.0
"""Jamba (Lieber et al. 2024): one attention layer per several selective state-space layers, experts in every other
layer.

There are no position embeddings: the recurrences encode the order.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import nn

from foundling.blocks.attention import Attention
from foundling.blocks.layer import Block, MoEBlock
from foundling.blocks.mlp import GatedMLP
from foundling.blocks.moe import MoE
from foundling.blocks.norm import RMSNorm
from foundling.blocks.selective import SelectiveMixer
from foundling.blocks.stack import Decoder
from foundling.contracts.checkpoint_map import CLASSIFY, ConfigMap, Key
from foundling.errors import ConfigError
from foundling.models import published
from foundling.models.decoder import llama
from foundling.models.recurrent import mamba


@dataclass(frozen=True)
class JambaConfig:
    vocab_size: int
    d_model: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    d_ff: int
    dt_rank: int
    attention_period: int = 8
    """Layers i with i % period = offset have attention; the others are recurrent."""
    attention_offset: int = 4
    expert_period: int = 2
    """The same for layers with experts."""
    expert_offset: int = 1
    n_experts: int = 16
    n_active: int = 2
    balance_weight: float = 0.001
    expand: int = 2
    d_state: int = 16
    d_conv: int = 4
    chunk_size: int = 64
    """Changes how the scan is computed, not its result."""
    max_seq_len: int = 262144
    norm_eps: float = 1e-6
    tie_embeddings: bool = False

    def __post_init__(self) -> None:
        published.check_heads(self)
        if self.n_active > self.n_experts:
            raise ConfigError(f"n_active {self.n_active} is more than n_experts {self.n_experts}")
        for kind in ("attention", "expert"):
            period, offset = getattr(self, f"{kind}_period"), getattr(self, f"{kind}_offset")
            if not 0 <= offset < period:
                raise ConfigError(f"{kind}_offset {offset} is not below {kind}_period {period}")


class Jamba(Decoder):
    def __init__(self, config: JambaConfig) -> None:
        c, norm = config, partial(RMSNorm, eps=config.norm_eps)
        layers: list[nn.Module] = []
        for index in range(c.n_layers):
            mixer: nn.Module
            if index % c.attention_period == c.attention_offset:
                mixer = Attention(c.d_model, c.n_heads, c.n_kv_heads, c.d_model // c.n_heads)
            else:
                mixer = SelectiveMixer(
                    c.d_model, c.expand * c.d_model, c.d_state, c.d_conv, c.dt_rank, c.chunk_size, norm=norm
                )
            if c.n_experts > 1 and index % c.expert_period == c.expert_offset:
                moe = MoE(c.d_model, c.d_ff, c.n_experts, c.n_active, F.silu, normalised=False)
                layers.append(MoEBlock(norm(c.d_model), mixer, norm(c.d_model), moe))
            else:
                layers.append(Block(norm(c.d_model), mixer, norm(c.d_model), GatedMLP(c.d_model, c.d_ff, F.silu)))
        super().__init__(c, layers, norm(c.d_model))


def sized(vocab_size: int, max_seq_len: int, d_model: int, n_layers: int) -> dict[str, Any]:
    """Mamba's mixers, Llama's heads and feed-forward layers at half the width, eight experts; with too few
    layers for the paper's ratio of eight to one, the last one has attention."""
    fields = llama.sized(vocab_size, max_seq_len, d_model, n_layers)
    period = min(8, n_layers)
    return {
        **mamba.sized(vocab_size, max_seq_len, d_model, n_layers),
        "n_heads": fields["n_heads"],
        "n_kv_heads": fields["n_kv_heads"],
        "d_ff": -(-fields["d_ff"] // 64) * 32,
        "attention_period": period,
        "attention_offset": 4 if period > 4 else period - 1,
        "n_experts": 8,
    }


_LARGE = dict(vocab_size=65536, d_model=8192, n_layers=72, n_heads=64, n_kv_heads=8, d_ff=24576, dt_rank=512)
_MINI = dict(vocab_size=65536, d_model=4096, n_layers=32, n_heads=32, n_kv_heads=8, d_ff=14336, dt_rank=256)
PRESETS: dict[str, dict[str, Any]] = {"jamba-v0.1": _MINI, "jamba-1.5-mini": _MINI, "jamba-1.5-large": _LARGE}

_GATED = {"gate_proj": "gate", "up_proj": "up", "down_proj": "down"}
_RECURRENT, _ROUTED = "layers.{i}.mixer.log_rate", "layers.{i}.ffn.router.weight"
KEYS = [
    Key("model.embed_tokens.weight", "embedding.weight"),
    Key("model.layers.{i}.input_layernorm.weight", "layers.{i}.mixer_norm.weight"),
    Key("model.layers.{i}.pre_ff_layernorm.weight", "layers.{i}.ffn_norm.weight"),
    *[
        Key(f"model.layers.{{i}}.self_attn.{n}_proj.weight", f"layers.{{i}}.mixer.{n}.weight", unless=_RECURRENT)
        for n in "qkvo"
    ],
    *[
        Key(f"model.layers.{{i}}.mamba.{theirs}", f"layers.{{i}}.mixer.{ours}", given=_RECURRENT)
        for theirs, ours in mamba.MIXER_NAMES.items()
    ],
    *[
        Key(f"model.layers.{{i}}.mamba.{part}_layernorm.weight", f"layers.{{i}}.mixer.norms.{j}.weight")
        for j, part in enumerate(("dt", "b", "c"))
    ],
    Key("model.layers.{i}.feed_forward.router.weight", _ROUTED),
    *[
        Key(
            f"model.layers.{{i}}.feed_forward.experts.{{e}}.{theirs}.weight",
            f"layers.{{i}}.ffn.{ours}.weight",
            ("stack_experts",),
            given=_ROUTED,
        )
        for theirs, ours in _GATED.items()
    ],
    *[
        Key(
            f"model.layers.{{i}}.feed_forward.{theirs}.weight",
            f"layers.{{i}}.ffn.{ours}.weight",
            unless=_ROUTED,
        )
        for theirs, ours in _GATED.items()
    ],
    Key("model.final_layernorm.weight", "norm.weight"),
    Key("lm_head.weight", "head.weight"),
]

CONFIG = ConfigMap(
    model_type="jamba",
    architecture="JambaForCausalLM",
    heads={"classify": CLASSIFY},
    fields={
        "vocab_size": "vocab_size",
        "hidden_size": "d_model",
        "num_hidden_layers": "n_layers",
        "num_attention_heads": "n_heads",
        "num_key_value_heads": "n_kv_heads",
        "intermediate_size": "d_ff",
        "mamba_dt_rank": "dt_rank",
        "attn_layer_period": "attention_period",
        "attn_layer_offset": "attention_offset",
        "expert_layer_period": "expert_period",
        "expert_layer_offset": "expert_offset",
        "num_experts": "n_experts",
        "num_experts_per_tok": "n_active",
        "router_aux_loss_coef": "balance_weight",
        "mamba_expand": "expand",
        "mamba_d_state": "d_state",
        "mamba_d_conv": "d_conv",
        "chunk_size": "chunk_size",
        "max_position_embeddings": "max_seq_len",
        "rms_norm_eps": "norm_eps",
        "tie_word_embeddings": "tie_embeddings",
    },
    derived={
        **published.key_value_heads(8),
        "mamba_dt_rank": lambda c: -(-c["hidden_size"] // 16),
        "attn_layer_period": lambda c: 8,
        "attn_layer_offset": lambda c: 4,
        "expert_layer_period": lambda c: 2,
        "expert_layer_offset": lambda c: 1,
        "num_experts": lambda c: 16,
        "num_experts_per_tok": lambda c: 2,
        "router_aux_loss_coef": lambda c: 0.001,
        "mamba_expand": lambda c: 2,
        "mamba_d_state": lambda c: 16,
        "mamba_d_conv": lambda c: 4,
        "chunk_size": lambda c: 64,  # no published configuration has it
        "max_position_embeddings": lambda c: 262144,
        "rms_norm_eps": lambda c: 1e-6,
        "tie_word_embeddings": lambda c: False,
    },
    only={"hidden_act": "silu", "mamba_proj_bias": False, "mamba_conv_bias": True},
    base_prefix="model.",
    ignored=("lm_head.weight",),
)
