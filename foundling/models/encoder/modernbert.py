# SPDX-License-Identifier: Apache-2.0
"""ModernBERT (Warner et al. 2024): a pre-norm encoder without biases, with rotary positions and local attention.

Two layers of local attention follow each global one; feed-forward layers are gated (section 2.1)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foundling.blocks.attention import Attention
from foundling.blocks.context import GLOBAL, LOCAL
from foundling.blocks.encoder import Encoder, row_means
from foundling.blocks.layer import Block
from foundling.blocks.mlp import GatedMLP
from foundling.blocks.position import RoPE
from foundling.contracts.checkpoint_map import ConfigMap, HeadMap, Key, dense, projection
from foundling.contracts.model import HeadLayout, Task
from foundling.contracts.objective import Term
from foundling.errors import ConfigError
from foundling.models import published
from foundling.models.encoder import bert


@dataclass(frozen=True)
class ModernBERTConfig:
    vocab_size: int
    d_model: int
    n_layers: int
    n_heads: int
    d_ff: int
    window: int = 128
    """A local layer sees itself and `window` // 2 tokens on either side."""
    period: int = 3
    """Every `period`-th layer has global attention, from the first one on; the others have a window."""
    max_seq_len: int = 8192
    rope_theta: float = 160_000.0
    rope_local_theta: float = 10_000.0
    norm_eps: float = 1e-5
    tie_embeddings: bool = True
    masked: bool = True
    mean_pooled: bool = False
    """Whether the vector of a row, which a head reads, comes from the mean of its states, or from its first one."""
    dropout: float = 0.0
    """On embeddings, in training."""
    attention_dropout: float = 0.0
    """On attention's weights, and on what it adds."""
    ffn_dropout: float = 0.0
    """On what the last projection of a feed-forward layer reads."""
    classifier_dropout: float = 0.0
    """On what the projection of a head reads."""
    pooled, n_classes = False, 0

    def __post_init__(self) -> None:
        published.check_dropout(self)
        if self.d_model % self.n_heads or self.d_model // self.n_heads % 2:
            raise ConfigError(f"d_model {self.d_model} is not {self.n_heads} heads of even width")
        if min(self.window, self.period) <= 0:
            raise ConfigError("window and period must be above 0")


class UnbiasedLayerNorm(nn.Module):
    """(x − mean) / std · weight over the last axis, in float32."""

    def __init__(self, d_model: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(d_model))

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x.float(), self.weight.shape, self.weight.float(), None, self.eps).to(x.dtype)


class ModernBERT(Encoder):
    def __init__(self, config: ModernBERTConfig) -> None:
        c, norm = config, partial(UnbiasedLayerNorm, config.d_model, config.norm_eps)
        head_dim = c.d_model // c.n_heads
        layers: list[nn.Module] = [
            Block(
                norm() if index else nn.Identity(),  # the embeddings' norm comes before the first layer
                Attention(
                    c.d_model, c.n_heads, c.n_heads, head_dim, window=c.window // 2 + 1 if index % c.period else None,
                    dropout=c.attention_dropout,
                ),
                norm(),
                GatedMLP(c.d_model, c.d_ff, F.gelu, dropout=c.ffn_dropout),
                dropout=c.attention_dropout,
                ffn_dropout=0.0,
            )
            for index in range(c.n_layers)
        ]  # fmt: skip
        super().__init__(c, layers, dropout=c.dropout)
        del self.position_embedding  # positions are rotations
        self.ropes = nn.ModuleDict({GLOBAL: RoPE(head_dim, c.rope_theta), LOCAL: RoPE(head_dim, c.rope_local_theta)})
        self.embedding_norm, self.final_norm = norm(), norm()
        if c.masked:
            self.transform, self.norm = nn.Linear(c.d_model, c.d_model, bias=False), norm()

    def embed_positions(self, x: Tensor, positions: Tensor) -> Tensor:
        return x

    def build_ropes(self, positions: Tensor) -> dict[str, Any]:
        return {kind: self.ropes[kind](positions) for kind in self.reaches}

    def forward_layers(self, x: Tensor, documents: Tensor | None, positions: Tensor) -> tuple[Tensor, dict[str, Term]]:
        x, aux = super().forward_layers(x, documents, positions)
        return self.final_norm(x), aux

    def pool(self, states: Tensor, documents: Tensor | None) -> Tensor | None:
        if self.transform is None:
            return None
        pooled = row_means(states, documents) if self.config.mean_pooled else states[:, 0]
        return self.transformed(pooled)

    def head_layout(self, task: Task) -> HeadLayout:
        """The published head of every task begins as the one over the vocabulary does; a model that has that one keeps
        it."""
        pool, dropout = "mean" if self.config.mean_pooled else "first", self.config.classifier_dropout
        if self.transform is not None:
            return HeadLayout("model", dropout=dropout)
        of = "every" if task == "tag" else pool
        return HeadLayout(of, "gelu", dense_bias=False, norm_eps=self.config.norm_eps, dropout=dropout)


