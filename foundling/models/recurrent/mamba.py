# SPDX-License-Identifier: Apache-2.0
"""Mamba (Gu & Dao 2023): selective state-space mixers only, no attention and no feed-forward layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from foundling.blocks.layer import MixerBlock
from foundling.blocks.norm import RMSNorm
from foundling.blocks.selective import SelectiveMixer
from foundling.blocks.stack import Decoder
from foundling.contracts.checkpoint_map import ConfigMap, Key


@dataclass(frozen=True)
class MambaConfig:
    vocab_size: int
    d_model: int
    n_layers: int
    dt_rank: int
    expand: int = 2
    d_state: int = 16
    d_conv: int = 4
    chunk_size: int = 64
    """Changes how the scan is computed, not its result."""
    max_seq_len: int = 1 << 20
    norm_eps: float = 1e-5
    tie_embeddings: bool = True


class Mamba(Decoder):
    def __init__(self, config: MambaConfig) -> None:
        c = config
        layers = [
            MixerBlock(
                RMSNorm(c.d_model, c.norm_eps),
                SelectiveMixer(c.d_model, c.expand * c.d_model, c.d_state, c.d_conv, c.dt_rank, c.chunk_size),
            )
            for _ in range(c.n_layers)
        ]
        super().__init__(c, [*layers], RMSNorm(c.d_model, c.norm_eps))


def sized(vocab_size: int, max_seq_len: int, d_model: int, n_layers: int) -> dict[str, Any]:
    """The paper's proportions: the inner width is twice d_model, Δ has rank d_model / 16."""
    return {
        "vocab_size": vocab_size,
        "max_seq_len": max_seq_len,
        "d_model": d_model,
        "n_layers": n_layers,
        "dt_rank": -(-d_model // 16),
    }


PRESETS: dict[str, dict[str, Any]] = {
    "mamba-130m": dict(vocab_size=50280, d_model=768, n_layers=24, dt_rank=48),
    "mamba-370m": dict(vocab_size=50280, d_model=1024, n_layers=48, dt_rank=64),
    "mamba-790m": dict(vocab_size=50280, d_model=1536, n_layers=48, dt_rank=96),
    "mamba-1.4b": dict(vocab_size=50280, d_model=2048, n_layers=48, dt_rank=128),
    "mamba-2.8b": dict(vocab_size=50280, d_model=2560, n_layers=64, dt_rank=160),
}

MIXER_NAMES = {
    "A_log": "log_rate", "D": "skip", "conv1d.weight": "conv.weight", "conv1d.bias": "conv.bias",
    "in_proj.weight": "proj.weight", "x_proj.weight": "select.weight", "dt_proj.weight": "dt.weight",
    "dt_proj.bias": "dt_bias", "out_proj.weight": "o.weight",
}  # fmt: skip
"""Tensors of a mixer: published name -> ours."""

KEYS = [
    Key("backbone.embeddings.weight", "embedding.weight"),
    Key("backbone.layers.{i}.norm.weight", "layers.{i}.mixer_norm.weight"),
    *[Key(f"backbone.layers.{{i}}.mixer.{t}", f"layers.{{i}}.mixer.{ours}") for t, ours in MIXER_NAMES.items()],
    Key("backbone.norm_f.weight", "norm.weight"),
    Key("lm_head.weight", "head.weight"),
]

CONFIG = ConfigMap(
    model_type="mamba",
    architecture="MambaForCausalLM",
    fields={
        "vocab_size": "vocab_size",
        "hidden_size": "d_model",
        "num_hidden_layers": "n_layers",
        "time_step_rank": "dt_rank",
        "expand": "expand",
        "state_size": "d_state",
        "conv_kernel": "d_conv",
        "chunk_size": "chunk_size",
        "max_position_embeddings": "max_seq_len",
        "layer_norm_epsilon": "norm_eps",
        "tie_word_embeddings": "tie_embeddings",
    },
    derived={
        "time_step_rank": lambda c: -(-c["hidden_size"] // 16),
        "expand": lambda c: 2,
        "state_size": lambda c: 16,
        "conv_kernel": lambda c: 4,
        "chunk_size": lambda c: 64,  # no published configuration has it
        "max_position_embeddings": lambda c: 1 << 20,
        "layer_norm_epsilon": lambda c: 1e-5,
        "tie_word_embeddings": lambda c: True,
    },
    only={"hidden_act": "silu", "use_bias": False, "use_conv_bias": True},
    base_prefix="backbone.",
    ignored=("lm_head.weight",),
    implied={"intermediate_size": lambda c: c["expand"] * c["d_model"]},
)
