# SPDX-License-Identifier: Apache-2.0
"""LSTM encoder–decoder (Sutskever et al. 2014): the decoder begins with the encoder's last state, and with `attention`
it also reads all others (Bahdanau et al. 2015; Luong et al. 2015)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from foundling.blocks.attention import CrossAttention
from foundling.blocks.init import EMBEDDING_GAIN
from foundling.blocks.lstm import LSTM, AttentionReadout, BridgedLSTMBlock, LSTMBlock
from foundling.blocks.seq2seq import EncoderDecoder, SourceEncoder
from foundling.contracts.checkpoint_map import ConfigMap, Key
from foundling.models import published


@dataclass(frozen=True)
class LSTMSeq2SeqConfig:
    vocab_size: int
    d_model: int
    n_layers: int
    n_decoder_layers: int
    attention: bool = True
    """the decoder reads every state of the source; without it, the last one has to hold all"""
    max_seq_len: int = 1 << 20
    start_id: int = 0
    """The decoder's input before its first token."""
    tie_embeddings: bool = True
    dropout: float = 0.0
    """on embeddings and on what each layer gives, in training; one mask for all tokens of a row"""

    def __post_init__(self) -> None:
        published.check_dropout(self)


class LSTMSeq2Seq(EncoderDecoder):
    """Layers after the first add to what they read."""

    def __init__(self, config: LSTMSeq2SeqConfig) -> None:
        c = config
        sides = [
            LSTMBlock(LSTM(c.d_model, c.d_model), residual=layer > 0, dropout=c.dropout) for layer in range(c.n_layers)
        ]
        layers: list[nn.Module] = [
            BridgedLSTMBlock(LSTM(c.d_model, c.d_model), c.d_model, residual=layer > 0, dropout=c.dropout)
            for layer in range(c.n_decoder_layers)
        ]
        if c.attention:
            layers.append(AttentionReadout(c.d_model, CrossAttention(c.d_model, 1, 1, c.d_model)))
        encoder = SourceEncoder([*sides], nn.Identity(), dropout=c.dropout)
        super().__init__(c, encoder, layers, nn.Identity(), dropout=c.dropout)
        self.embedding.start_gain = EMBEDDING_GAIN  # pyright: ignore[reportAttributeAccessIssue, reportArgumentType]


def sized(vocab_size: int, max_seq_len: int, d_model: int, n_layers: int) -> dict[str, Any]:
    """`n_layers` each in encoder and decoder, with attention."""
    return {
        "vocab_size": vocab_size, "max_seq_len": max_seq_len, "d_model": d_model, "n_layers": n_layers,
        "n_decoder_layers": n_layers,
    }  # fmt: skip


# those of the papers read words that are not bytes or pieces, with other widths for source and target
PRESETS: dict[str, dict[str, Any]] = {}

KEYS = [
    Key(name, name)
    for name in (
        "embedding.weight",
        *[
            f"{side}layers.{{i}}.mixer.{part}"
            for side in ("encoder.", "")
            for part in ("x.weight", "x.bias", "h.weight")
        ],
        *[f"layers.{{i}}.cross.{part}.{kind}" for part in "kv" for kind in ("weight", "bias")],
        *[f"layers.{{i}}.cross.{part}.weight" for part in "qo"],
        "layers.{i}.combine.weight",
        "head.weight",
    )
]

CONFIG = ConfigMap(
    model_type="lstm_seq2seq",
    architecture="",
    fields={name: name for name in LSTMSeq2SeqConfig.__dataclass_fields__},
    derived=published.without_dropout("dropout"),
)
