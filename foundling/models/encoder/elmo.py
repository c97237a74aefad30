# SPDX-License-Identifier: Apache-2.0
"""ELMo (Peters et al. 2018): words from characters, an LSTM in each direction, and a learned mix of their layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foundling.blocks.characters import CharacterCNN
from foundling.blocks.context import Context
from foundling.blocks.encoder import TextEmbedder
from foundling.blocks.lstm import LSTM
from foundling.contracts.checkpoint_map import ConfigMap, Key
from foundling.contracts.model import Capabilities, EncoderOutput, HeadLayout, ModelOutput, Task
from foundling.errors import ConfigError
from foundling.limits import FILTER_WIDTHS, FILTERS, WORD_LEN, shown
from foundling.models import published


@dataclass(frozen=True)
class ELMoConfig:
    vocab_size: int
    d_model: int
    """of both directions together"""
    n_layers: int = 2
    d_hidden: int = 4096
    """of each LSTM, whose output is projected to half of d_model"""
    d_char: int = 16
    filters: tuple[tuple[int, int], ...] = (
        (1, 32), (2, 32), (3, 64), (4, 128), (5, 256), (6, 512), (7, 1024),
    )  # fmt: skip
    """(characters, how many) of the convolutions"""
    n_highway: int = 2
    max_word_len: int = 50
    """bytes of a word that are read, with a mark before and one after them"""
    masked: bool = True
    """whether it has a head over its vocabulary"""
    max_seq_len: int = 1 << 20
    dropout: float = 0.0
    """on what each layer reads, in training"""

    def __post_init__(self) -> None:
        published.check_dropout(self)
        if self.d_model % 2:
            raise ConfigError(f"d_model {self.d_model} is odd; each direction has half of it")
        WORD_LEN.check(self.max_word_len, "max_word_len", ConfigError)
        FILTER_WIDTHS.check(len(self.filters), "the number of widths in filters", ConfigError)
        for width, n in self.filters:
            FILTERS.check(n, f"filters of {shown(width)} characters: their number", ConfigError)
            if not 1 <= width <= self.max_word_len:
                raise ConfigError(
                    f"filters of {shown(width)} characters, expected 1 to max_word_len {self.max_word_len}"
                )


class BiLSTM(nn.Module):
    """Two LSTMs side by side, one from each end; each reads what its own direction gave before."""

    def __init__(self, c: ELMoConfig, residual: bool) -> None:
        super().__init__()
        width = c.d_model // 2
        self.ahead = LSTM(width, c.d_hidden, d_out=width)
        self.back = LSTM(width, c.d_hidden, d_out=width, reverse=True)
        self.residual, self.dropout = residual, nn.Dropout(c.dropout)

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        """x (B, T, D) -> (B, T, D), of the forward direction first"""
        ahead, back = self.dropout(x).chunk(2, -1)
        y = torch.cat((self.ahead(ahead, ctx), self.back(back, ctx)), -1)
        return x + y if self.residual else y


class ELMo(TextEmbedder):
    """What `logits` reads of a token is what both directions know of it without having read it: the forward state
    before it plus the backward state after it, so that the product of both predictions fills a gap."""

    capabilities = Capabilities(embeds=True, fills=True, takes_head=True, mixes_layers=True, spells=True)
    causal = False

    def __init__(self, config: ELMoConfig) -> None:
        super().__init__()
        c = self.config = config
        self.embedding = CharacterCNN(
            c.vocab_size, c.d_model // 2, d_char=c.d_char, filters=c.filters, n_highway=c.n_highway,
            max_word_len=c.max_word_len,
        )  # fmt: skip
        self.layers = nn.ModuleList([BiLSTM(c, residual=layer > 0) for layer in range(c.n_layers)])
        self.head = nn.Linear(c.d_model // 2, c.vocab_size, bias=False) if c.masked else None
        self.capabilities = self.capabilities._replace(fills=c.masked)

    def embed_tokens(self, tokens: Tensor) -> Tensor:
        """(B, T) -> (B, T, D/2)"""
        return self.embedding(tokens)

    def layer_states(self, x: Tensor, documents: Tensor | None) -> list[Tensor]:
        """x (B, T) ids or (B, T, D/2) embeddings -> (B, T, D) each: words twice, and what each layer gives"""
        x = x if x.is_floating_point() else self.embed_tokens(x)
        states, ctx = [torch.cat((x, x), -1)], Context(documents=documents)
        for layer in self.layers:
            states.append(layer(states[-1], ctx))
        return states

    def encode(
        self, x: Tensor, *, documents: Tensor | None = None, positions: Tensor | None = None,
        token_types: Tensor | None = None,
    ) -> EncoderOutput:  # fmt: skip
        """x (B, T) ids or (B, T, D/2) embeddings -> the mean of the words and of all layers' states. ConfigError for
        token_types."""
        if token_types is not None:
            raise ConfigError(f"{type(self).__name__} has no token_types; leave them out")
        return EncoderOutput(torch.stack(self.layer_states(x, documents)).mean(0), documents)

    def directions(self, x: Tensor, documents: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """x as of `encode` -> (B, T, D/2) twice: the forward state of the token before each one and the backward state
        of the token after it, zero where its document has none"""
        ahead, back = self.layer_states(x, documents)[-1].chunk(2, -1)
        ahead, back = F.pad(ahead, (0, 0, 1, 0))[:, :-1], F.pad(back, (0, 0, 0, 1))[:, 1:]
        if documents is None:
            return ahead, back
        same = (documents[:, 1:] == documents[:, :-1])[..., None]
        return torch.where(F.pad(same, (0, 0, 1, 0)), ahead, 0), torch.where(F.pad(same, (0, 0, 0, 1)), back, 0)

    def forward(
        self, x: Tensor, *, documents: Tensor | None = None, positions: Tensor | None = None,
        token_types: Tensor | None = None,
    ) -> ModelOutput:  # fmt: skip
        """As `encode`, but gives what `logits` reads, (B, T, D/2); ConfigError without a head over the vocabulary."""
        if self.head is None:
            raise ConfigError("this ELMo has no head over its vocabulary; use encode(…)")
        ahead, back = self.directions(x, documents)
        return ModelOutput(ahead + back, {})

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., D/2) -> (..., V)"""
        assert self.head is not None
        return self.head(hidden)

    def sequence_flops(self, seq_len: int, *, causal: bool = True) -> int:
        """Forward, per token, besides its projections: the head is read once for each direction."""
        return 0 if self.head is None else 2 * self.head.in_features * self.head.out_features

    def spell(self, texts: Sequence[bytes]) -> None:
        """Sets how the first tokens of the vocabulary are spelled, in bytes."""
        self.embedding.spell(texts)

    def head_layout(self, task: Task) -> HeadLayout:
        """One projection of a mix of the words and all layers (section 3.3), of its mean over a text."""
        pool, n_mixed = "every" if task == "tag" else "mean", self.config.n_layers + 1
        return HeadLayout(pool, dropout=self.config.dropout, n_mixed=n_mixed)


