# SPDX-License-Identifier: Apache-2.0
"""Mamba-2 (Dao & Gu 2024): a stack of state-space mixers with a state of constant size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from foundling.blocks.layer import MixerBlock
from foundling.blocks.norm import RMSNorm
from foundling.blocks.ssm import Mamba2Mixer
from foundling.blocks.stack import Decoder
from foundling.contracts.checkpoint_map import ConfigMap, Key
from foundling.errors import ConfigError


@dataclass(frozen=True)
class Mamba2Config:
    vocab_size: int
    d_model: int
    n_layers: int
    n_heads: int
    head_dim: int = 64
    n_groups: int = 1
    d_state: int = 128
    d_conv: int = 4
    chunk_size: int = 64
    max_seq_len: int = 1 << 20
    norm_eps: float = 1e-5
    tie_embeddings: bool = True

    def __post_init__(self) -> None:
        if self.n_heads % self.n_groups:
            raise ConfigError(f"n_heads {self.n_heads} is not a multiple of n_groups {self.n_groups}")


class Mamba2(Decoder):
    def __init__(self, config: Mamba2Config) -> None:
        c = config
        layers = [
            MixerBlock(
                RMSNorm(c.d_model, c.norm_eps),
                Mamba2Mixer(
                    c.d_model, c.n_heads, c.head_dim, c.n_groups, c.d_state, c.d_conv, c.chunk_size, c.norm_eps
                ),
            )
            for _ in range(c.n_layers)
        ]
        super().__init__(c, [*layers], RMSNorm(c.d_model, c.norm_eps))


def sized(vocab_size: int, max_seq_len: int, d_model: int, n_layers: int) -> dict[str, Any]:
    """The usual proportions: an inner width of twice d_model, heads of 64 (32 in narrow models), a state of 64."""
    head_dim = 64 if d_model >= 256 else 32
    return {
        "vocab_size": vocab_size,
        "max_seq_len": max_seq_len,
        "d_model": d_model,
        "n_layers": n_layers,
        "n_heads": 2 * d_model // head_dim,
        "head_dim": head_dim,
        "d_state": 64,
    }


PRESETS: dict[str, dict[str, Any]] = {
    "mamba2-130m": dict(vocab_size=50288, d_model=768, n_layers=24, n_heads=24),
    "mamba2-370m": dict(vocab_size=50288, d_model=1024, n_layers=48, n_heads=32),
    "mamba2-780m": dict(vocab_size=50288, d_model=1536, n_layers=48, n_heads=48),
    "mamba2-1.3b": dict(vocab_size=50288, d_model=2048, n_layers=48, n_heads=64),
    "mamba2-2.7b": dict(vocab_size=50288, d_model=2560, n_layers=64, n_heads=80),
}

KEYS = [
    Key("backbone.embeddings.weight", "embedding.weight"),
    Key("backbone.layers.{i}.norm.weight", "layers.{i}.mixer_norm.weight"),
    *[
        Key(f"backbone.layers.{{i}}.mixer.{theirs}", f"layers.{{i}}.mixer.{ours}")
        for theirs, ours in (
            ("A_log", "log_rate"),
            ("D", "skip"),
            ("dt_bias", "dt_bias"),
            ("conv1d.weight", "conv.weight"),
            ("conv1d.bias", "conv.bias"),
            ("in_proj.weight", "proj.weight"),
            ("norm.weight", "norm.weight"),
            ("out_proj.weight", "o.weight"),
        )
    ],
    Key("backbone.norm_f.weight", "norm.weight"),
    Key("lm_head.weight", "head.weight"),
]

CONFIG = ConfigMap(
    model_type="mamba2",
    architecture="Mamba2ForCausalLM",
    fields={
        "vocab_size": "vocab_size",
        "hidden_size": "d_model",
        "num_hidden_layers": "n_layers",
        "num_heads": "n_heads",
        "head_dim": "head_dim",
        "n_groups": "n_groups",
        "state_size": "d_state",
        "conv_kernel": "d_conv",
        "chunk_size": "chunk_size",
        "max_position_embeddings": "max_seq_len",
        "layer_norm_epsilon": "norm_eps",
        "tie_word_embeddings": "tie_embeddings",
    },
    derived={
        "max_position_embeddings": lambda c: 1 << 20,
        "tie_word_embeddings": lambda c: False,
        "layer_norm_epsilon": lambda c: 1e-5,
        "chunk_size": lambda c: 256,
    },
    only={
        "hidden_act": "silu",
        "use_bias": False,
        "use_conv_bias": True,
        "rms_norm": True,
        "time_step_limit": [0.0, float("inf")],
    },
    base_prefix="backbone.",
    ignored=("lm_head.weight",),
)
