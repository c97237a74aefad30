# SPDX-License-Identifier: Apache-2.0
"""DistilBERT (Sanh et al. 2019): BERT with half the layers, no token types, and a dense layer before the classifier."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from foundling.blocks.encoder import Encoder
from foundling.contracts.checkpoint_map import ConfigMap, Key
from foundling.contracts.model import HeadLayout, Task
from foundling.errors import ConfigError
from foundling.models import published
from foundling.models.encoder import bert


@dataclass(frozen=True)
class DistilBERTConfig:
    vocab_size: int
    d_model: int
    n_layers: int
    n_heads: int
    d_ff: int
    max_seq_len: int = 512
    tie_embeddings: bool = True
    masked: bool = True
    norm_eps: float = 1e-12
    dropout: float = 0.0
    """Of embeddings and of what each feed-forward layer adds, in training."""
    attention_dropout: float = 0.0
    pooled, n_classes = False, 0

    def __post_init__(self) -> None:
        published.check_dropout(self)
        if self.d_model % self.n_heads:
            raise ConfigError(f"d_model {self.d_model} is not a multiple of n_heads {self.n_heads}")


class DistilBERT(Encoder):
    def __init__(self, config: DistilBERTConfig) -> None:
        c = config
        layers: list[nn.Module] = [bert.block(c, dropout=(0.0, c.dropout)) for _ in range(c.n_layers)]
        super().__init__(c, layers, dropout=c.dropout)

    def head_layout(self, task: Task) -> HeadLayout:
        layout = super().head_layout(task)
        return layout if task == "tag" else layout._replace(activation="relu")


sized = bert.sized

PRESETS: dict[str, dict[str, Any]] = {
    "distilbert-base": dict(vocab_size=30522, d_model=768, n_layers=6, n_heads=12, d_ff=3072),
}

KEYS = [
    Key("distilbert.embeddings.word_embeddings.weight", "embedding.weight"),
    Key("distilbert.embeddings.position_embeddings.weight", "position_embedding.weight"),
    *bert.pairs("distilbert.embeddings.LayerNorm", "embedding_norm"),
    *[
        key
        for theirs, ours in (
            *((f"attention.{x}_lin", f"mixer.{x}") for x in "qkv"),
            ("attention.out_lin", "mixer.o"),
            ("sa_layer_norm", "mixer_norm"),
            ("ffn.lin1", "ffn.up"),
            ("ffn.lin2", "ffn.down"),
            ("output_layer_norm", "ffn_norm"),
        )
        for key in bert.pairs(f"distilbert.transformer.layer.{{i}}.{theirs}", f"layers.{{i}}.{ours}")
    ],
    *bert.pairs("vocab_transform", "transform"),
    *bert.pairs("vocab_layer_norm", "norm"),
    *bert.pairs("vocab_projector", "head"),
]

CONFIG = ConfigMap(
    model_type="distilbert",
    architecture="DistilBertModel",
    architectures={
        "DistilBertForMaskedLM": {"masked": True},
    },
    heads=bert.head_maps("pre_classifier"),
    fields={
        "vocab_size": "vocab_size",
        "dim": "d_model",
        "n_layers": "n_layers",
        "n_heads": "n_heads",
        "hidden_dim": "d_ff",
        "max_position_embeddings": "max_seq_len",
        "tie_word_embeddings": "tie_embeddings",
        "dropout": "dropout",
        "attention_dropout": "attention_dropout",
    },
    derived={
        "max_position_embeddings": lambda c: 512,
        "tie_word_embeddings": lambda c: True,
        **published.without_dropout("dropout", "attention_dropout"),
    },
    only={"activation": "gelu", "sinusoidal_pos_embds": False},
    parts={"masked": ("vocab_transform.weight",)},
    base_prefix="distilbert.",
    ignored=(".position_ids", "vocab_projector.weight"),
    renamed=bert.CONFIG.renamed,
)
