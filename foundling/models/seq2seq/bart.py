# SPDX-License-Identifier: Apache-2.0
"""BART (Lewis et al. 2019): the Transformer with GELU, learned positions that start at 2, and a norm on the inputs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from foundling.blocks.norm import LayerNorm
from foundling.blocks.position import PositionTable
from foundling.blocks.seq2seq import EncoderDecoder, SourceEncoder
from foundling.contracts.checkpoint_map import ConfigMap, HeadMap, Key, dense, projection
from foundling.errors import ConfigError
from foundling.models import published
from foundling.models.decoder.opt import FIRST_POSITION
from foundling.models.seq2seq import transformer
from foundling.models.seq2seq.transformer import layer, norm


@dataclass(frozen=True)
class BARTConfig:
    vocab_size: int
    d_model: int
    n_layers: int
    n_decoder_layers: int
    n_heads: int
    d_ff: int
    n_decoder_heads: int | None = None
    """As n_heads where it is None; so is `d_decoder_ff`."""
    d_decoder_ff: int | None = None
    max_seq_len: int = 1024
    start_id: int = 2
    """The decoder's input before its first token: the end of the previous sequence."""
    scale_embedding: bool = False
    """Whether to multiply embeddings by √d_model."""
    tie_embeddings: bool = True
    dropout: float = 0.0
    """On embeddings and on the output of each residual branch, in training."""
    attention_dropout: float = 0.0

    def __post_init__(self) -> None:
        published.check_dropout(self)
        for name, heads in (("n_heads", self.n_heads), ("n_decoder_heads", self.n_decoder_heads)):
            if heads and self.d_model % heads:
                raise ConfigError(f"d_model {self.d_model} is not a multiple of {name} {heads}")
        for ours, encoders in (("n_decoder_heads", "n_heads"), ("d_decoder_ff", "d_ff")):
            if getattr(self, ours) == getattr(self, encoders):  # one way to say it
                object.__setattr__(self, ours, None)

    @property
    def of_decoder(self) -> BARTConfig:
        """What `layer` builds the decoder's layers from."""
        return replace(self, n_heads=self.n_decoder_heads or self.n_heads, d_ff=self.d_decoder_ff or self.d_ff)


class Placed(nn.Module):
    """norm(x + position embedding)"""

    def __init__(self, c: BARTConfig) -> None:
        super().__init__()
        self.table = PositionTable(c.max_seq_len, c.d_model, FIRST_POSITION)
        self.norm: LayerNorm = norm(c.d_model)

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        return self.norm(x + self.table(positions))


class BARTEncoder(SourceEncoder):
    def __init__(self, c: BARTConfig) -> None:
        layers = [layer(c, F.gelu, reads=False) for _ in range(c.n_layers)]
        super().__init__(layers, nn.Identity(), dropout=c.dropout)
        self.position = Placed(c)

    def embed_positions(self, x: Tensor, positions: Tensor) -> Tensor:
        return self.position(x, positions)


class BART(EncoderDecoder):
    def __init__(self, config: BARTConfig) -> None:
        c = config
        layers = [layer(c.of_decoder, F.gelu, reads=True) for _ in range(c.n_decoder_layers)]
        super().__init__(c, BARTEncoder(c), layers, nn.Identity(), dropout=c.dropout)
        self.position = Placed(c)

    def embed_tokens(self, tokens: Tensor) -> Tensor:
        return self.embedding(tokens) * (self.config.d_model**0.5 if self.config.scale_embedding else 1.0)

    def embed_positions(self, x: Tensor, positions: Tensor) -> Tensor:
        return self.position(x, positions)


sized = transformer.sized

PRESETS: dict[str, dict[str, Any]] = {
    "bart-base": dict(vocab_size=50265, d_model=768, n_layers=6, n_decoder_layers=6, n_heads=12, d_ff=3072),
    "bart-large": dict(vocab_size=50265, d_model=1024, n_layers=12, n_decoder_layers=12, n_heads=16, d_ff=4096),
}


def _side(theirs: str, ours: str, attentions: dict[str, str]) -> list[Key]:
    parts = {"final_layer_norm": "ffn_norm", "fc1": "ffn.up", "fc2": "ffn.down"}
    for attention, part in attentions.items():
        matrices = {"q_proj": "q", "k_proj": "k", "v_proj": "v", "out_proj": "o"}
        parts |= {f"{attention}_layer_norm": f"{part}_norm"}
        parts |= {f"{attention}.{matrix}": f"{part}.{letter}" for matrix, letter in matrices.items()}
    return [
        Key(f"{theirs}.embed_positions.weight", f"{ours}position.table.weight"),
        *[
            Key(f"{theirs}.{before}.{kind}", f"{ours}{after}.{kind}")
            for before, after in (
                ("layernorm_embedding", "position.norm"),
                *((f"layers.{{i}}.{theirs_}", f"layers.{{i}}.{ours_}") for theirs_, ours_ in parts.items()),
            )
            for kind in ("weight", "bias")
        ],
    ]


KEYS = [
    Key("model.shared.weight", "embedding.weight"),
    *_side("model.encoder", "encoder.", {"self_attn": "mixer"}),
    *_side("model.decoder", "", {"self_attn": "mixer", "encoder_attn": "cross"}),
    Key("lm_head.weight", "head.weight"),
]


def head_map(prefix: str = "") -> HeadMap:
    """Of BART's kind: a dense layer and a projection on a state of the decoder."""
    names = dense("classification_head.dense.weight", "classification_head.dense.bias")
    return HeadMap("ForSequenceClassification", names | projection("classification_head.out_proj"), prefix)


CONFIG = ConfigMap(
    model_type="bart",
    architecture="BartForConditionalGeneration",
    heads={"classify": head_map()},
    fields={
        "vocab_size": "vocab_size",
        "d_model": "d_model",
        "encoder_layers": "n_layers",
        "decoder_layers": "n_decoder_layers",
        "encoder_attention_heads": "n_heads",
        "decoder_attention_heads": "n_decoder_heads",
        "encoder_ffn_dim": "d_ff",
        "decoder_ffn_dim": "d_decoder_ff",
        "max_position_embeddings": "max_seq_len",
        "decoder_start_token_id": "start_id",
        "scale_embedding": "scale_embedding",
        "dropout": "dropout",
        "attention_dropout": "attention_dropout",
    },
    derived={
        "max_position_embeddings": lambda c: 1024,
        "decoder_start_token_id": lambda c: 2,
        # transformers' own: 16 and 4096, not those of the encoder
        "encoder_attention_heads": lambda c: 16,
        "decoder_attention_heads": lambda c: 16,
        "encoder_ffn_dim": lambda c: 4096,
        "decoder_ffn_dim": lambda c: 4096,
        "scale_embedding": lambda c: False,
        **published.without_dropout("dropout", "attention_dropout"),
    },
    # an untied head is detected by its tensor; False in a file means separate embeddings for encoder and decoder
    only={
        "activation_function": "gelu",
        "normalize_before": False,
        "add_final_layer_norm": False,
        "tie_word_embeddings": True,
    },
    filled={
        "decoder_attention_heads": lambda c: c["n_decoder_heads"] or c["n_heads"],
        "decoder_ffn_dim": lambda c: c["d_decoder_ff"] or c["d_ff"],
    },
    base_prefix="model.",
    ignored=("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight"),
    zero=("final_logits_bias",),
)
