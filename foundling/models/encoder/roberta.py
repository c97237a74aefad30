# SPDX-License-Identifier: Apache-2.0
"""RoBERTa (Liu et al. 2019): BERT trained longer on more data; one token type, positions start at 2."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from foundling.blocks.encoder import Encoder
from foundling.contracts.checkpoint_map import TAG_CLASSIFIER, HeadMap, Key, dense, projection
from foundling.contracts.model import HeadLayout, Task
from foundling.errors import ConfigError
from foundling.models.encoder import bert

FIRST_POSITION = 2


@dataclass(frozen=True)
class RoBERTaConfig(bert.BERTConfig):
    n_types: int = 1
    norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n_classes:
            raise ConfigError("RoBERTa is pretrained without classes; put a head on the model (adapt.heads.add_head)")


class RoBERTa(Encoder):
    def __init__(self, config: RoBERTaConfig) -> None:
        c = config
        layers: list[nn.Module] = [bert.block(c) for _ in range(c.n_layers)]
        super().__init__(c, layers, n_types=c.n_types, first_position=FIRST_POSITION, dropout=c.dropout)

    def head_layout(self, task: Task) -> HeadLayout:
        """A head of its own, also where there is a pooler."""
        layout = super().head_layout(task)
        return layout if task == "tag" else layout._replace(pool="first", activation="tanh")


sized = bert.sized

PRESETS: dict[str, dict[str, Any]] = {
    "roberta-base": dict(vocab_size=50265, d_model=768, n_layers=12, n_heads=12, d_ff=3072),
    "roberta-large": dict(vocab_size=50265, d_model=1024, n_layers=24, n_heads=16, d_ff=4096),
}

KEYS = [
    *bert.keys("roberta"),
    *bert.pairs("roberta.pooler.dense", "pooler"),
    *bert.pairs("lm_head.dense", "transform"),
    *bert.pairs("lm_head.layer_norm", "norm"),
    Key("lm_head.decoder.weight", "head.weight"),
    Key("lm_head.decoder.bias", "head.bias", given="head.weight"),
    Key("lm_head.bias", "head.bias", unless="head.weight"),
]

CONFIG = replace(
    bert.CONFIG,
    model_type="roberta",
    architecture="RobertaModel",
    architectures={
        "RobertaForMaskedLM": {"masked": True},
    },
    heads={
        "classify": HeadMap(
            "ForSequenceClassification",
            dense("classifier.dense.weight", "classifier.dense.bias") | projection("classifier.out_proj"),
        ),
        "tag": TAG_CLASSIFIER,
    },
    derived=bert.CONFIG.derived
    | {
        "max_position_embeddings": lambda c: 512,
        "layer_norm_eps": lambda c: 1e-12,
    },
    convert={"max_position_embeddings": (lambda n: n - FIRST_POSITION, lambda n: n + FIRST_POSITION)},
    only=bert.CONFIG.only | {"pad_token_id": FIRST_POSITION - 1},
    parts={
        "pooled": ("roberta.pooler.dense.weight",),
        "masked": ("lm_head.dense.weight",),
    },
    base_prefix="roberta.",
    # a pooler without classes is omitted, as in transformers
    ignored=(
        ".position_ids", "lm_head.decoder.weight", "lm_head.decoder.bias", "lm_head.bias",
        "pooler.dense.weight", "pooler.dense.bias",
    ),
)  # fmt: skip