def sized(vocab_size: int, max_seq_len: int, d_model: int, n_layers: int) -> dict[str, Any]:
    """BERT's heads, d_ff = 3/2 d_model, and windows of at most a quarter of max_seq_len."""
    fields = bert.sized(vocab_size, max_seq_len, d_model, n_layers)
    return fields | {"d_ff": 3 * d_model // 2, "window": min(128, max(2, max_seq_len // 4))}


PRESETS: dict[str, dict[str, Any]] = {
    "modernbert-base": dict(vocab_size=50368, d_model=768, n_layers=22, n_heads=12, d_ff=1152),
    "modernbert-large": dict(vocab_size=50368, d_model=1024, n_layers=28, n_heads=16, d_ff=2624),
}

KEYS = [
    Key("model.embeddings.tok_embeddings.weight", "embedding.weight"),
    Key("model.embeddings.norm.weight", "embedding_norm.weight"),
    Key("model.layers.{i}.attn_norm.weight", "layers.{i}.mixer_norm.weight"),
    Key("model.layers.{i}.attn.Wqkv.weight", tuple(f"layers.{{i}}.mixer.{part}.weight" for part in "qkv"), ("split",)),
    Key("model.layers.{i}.attn.Wo.weight", "layers.{i}.mixer.o.weight"),
    Key("model.layers.{i}.mlp_norm.weight", "layers.{i}.ffn_norm.weight"),
    Key("model.layers.{i}.mlp.Wi.weight", ("layers.{i}.ffn.gate.weight", "layers.{i}.ffn.up.weight"), ("split",)),
    Key("model.layers.{i}.mlp.Wo.weight", "layers.{i}.ffn.down.weight"),
    Key("model.final_norm.weight", "final_norm.weight"),
    Key("head.dense.weight", "transform.weight"),
    Key("head.norm.weight", "norm.weight"),
    Key("decoder.weight", "head.weight"),
    Key("decoder.bias", "head.bias"),
]


def _head_map(ending: str) -> HeadMap:
    return HeadMap(ending, dense("head.dense.weight") | {"norm_weight": "head.norm.weight"} | projection("classifier"))


def _local_theta(c: dict[str, Any]) -> float:
    """null says that local layers rotate as global ones do."""
    theta = c.get("local_rope_theta", 10_000.0)
    return c["rope_theta"] if theta is None else theta


def _period(types: list[str]) -> int:
    """The period from the kinds of the layers; `implied` checks that all layers follow it."""
    return types.index("full_attention", 1) if "full_attention" in types[1:] else len(types)


CONFIG = ConfigMap(
    model_type="modernbert",
    architecture="ModernBertModel",
    architectures={
        "ModernBertForMaskedLM": {"masked": True},
    },
    heads={task: _head_map(f"For{kind}Classification") for task, kind in (("classify", "Sequence"), ("tag", "Token"))},
    fields={
        "vocab_size": "vocab_size",
        "hidden_size": "d_model",
        "num_hidden_layers": "n_layers",
        "num_attention_heads": "n_heads",
        "intermediate_size": "d_ff",
        "local_attention": "window",
        "global_attn_every_n_layers": "period",
        "max_position_embeddings": "max_seq_len",
        "rope_theta": "rope_theta",
        "rope_local_base_freq": "rope_local_theta",
        "norm_eps": "norm_eps",
        "tie_word_embeddings": "tie_embeddings",
        "classifier_pooling": "mean_pooled",
        "embedding_dropout": "dropout",
        "attention_dropout": "attention_dropout",
        "mlp_dropout": "ffn_dropout",
        "classifier_dropout": "classifier_dropout",
    },
    derived={
        "local_attention": lambda c: 128,
        "global_attn_every_n_layers": lambda c: _period(c["layer_types"]) if c.get("layer_types") else 3,
        "max_position_embeddings": lambda c: 8192,
        "rope_theta": lambda c: c.get("global_rope_theta") or 160_000.0,
        "rope_local_base_freq": _local_theta,
        "norm_eps": lambda c: 1e-5,
        "tie_word_embeddings": lambda c: True,
        "classifier_pooling": lambda c: "cls",
        **published.without_dropout("embedding_dropout", "attention_dropout", "mlp_dropout", "classifier_dropout"),
    },
    only={
        "hidden_activation": "gelu", "norm_bias": False, "attention_bias": False, "mlp_bias": False,
        "decoder_bias": True, "classifier_bias": False, "classifier_activation": "gelu", "rope_scaling": None,
    },
    convert={"classifier_pooling": (lambda v: {"cls": False, "mean": True}[v], lambda v: "mean" if v else "cls")},
    implied={
        "layer_types": lambda c: [
            "sliding_attention" if i % c["period"] else "full_attention" for i in range(c["n_layers"])
        ],
        "global_rope_theta": lambda c: c["rope_theta"],
        "local_rope_theta": lambda c: c["rope_local_theta"],
    },
    parts={"masked": ("decoder.bias",)},
    filled=published.padding(50283),
    base_prefix="model.",
    ignored=("decoder.weight",),
)  # fmt: skip
