# SPDX-License-Identifier: Apache-2.0
"""GPT (Radford et al. 2018): LayerNorm after each sublayer and none at the end, learned positions, GELU, a tied
head."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from foundling.blocks.attention import Attention
from foundling.blocks.layer import PostNormBlock
from foundling.blocks.mlp import MLP, gelu_tanh
from foundling.blocks.norm import LayerNorm
from foundling.blocks.position import PositionTable
from foundling.blocks.stack import Decoder
from foundling.contracts.checkpoint_map import CLASSIFY
from foundling.errors import ConfigError
from foundling.models import published
from foundling.models.decoder import gpt2


@dataclass(frozen=True)
class GPTConfig:
    vocab_size: int
    d_model: int
    n_layers: int
    n_heads: int
    max_seq_len: int = 512
    norm_eps: float = 1e-5
    tie_embeddings: bool = True
    dropout: float = 0.0
    """On embeddings and on the output of each residual branch, in training."""
    attention_dropout: float = 0.0

    def __post_init__(self) -> None:
        published.check_dropout(self)
        if self.d_model % self.n_heads:
            raise ConfigError(f"d_model {self.d_model} is not a multiple of n_heads {self.n_heads}")


class GPT(Decoder):
    def __init__(self, config: GPTConfig) -> None:
        c = config
        layers = [
            PostNormBlock(
                LayerNorm(c.d_model, c.norm_eps),
                Attention(
                    c.d_model, c.n_heads, c.n_heads, c.d_model // c.n_heads, bias=True, dropout=c.attention_dropout
                ),
                LayerNorm(c.d_model, c.norm_eps),
                MLP(c.d_model, 4 * c.d_model, gelu_tanh, bias=True),
                dropout=c.dropout,
            )
            for _ in range(c.n_layers)
        ]
        super().__init__(c, [*layers], nn.Identity(), dropout=c.dropout)
        self.position_embedding = PositionTable(c.max_seq_len, c.d_model)

    def embed_positions(self, x: Tensor, positions: Tensor) -> Tensor:
        return x + self.position_embedding(positions)


def sized(vocab_size: int, max_seq_len: int, d_model: int, n_layers: int) -> dict[str, Any]:
    """A configuration with GPT-2's proportions."""
    fields = gpt2.sized(vocab_size, max_seq_len, d_model, n_layers)
    del fields["d_ff"]
    return fields


PRESETS: dict[str, dict[str, Any]] = {
    "gpt": dict(vocab_size=40478, d_model=768, n_layers=12, n_heads=12),
}

# GPT-2's layout, with other names for the two embeddings and no final norm.
KEYS = [
    replace(key, theirs=key.theirs.replace(".wte.", ".tokens_embed.").replace(".wpe.", ".positions_embed."))
    for key in gpt2.KEYS
    if ".ln_f." not in key.theirs
]

CONFIG = replace(
    gpt2.CONFIG,
    model_type="openai-gpt",
    architecture="OpenAIGPTLMHeadModel",
    heads={"classify": CLASSIFY},
    fields={theirs: ours for theirs, ours in gpt2.CONFIG.fields.items() if ours != "d_ff"},
    derived={key: value for key, value in gpt2.CONFIG.derived.items() if key != "n_inner"}
    | {"n_positions": lambda c: 512},
    only={"afn": "gelu"},  # there, this means the tanh approximation
    ignored=(".attn.bias", "position_ids", "lm_head.weight"),
)
