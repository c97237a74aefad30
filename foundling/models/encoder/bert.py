# SPDX-License-Identifier: Apache-2.0
"""BERT (Devlin et al. 2019): a bidirectional encoder trained by masked prediction; the first token's state represents
the text."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from foundling.blocks.attention import Attention
from foundling.blocks.encoder import Encoder
from foundling.blocks.layer import PostNormBlock
from foundling.blocks.mlp import MLP
from foundling.blocks.norm import LayerNorm
from foundling.contracts.checkpoint_map import TAG_CLASSIFIER, ConfigMap, HeadMap, Key, dense, projection
from foundling.errors import ConfigError
from foundling.models import published


@dataclass(frozen=True)
class BERTConfig:
    vocab_size: int
    d_model: int
    n_layers: int
    n_heads: int
    d_ff: int
    max_seq_len: int = 512
    n_types: int = 2
    norm_eps: float = 1e-12
    tie_embeddings: bool = True
    pooled: bool = False
    masked: bool = True
    n_classes: int = 0
    """Of pretraining, beside the head over the vocabulary: 2, for next-sentence prediction. Other classes are those of
    a head (adapt.heads)."""
    dropout: float = 0.0
    """On embeddings and on the output of each residual branch, in training."""
    attention_dropout: float = 0.0

    def __post_init__(self) -> None:
        published.check_dropout(self)
        if self.d_model % self.n_heads:
            raise ConfigError(f"d_model {self.d_model} is not a multiple of n_heads {self.n_heads}")
        if self.n_classes not in (0, 2) or (self.n_classes and not (self.pooled and self.masked)):
            raise ConfigError(
                f"n_classes {self.n_classes}: next-sentence prediction has 2, with `pooled` and `masked`; for other "
                "classes put a head on the model (adapt.heads.add_head)"
            )


def block(
    c: Any, activation: Callable[[Tensor], Tensor] = F.gelu, dropout: tuple[float, float] | None = None
) -> PostNormBlock:
    """One layer, for any configuration of this kind. `dropout` is of what attention and of what the feed-forward layer
    adds, c.dropout by default."""
    mixed, fed = (c.dropout, c.dropout) if dropout is None else dropout
    return PostNormBlock(
        LayerNorm(c.d_model, c.norm_eps),
        Attention(c.d_model, c.n_heads, c.n_heads, c.d_model // c.n_heads, bias=True, dropout=c.attention_dropout),
        LayerNorm(c.d_model, c.norm_eps),
        MLP(c.d_model, c.d_ff, activation, bias=True),
        dropout=mixed,
        ffn_dropout=fed,
    )


class BERT(Encoder):
    def __init__(self, config: BERTConfig) -> None:
        c = config
        super().__init__(c, [block(c) for _ in range(c.n_layers)], n_types=c.n_types, dropout=c.dropout)


def sized(vocab_size: int, max_seq_len: int, d_model: int, n_layers: int) -> dict[str, Any]:
    """Configuration fields with the usual proportions: heads of 64 (32 in narrow models), d_ff = 4 d_model."""
    head_dim = 64 if d_model % 64 == 0 and d_model >= 256 else 32
    return dict(
        vocab_size=vocab_size, max_seq_len=max_seq_len, d_model=d_model, n_layers=n_layers,
        n_heads=d_model // head_dim, d_ff=4 * d_model,
    )  # fmt: skip


_WHOLE: dict[str, Any] = dict(vocab_size=30522, pooled=True, n_classes=2)
PRESETS: dict[str, dict[str, Any]] = {
    "bert-base": dict(d_model=768, n_layers=12, n_heads=12, d_ff=3072, **_WHOLE),
    "bert-large": dict(d_model=1024, n_layers=24, n_heads=16, d_ff=4096, **_WHOLE),
    "minilm-l6": dict(
        vocab_size=30522, d_model=384, n_layers=6, n_heads=12, d_ff=1536, pooled=True, masked=False,
    ),
}  # fmt: skip


def pairs(theirs: str, ours: str) -> list[Key]:
    """Weight and bias of one module."""
    return [Key(f"{theirs}.{kind}", f"{ours}.{kind}") for kind in ("weight", "bias")]


def keys(base: str) -> list[Key]:
    """Embeddings and layers; `base` is the prefix of the family's tensor names."""
    return [
        *[
            Key(f"{base}.embeddings.{theirs}_embeddings.weight", f"{ours}.weight")
            for theirs, ours in (
                ("word", "embedding"),
                ("position", "position_embedding"),
                ("token_type", "type_embedding"),
            )
        ],
        *pairs(f"{base}.embeddings.LayerNorm", "embedding_norm"),
        *[
            key
            for theirs, ours in (
                ("attention.self.query", "mixer.q"),
                ("attention.self.key", "mixer.k"),
                ("attention.self.value", "mixer.v"),
                ("attention.output.dense", "mixer.o"),
                ("attention.output.LayerNorm", "mixer_norm"),
                ("intermediate.dense", "ffn.up"),
                ("output.dense", "ffn.down"),
                ("output.LayerNorm", "ffn_norm"),
            )
            for key in pairs(f"{base}.encoder.layer.{{i}}.{theirs}", f"layers.{{i}}.{ours}")
        ],
    ]


