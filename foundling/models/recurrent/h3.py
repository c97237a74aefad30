# SPDX-License-Identifier: Apache-2.0
"""H3 (Fu, Dao et al. 2023): products of a shift and a diagonal state space, with attention in a few layers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from foundling.blocks.attention import Attention
from foundling.blocks.context import Context
from foundling.blocks.layer import Block
from foundling.blocks.mlp import MLP, gelu_tanh
from foundling.blocks.norm import LayerNorm
from foundling.blocks.stack import Decoder
from foundling.blocks.state_space import Diagonal, Shift
from foundling.contracts.cache import Slot, State
from foundling.contracts.checkpoint_map import Key
from foundling.errors import ConfigError
from foundling.models.recurrent import s4


@dataclass(frozen=True)
class H3Config:
    vocab_size: int
    d_model: int
    n_layers: int
    n_heads: int
    d_ff: int
    attend_at: tuple[int, ...] = ()
    """Indices, from 0, of the layers with attention."""
    d_state: int = 64
    chunk_size: int = 16
    max_seq_len: int = 2048
    norm_eps: float = 1e-5
    tie_embeddings: bool = True

    def __post_init__(self) -> None:
        if self.d_state % 2 or self.chunk_size & (self.chunk_size - 1) or self.d_model % self.n_heads:
            raise ConfigError(
                f"d_state {self.d_state} must be even, chunk_size {self.chunk_size} a power of 2, "
                f"d_model {self.d_model} a multiple of n_heads {self.n_heads}"
            )
        if not all(0 <= layer < self.n_layers for layer in self.attend_at) or len(self.attend_at) >= self.n_layers:
            raise ConfigError(f"attend_at {self.attend_at} must be between 0 and {self.n_layers - 1}")


class H3Mixer(nn.Module):
    """o(q · diagonal(shift(k) · v)), with elementwise products (section 3.1, heads of one channel)."""

    def __init__(self, d_model: int, d_state: int, chunk: int) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(d_model, d_model) for _ in range(4))
        self.shift = Shift(d_model, d_state, chunk)
        self.diagonal = Diagonal(d_model, d_state, chunk)

    def slots(self) -> tuple[Slot, ...]:
        return (State((2, self.shift.channels, self.shift.d_state)),)

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        """x (B, T, D) -> (B, T, D); products and states in float32."""
        cache = ctx.layer_cache
        short, long = (None, None) if cache is None else cache.get(State).unbind(1)
        key, short = self.shift(self.k(x), ctx.documents, ctx.segments, short)
        y, long = self.diagonal(key * self.v(x).float(), ctx.documents, ctx.segments, long)
        if cache is not None:
            cache.put(State, torch.stack((short, long), 1))  # pyright: ignore[reportArgumentType]
        return self.o((self.q(x).float() * y).to(x.dtype))


class H3(Decoder):
    def __init__(self, config: H3Config) -> None:
        c = config
        layers = [
            Block(
                LayerNorm(c.d_model, c.norm_eps),
                Attention(c.d_model, c.n_heads, c.n_heads, c.d_model // c.n_heads, bias=True)
                if index in c.attend_at
                else H3Mixer(c.d_model, c.d_state, c.chunk_size),
                LayerNorm(c.d_model, c.norm_eps),
                MLP(c.d_model, c.d_ff, gelu_tanh, bias=True),
            )
            for index in range(c.n_layers)
        ]
        super().__init__(c, [*layers], LayerNorm(c.d_model, c.norm_eps))


def sized(vocab_size: int, max_seq_len: int, d_model: int, n_layers: int) -> dict[str, Any]:
    """S4's proportions; the middle layer has attention, as in the smallest published model."""
    head_dim = 64 if d_model % 64 == 0 and d_model >= 256 else 32
    return s4.sized(vocab_size, max_seq_len, d_model, n_layers) | {
        "n_heads": d_model // head_dim, "attend_at": (n_layers // 2,) if n_layers > 1 else (),
    }  # fmt: skip


# GPT-2's vocabulary, rounded up to a multiple of 8; no exact parameter counts are published for the larger models
PRESETS: dict[str, dict[str, Any]] = {
    "h3-125m": dict(vocab_size=50264, d_model=768, n_layers=12, n_heads=12, d_ff=3072, attend_at=(6,)),
}

KEYS = [
    *[key for key in s4.KEYS if ".system." not in key.theirs and ".o." not in key.theirs],
    *[
        Key(name, name)
        for name in (
            *[f"layers.{{i}}.mixer.{part}.{kind}" for part in "qkvo" for kind in ("weight", "bias")],
            *[f"layers.{{i}}.mixer.shift.{part}" for part in ("input_gain", "output_gain", "skip")],
            *[
                f"layers.{{i}}.mixer.diagonal.{part}"
                for part in ("log_rate", "frequency", "input_gain", "output_gain", "log_dt", "skip")
            ],
        )
    ],
]

CONFIG = replace(
    s4.CONFIG,
    model_type="h3",
    fields=s4.CONFIG.fields | {"num_attention_heads": "n_heads", "attention_layers": "attend_at"},
)
