# SPDX-License-Identifier: Apache-2.0
"""S4 (Gu, Goel & Ré 2022): state spaces with HiPPO's matrix as diagonal plus low rank, instead of attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from foundling.blocks.context import Context
from foundling.blocks.layer import Block
from foundling.blocks.mlp import MLP
from foundling.blocks.norm import LayerNorm
from foundling.blocks.stack import Decoder
from foundling.blocks.state_space import LowRank
from foundling.contracts.cache import Slot, State
from foundling.contracts.checkpoint_map import ConfigMap, Key
from foundling.errors import ConfigError


@dataclass(frozen=True)
class S4Config:
    vocab_size: int
    d_model: int
    n_layers: int
    d_ff: int
    d_state: int = 64
    chunk_size: int = 16
    max_seq_len: int = 1 << 20
    norm_eps: float = 1e-5
    tie_embeddings: bool = True

    def __post_init__(self) -> None:
        if self.d_state % 2 or self.chunk_size & (self.chunk_size - 1):
            raise ConfigError(
                f"d_state {self.d_state} must be even (conjugate pairs), chunk_size {self.chunk_size} a power of 2"
            )


class S4Mixer(nn.Module):
    """GLU(o(gelu(SSM(x)))): one system per channel, then a mix of the channels (section 3.4)."""

    def __init__(self, d_model: int, d_state: int, chunk: int) -> None:
        super().__init__()
        self.system = LowRank(d_model, d_state, chunk)
        self.o = nn.Linear(d_model, 2 * d_model)

    def slots(self) -> tuple[Slot, ...]:
        return (State((self.system.channels, self.system.d_state)),)

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        """x (B, T, D) -> (B, T, D)"""
        cache = ctx.layer_cache
        y, state = self.system(x, ctx.documents, ctx.segments, None if cache is None else cache.get(State))
        if cache is not None:
            cache.put(State, state)  # pyright: ignore[reportArgumentType]
        return F.glu(self.o(F.gelu(y).to(x.dtype)), dim=-1)


class S4(Decoder):
    """Pre-norm layers of S4 and a feed-forward network, as in the paper's language model (section 4.3)."""

    def __init__(self, config: S4Config) -> None:
        c = config
        layers = [
            Block(
                LayerNorm(c.d_model, c.norm_eps),
                S4Mixer(c.d_model, c.d_state, c.chunk_size),
                LayerNorm(c.d_model, c.norm_eps),
                MLP(c.d_model, c.d_ff, F.gelu, bias=True),
            )
            for _ in range(c.n_layers)
        ]
        super().__init__(c, [*layers], LayerNorm(c.d_model, c.norm_eps))


def sized(vocab_size: int, max_seq_len: int, d_model: int, n_layers: int) -> dict[str, Any]:
    """The paper's proportions: a state of 64 for each channel, d_ff = 4 d_model."""
    return {
        "vocab_size": vocab_size, "max_seq_len": max_seq_len, "d_model": d_model, "n_layers": n_layers,
        "d_ff": 4 * d_model,
    }  # fmt: skip


# The paper's language model (249 million parameters) has an adaptive embedding, which this family does not support.
PRESETS: dict[str, dict[str, Any]] = {}

KEYS = [
    Key(name, name)
    for name in (
        "embedding.weight",
        *[
            f"layers.{{i}}.mixer.system.{part}"
            for part in ("log_rate", "frequency", "p", "input_gain", "output_gain", "log_dt", "skip")
        ],
        *[
            f"layers.{{i}}.{part}.{kind}"
            for part in ("mixer_norm", "mixer.o", "ffn_norm", "ffn.up", "ffn.down")
            for kind in ("weight", "bias")
        ],
        *[f"norm.{kind}" for kind in ("weight", "bias")],
        "head.weight",
    )
]

CONFIG = ConfigMap(
    model_type="s4",
    architecture="",
    fields={
        "vocab_size": "vocab_size",
        "hidden_size": "d_model",
        "num_hidden_layers": "n_layers",
        "intermediate_size": "d_ff",
        "state_size": "d_state",
        "chunk_size": "chunk_size",
        "max_position_embeddings": "max_seq_len",
        "layer_norm_epsilon": "norm_eps",
        "tie_word_embeddings": "tie_embeddings",
    },
)
