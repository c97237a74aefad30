# SPDX-License-Identifier: Apache-2.0
"""LSTM language model (Hochreiter & Schmidhuber 1997), with the dropouts of AWD-LSTM (Merity et al. 2018)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foundling.blocks.init import EMBEDDING_GAIN
from foundling.blocks.lstm import LSTM, LockedDropout, LSTMBlock
from foundling.blocks.stack import Decoder
from foundling.contracts.checkpoint_map import ConfigMap, Key
from foundling.contracts.model import HeadLayout, Task
from foundling.models import published


@dataclass(frozen=True)
class LSTMConfig:
    vocab_size: int
    d_model: int
    """of the embedding and of what the last layer gives"""
    n_layers: int
    d_hidden: int
    """of the other layers"""
    residual: bool = False
    """layers after the first add to what they read, where its width is theirs"""
    max_seq_len: int = 1 << 20
    tie_embeddings: bool = True
    dropout: float = 0.0
    """on what the last layer gives; one mask for all tokens of a row, as the next two"""
    input_dropout: float = 0.0
    """on embeddings"""
    hidden_dropout: float = 0.0
    """on what the other layers give"""
    embedding_dropout: float = 0.0
    """of whole tokens, all their places in a batch alike"""
    weight_dropout: float = 0.0
    """of the numbers of the recurrent matrices"""

    def __post_init__(self) -> None:
        published.check_dropout(self)


class LSTMModel(Decoder):
    """Layers one on the other, without norms; the head reads what the last one gives."""

    def __init__(self, config: LSTMConfig) -> None:
        c, layers, width = config, [], config.d_model
        for layer in range(c.n_layers):
            last = layer == c.n_layers - 1
            d_hidden = c.d_model if last else c.d_hidden
            layers.append(
                LSTMBlock(
                    LSTM(width, d_hidden, weight_dropout=c.weight_dropout),
                    residual=c.residual and layer > 0 and width == d_hidden,
                    dropout=c.dropout if last else c.hidden_dropout,
                )
            )
            width = d_hidden
        super().__init__(c, layers, nn.Identity())
        self.embedding.start_gain = EMBEDDING_GAIN  # pyright: ignore[reportAttributeAccessIssue, reportArgumentType]
        self.input_dropout = LockedDropout(c.input_dropout)

    def embed_tokens(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        if not self.training or not self.config.embedding_dropout:
            return x
        kept = torch.ones(self.config.vocab_size, 1, dtype=x.dtype, device=x.device)
        return x * F.dropout(kept, self.config.embedding_dropout)[tokens]

    def embed_positions(self, x: Tensor, positions: Tensor) -> Tensor:
        return self.input_dropout(x)

    def head_layout(self, task: Task) -> HeadLayout:
        """A text is the last state, the largest numbers and the mean side by side (ULMFiT, section 3.3)."""
        return HeadLayout("every" if task == "tag" else "concat", dropout=self.config.dropout)


def sized(vocab_size: int, max_seq_len: int, d_model: int, n_layers: int) -> dict[str, Any]:
    """Layers of one width; deep stacks add to what they read."""
    return {
        "vocab_size": vocab_size, "max_seq_len": max_seq_len, "d_model": d_model, "n_layers": n_layers,
        "d_hidden": d_model, "residual": n_layers > 2,
    }  # fmt: skip


# of word-level Penn Treebank (Merity et al. 2018, section 5), whose head has a bias besides
PRESETS: dict[str, dict[str, Any]] = {
    "awd-lstm": dict(
        vocab_size=10000, d_model=400, n_layers=3, d_hidden=1150, dropout=0.4, hidden_dropout=0.3,
        input_dropout=0.4, embedding_dropout=0.1, weight_dropout=0.5,
    )
}  # fmt: skip

KEYS = [
    Key(name, name)
    for name in (
        "embedding.weight",
        *[f"layers.{{i}}.mixer.{part}" for part in ("x.weight", "x.bias", "h.weight")],
        "head.weight",
    )
]

CONFIG = ConfigMap(
    model_type="lstm",
    architecture="",
    fields={name: name for name in LSTMConfig.__dataclass_fields__},
    derived=published.without_dropout(*(name for name in LSTMConfig.__dataclass_fields__ if name.endswith("dropout"))),
)