KEYS = [
    *keys("bert"),
    *pairs("bert.pooler.dense", "pooler"),
    *pairs("cls.predictions.transform.dense", "transform"),
    *pairs("cls.predictions.transform.LayerNorm", "norm"),
    Key("cls.predictions.decoder.weight", "head.weight"),
    Key("cls.predictions.decoder.bias", "head.bias", given="head.weight"),
    Key("cls.predictions.bias", "head.bias", unless="head.weight"),
    *pairs("cls.seq_relationship", "classifier"),
]


def head_maps(pooler: str) -> dict[str, HeadMap]:
    """Of BERT's kind; `pooler`: the published name of its dense layer."""
    names = dense(f"{pooler}.weight", f"{pooler}.bias") | projection("classifier")
    return {"classify": HeadMap("ForSequenceClassification", names), "tag": TAG_CLASSIFIER}


CONFIG = ConfigMap(
    model_type="bert",
    architecture="BertModel",
    architectures={
        "BertForPreTraining": {"masked": True, "pooled": True},
        "BertForMaskedLM": {"masked": True},
    },
    heads=head_maps("bert.pooler.dense"),
    fields={
        "vocab_size": "vocab_size",
        "hidden_size": "d_model",
        "num_hidden_layers": "n_layers",
        "num_attention_heads": "n_heads",
        "intermediate_size": "d_ff",
        "max_position_embeddings": "max_seq_len",
        "type_vocab_size": "n_types",
        "layer_norm_eps": "norm_eps",
        "tie_word_embeddings": "tie_embeddings",
        "hidden_dropout_prob": "dropout",
        "attention_probs_dropout_prob": "attention_dropout",
    },
    derived={
        "max_position_embeddings": lambda c: 512,
        "type_vocab_size": lambda c: 2,
        "layer_norm_eps": lambda c: 1e-12,
        "tie_word_embeddings": lambda c: True,
        **published.without_dropout("hidden_dropout_prob", "attention_probs_dropout_prob"),
    },
    only={
        "hidden_act": "gelu", "position_embedding_type": "absolute", "is_decoder": False, "add_cross_attention": False,
    },
    parts={
        "pooled": ("bert.pooler.dense.weight",),
        "masked": ("cls.predictions.transform.dense.weight",),
        "n_classes": ("cls.seq_relationship.weight",),
    },
    base_prefix="bert.",
    ignored=(".position_ids", "predictions.decoder.weight", "predictions.decoder.bias", "predictions.bias"),
    renamed=((".gamma", ".weight"), (".beta", ".bias")),
)  # fmt: skip
