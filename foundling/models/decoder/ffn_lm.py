# SPDX-License-Identifier: Apache-2.0
"""Neural probabilistic language model (Bengio et al. 2003): a feed-forward network on the last few words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from foundling.blocks.context import Context
from foundling.blocks.conv import Window
from foundling.blocks.init import EMBEDDING_GAIN
from foundling.blocks.stack import Decoder
from foundling.contracts.cache import Slot
from foundling.contracts.checkpoint_map import ConfigMap, Key


@dataclass(frozen=True)
class FFNLMConfig:
    vocab_size: int
    d_embed: int
    """the features of a word (m in the paper)"""
    d_model: int
    """hidden units (h)"""
    context_size: int
    """how many words it reads (n − 1)"""
    n_layers: int = 1
    """hidden layers; the paper has one"""
    max_seq_len: int = 1 << 20
    tie_embeddings = False  # no field: features and hidden units differ in width


class Hidden(nn.Module):
    """tanh(d + H x), x the embeddings of a word and of those before it in its document, zero before its first (equation
    1, without the direct connections W, which the paper leaves out in some models)."""

    def __init__(self, d_embed: int, context_size: int, d_model: int) -> None:
        super().__init__()
        self.window, self.up = Window(d_embed, context_size), nn.Linear(context_size * d_embed, d_model)

    def slots(self) -> list[tuple[Slot, ...]]:
        return [self.window.slots()]

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        """x (B, T, m) -> (B, T, D)"""
        return torch.tanh(self.up(self.window(x, ctx)))


class Deeper(nn.Module):
    """x + tanh(d + H x): one more hidden layer."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.up = nn.Linear(d_model, d_model)

    def slots(self) -> list[tuple[Slot, ...]]:
        return []

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        """x (B, T, D) -> (B, T, D)"""
        return x + torch.tanh(self.up(x))


class FFNLM(Decoder):
    def __init__(self, config: FFNLMConfig) -> None:
        c = config
        layers = [Hidden(c.d_embed, c.context_size, c.d_model), *(Deeper(c.d_model) for _ in range(c.n_layers - 1))]
        super().__init__(c, layers, nn.Identity(), d_embed=c.d_embed)
        self.embedding.start_gain = EMBEDDING_GAIN  # pyright: ignore[reportAttributeAccessIssue, reportArgumentType]


def sized(vocab_size: int, max_seq_len: int, d_model: int, n_layers: int) -> dict[str, Any]:
    """Eight words, each of a quarter of the hidden units; one hidden layer more than the paper's for every four."""
    return {
        "vocab_size": vocab_size, "max_seq_len": max_seq_len, "d_model": d_model, "n_layers": n_layers,
        "d_embed": d_model // 4, "context_size": 8,
    }  # fmt: skip


# the paper states perplexities of its models, and no number of parameters
PRESETS: dict[str, dict[str, Any]] = {}

KEYS = [Key(name, name) for name in ("embedding.weight", "layers.{i}.up.weight", "layers.{i}.up.bias", "head.weight")]

CONFIG = ConfigMap(
    model_type="ffn_lm",
    architecture="",
    fields={name: name for name in FFNLMConfig.__dataclass_fields__},
)
