# SPDX-License-Identifier: Apache-2.0
"""ALBERT (Lan et al. 2020): BERT with shared layer weights, and embeddings narrower than the layers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch.nn.functional as F
from torch import nn

from foundling.blocks.encoder import Encoder
from foundling.blocks.mlp import gelu_tanh
from foundling.contracts.checkpoint_map import Key
from foundling.errors import ConfigError
from foundling.models.encoder import bert


@dataclass(frozen=True)
class ALBERTConfig(bert.BERTConfig):
    d_embed: int = 128
    n_groups: int = 1
    """Groups of layers; the layers of a group share their weights."""
    activation: Literal["gelu", "gelu_tanh"] = "gelu_tanh"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n_layers % self.n_groups:
            raise ConfigError(f"n_layers {self.n_layers} is not a multiple of n_groups {self.n_groups}")


class ALBERT(Encoder):
    def __init__(self, config: ALBERTConfig) -> None:
        c = config
        activation = gelu_tanh if c.activation == "gelu_tanh" else F.gelu
        layers: list[nn.Module] = [bert.block(c, activation, dropout=(c.dropout, 0.0)) for _ in range(c.n_groups)]
        super().__init__(c, layers, d_embed=c.d_embed, n_types=c.n_types, activation=activation, dropout=c.dropout)

    def layer_sequence(self) -> Iterable[nn.Module]:
        each = self.config.n_layers // self.config.n_groups
        return (group for group in self.layers for _ in range(each))


def sized(vocab_size: int, max_seq_len: int, d_model: int, n_layers: int) -> dict[str, Any]:
    """BERT's proportions, with embeddings of a quarter of the width."""
    return bert.sized(vocab_size, max_seq_len, d_model, n_layers) | {"d_embed": d_model // 4}


def _preset(d_model: int, n_layers: int, n_heads: int) -> dict[str, Any]:
    return dict(
        vocab_size=30000, d_model=d_model, n_layers=n_layers, n_heads=n_heads, d_ff=4 * d_model, pooled=True,
        n_classes=2,
    )  # fmt: skip


PRESETS: dict[str, dict[str, Any]] = {
    "albert-base": _preset(768, 12, 12),
    "albert-large": _preset(1024, 24, 16),
    "albert-xlarge": _preset(2048, 24, 16),
    "albert-xxlarge": _preset(4096, 12, 64),
}

_LAYER = "albert.encoder.albert_layer_groups.{i}.albert_layers.0"
KEYS = [
    *[key for key in bert.keys("albert") if ".layer." not in key.theirs],
    *bert.pairs("albert.encoder.embedding_hidden_mapping_in", "widen"),
    *[
        key
        for theirs, ours in (
            ("attention.query", "mixer.q"),
            ("attention.key", "mixer.k"),
            ("attention.value", "mixer.v"),
            ("attention.dense", "mixer.o"),
            ("attention.LayerNorm", "mixer_norm"),
            ("ffn", "ffn.up"),
            ("ffn_output", "ffn.down"),
            ("full_layer_layer_norm", "ffn_norm"),
        )
        for key in bert.pairs(f"{_LAYER}.{theirs}", f"layers.{{i}}.{ours}")
    ],
    *bert.pairs("albert.pooler", "pooler"),
    *bert.pairs("predictions.dense", "transform"),
    *bert.pairs("predictions.LayerNorm", "norm"),
    Key("predictions.decoder.weight", "head.weight"),
    Key("predictions.decoder.bias", "head.bias", given="head.weight"),
    Key("predictions.bias", "head.bias", unless="head.weight"),
    *bert.pairs("sop_classifier.classifier", "classifier"),
]

_ACTIVATIONS = {"gelu": "gelu", "gelu_new": "gelu_tanh"}
CONFIG = replace(
    bert.CONFIG,
    model_type="albert",
    architecture="AlbertModel",
    architectures={
        "AlbertForPreTraining": {"masked": True, "pooled": True},
        "AlbertForMaskedLM": {"masked": True},
    },
    heads=bert.head_maps("albert.pooler"),
    fields=bert.CONFIG.fields
    | {"embedding_size": "d_embed", "num_hidden_groups": "n_groups", "hidden_act": "activation"},
    derived=bert.CONFIG.derived
    | {
        "embedding_size": lambda c: 128,
        "num_hidden_groups": lambda c: 1,
        "hidden_act": lambda c: "gelu_new",
    },
    convert={
        "hidden_act": (_ACTIVATIONS.__getitem__, {ours: theirs for theirs, ours in _ACTIVATIONS.items()}.__getitem__)
    },
    only={"position_embedding_type": "absolute", "inner_group_num": 1},
    parts={
        "pooled": ("albert.pooler.weight",),
        "masked": ("predictions.dense.weight",),
        "n_classes": ("sop_classifier.classifier.weight",),
    },
    base_prefix="albert.",
    counted=("n_groups",),
)
