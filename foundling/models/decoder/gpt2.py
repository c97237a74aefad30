# SPDX-License-Identifier: Apache-2.0
"""GPT-2 (Radford et al. 2019): LayerNorm before each sublayer, learned positions, GELU, biases, a tied head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from foundling.blocks.attention import Attention
from foundling.blocks.layer import Block
from foundling.blocks.mlp import MLP, gelu_tanh
from foundling.blocks.norm import LayerNorm
from foundling.blocks.position import PositionTable
from foundling.blocks.stack import Decoder
from foundling.contracts.checkpoint_map import CLASSIFY, TAG_CLASSIFIER, ConfigMap, Key
from foundling.errors import ConfigError
from foundling.models import published


@dataclass(frozen=True)
class GPT2Config:
    vocab_size: int
    d_model: int
    n_layers: int
    n_heads: int
    d_ff: int
    max_seq_len: int = 1024
    norm_eps: float = 1e-5
    tie_embeddings: bool = True
    dropout: float = 0.0
    """On embeddings and on the output of each residual branch, in training."""
    attention_dropout: float = 0.0

    def __post_init__(self) -> None:
        published.check_dropout(self)
        if self.d_model % self.n_heads:
            raise ConfigError(f"d_model {self.d_model} is not a multiple of n_heads {self.n_heads}")


class GPT2(Decoder):
    def __init__(self, config: GPT2Config) -> None:
        c = config
        super().__init__(
            c,
            [
                Block(
                    LayerNorm(c.d_model, c.norm_eps),
                    Attention(
                        c.d_model,
                        c.n_heads,
                        c.n_heads,
                        c.d_model // c.n_heads,
                        bias=True,
                        dropout=c.attention_dropout,
                    ),
                    LayerNorm(c.d_model, c.norm_eps),
                    MLP(c.d_model, c.d_ff, gelu_tanh, bias=True),
                    dropout=c.dropout,
                )
                for _ in range(c.n_layers)
            ],
            LayerNorm(c.d_model, c.norm_eps),
            dropout=c.dropout,
        )
        self.position_embedding = PositionTable(c.max_seq_len, c.d_model)

    def embed_positions(self, x: Tensor, positions: Tensor) -> Tensor:
        return x + self.position_embedding(positions)


def sized(vocab_size: int, max_seq_len: int, d_model: int, n_layers: int) -> dict[str, Any]:
    """Configuration fields with the usual proportions: heads of 64 (32 in narrow models), d_ff = 4 d_model."""
    head_dim = 64 if d_model % 64 == 0 and d_model >= 256 else 32
    return {
        "vocab_size": vocab_size,
        "max_seq_len": max_seq_len,
        "d_model": d_model,
        "n_layers": n_layers,
        "n_heads": d_model // head_dim,
        "d_ff": 4 * d_model,
    }


def _gpt3() -> dict[str, dict[str, Any]]:
    """GPT-3 (Brown et al. 2020, table 2.1), for planning only: its weights are not public. Its banded attention in
    every other layer does not change the counts. Two rows of the table are inconsistent. XL has 24 heads of 128 for a
    width of 2,048: 16 here. 13B's 5,140 is not a multiple of its 40 heads; 5,120 gives the 12.9e9 parameters of table
    D.1.

    OpenAI's API called four of them ada to davinci; which ones is inferred from their scores (Gao 2021, "On the sizes
    of OpenAI API models")."""
    rows = {
        "125m": (12, 768, 12), "350m": (24, 1024, 16), "760m": (24, 1536, 16), "1.3b": (24, 2048, 16),
        "2.7b": (32, 2560, 32), "6.7b": (32, 4096, 32), "13b": (40, 5120, 40), "175b": (96, 12288, 96),
    }  # fmt: skip
    sizes = {
        f"gpt3-{name}": dict(vocab_size=50257, d_model=d, n_layers=n, n_heads=heads, d_ff=4 * d, max_seq_len=2048)
        for name, (n, d, heads) in rows.items()
    }
    names = {"ada": "350m", "babbage": "1.3b", "curie": "6.7b", "davinci": "175b"}
    return sizes | {name: sizes[f"gpt3-{size}"] for name, size in names.items()}


PRESETS: dict[str, dict[str, Any]] = {
    "gpt2": dict(vocab_size=50257, d_model=768, n_layers=12, n_heads=12, d_ff=3072),
    "gpt2-medium": dict(vocab_size=50257, d_model=1024, n_layers=24, n_heads=16, d_ff=4096),
    "gpt2-large": dict(vocab_size=50257, d_model=1280, n_layers=36, n_heads=20, d_ff=5120),
    "gpt2-xl": dict(vocab_size=50257, d_model=1600, n_layers=48, n_heads=25, d_ff=6400),
    **_gpt3(),
}

# The published checkpoints keep weights as (in, out), and q, k and v in one matrix.
KEYS = [
    Key("transformer.wte.weight", "embedding.weight"),
    Key("transformer.wpe.weight", "position_embedding.weight"),
    *[
        Key(f"transformer.h.{{i}}.{theirs}.{kind}", f"layers.{{i}}.{ours}.{kind}", ())
        for theirs, ours in (("ln_1", "mixer_norm"), ("ln_2", "ffn_norm"))
        for kind in ("weight", "bias")
    ],
    *[
        Key(
            f"transformer.h.{{i}}.attn.c_attn.{kind}",
            tuple(f"layers.{{i}}.mixer.{part}.{kind}" for part in "qkv"),
            ("transpose", "split") if kind == "weight" else ("split",),
        )
        for kind in ("weight", "bias")
    ],
    *[
        Key(
            f"transformer.h.{{i}}.{theirs}.{kind}",
            f"layers.{{i}}.{ours}.{kind}",
            ("transpose",) if kind == "weight" else (),
        )
        for theirs, ours in (("attn.c_proj", "mixer.o"), ("mlp.c_fc", "ffn.up"), ("mlp.c_proj", "ffn.down"))
        for kind in ("weight", "bias")
    ],
    Key("transformer.ln_f.weight", "norm.weight"),
    Key("transformer.ln_f.bias", "norm.bias"),
    Key("lm_head.weight", "head.weight"),
]

CONFIG = ConfigMap(
    model_type="gpt2",
    architecture="GPT2LMHeadModel",
    heads={"classify": CLASSIFY, "tag": TAG_CLASSIFIER},
    fields={
        "vocab_size": "vocab_size",
        "n_embd": "d_model",
        "n_layer": "n_layers",
        "n_head": "n_heads",
        "n_inner": "d_ff",
        "n_positions": "max_seq_len",
        "layer_norm_epsilon": "norm_eps",
        "tie_word_embeddings": "tie_embeddings",
        "resid_pdrop": "dropout",
        "attn_pdrop": "attention_dropout",
    },
    derived={
        "n_inner": lambda c: 4 * c["n_embd"],
        "n_positions": lambda c: 1024,
        "layer_norm_epsilon": lambda c: 1e-5,
        "tie_word_embeddings": lambda c: True,
        **published.without_dropout("resid_pdrop", "attn_pdrop"),
    },
    only={
        "activation_function": "gelu_new",
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "add_cross_attention": False,
    },
    filled={"embd_pdrop": lambda c: c["dropout"]},
    base_prefix="transformer.",
    ignored=(".attn.bias", ".attn.masked_bias", "lm_head.weight"),
)