def sized(vocab_size: int, max_seq_len: int, d_model: int, n_layers: int) -> dict[str, Any]:
    """The paper's proportions in small: two layers for up to five of a Transformer, 4 d_model cells for a d_model of
    both directions, of which it has half as many here; as many filters as numbers in d_model."""
    n = d_model // 8
    return {
        "vocab_size": vocab_size, "max_seq_len": max_seq_len, "d_model": d_model, "n_layers": max(2, n_layers // 3),
        "d_hidden": 2 * d_model, "filters": [[1, n], [2, n], [3, 2 * n], [4, 4 * n]], "n_highway": 1,
        "max_word_len": 16,
    }  # fmt: skip


# of the released model, whose words are open: spellings are no parameters, and the softmax of its training is left out
PRESETS: dict[str, dict[str, Any]] = {"elmo": dict(vocab_size=32000, d_model=1024, masked=False)}

KEYS = [
    Key(name, name)
    for name in (
        *[f"embedding.{part}" for part in ("spelling", "chars.weight", "proj.weight", "proj.bias")],
        *[f"embedding.{part}.{kind}" for part in ("filters.{i}", "highways.{i}.up") for kind in ("weight", "bias")],
        *[
            f"layers.{{i}}.{side}.{part}"
            for side in ("ahead", "back")
            for part in ("x.weight", "x.bias", "h.weight", "proj.weight")
        ],
        "head.weight",
    )
]

CONFIG = ConfigMap(
    model_type="elmo",
    architecture="",
    fields={name: name for name in ELMoConfig.__dataclass_fields__},
    derived=published.without_dropout("dropout"),
    parts={"masked": ("head.weight",)},
)
