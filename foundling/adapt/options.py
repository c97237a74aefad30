# SPDX-License-Identifier: Apache-2.0
"""How a model is adapted, as settings. This file imports no torch, so that `--help` stays fast."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from foundling.errors import ConfigError

RANK, ALPHA = 16, 32.0
"""of LoRA, where nothing else is said"""
Method = Literal["full", "lora", "qlora", "prompt", "prefix", "bias", "top-k", "head"]
DEFAULT_METHOD: Method = "lora"
"""of finetuning; all other training is of all weights"""


@dataclass(frozen=True)
class AdaptOptions:
    """ConfigError for a value out of range."""

    method: Method = "full"
    """full: all weights; lora: low-rank updates of projections; qlora: the same on a 4-bit base; prompt: embeddings of
    virtual tokens before each text; prefix: keys and values before each text, in every layer; bias: biases and norms;
    top-k: the last layers and the head; head: the head alone"""
    pattern: str | None = None
    """lora, qlora: names of the projections, such as 'layers.*.mixer.[qv]' (default: all in the layers)"""
    rank: int = RANK
    """lora, qlora: rank of the updates"""
    alpha: float = ALPHA
    """lora, qlora: the updates are scaled by alpha / rank"""
    n_virtual: int = 16
    """prompt, prefix: number of virtual tokens"""
    top_layers: int = 2
    """top-k: number of layers that are trained"""
    pool: Literal["first", "last", "mean", "concat", "published"] | None = None
    """of a new head on texts: the states that it reads by one projection, or the head of the family's published
    classifiers (default: the mean; the last on a decoder that is trained with it)"""
    probe: bool | None = None
    """whether a new head begins as a linear probe on the features of all examples, which with the method head is all
    there is to do (default: if it is one projection, and the features fit into memory)"""
    merged: bool = False
    """lora, qlora: write a whole model, the adapter merged into its base, instead of the adapter alone"""

    @property
    def added_tokens(self) -> int:
        """how many stand before each text in a row"""
        return self.n_virtual if self.method == "prompt" else 0

    def __post_init__(self) -> None:
        for name in ("rank", "n_virtual", "top_layers"):
            if getattr(self, name) < 1:
                raise ConfigError(f"'{name}' is {getattr(self, name)}, expected at least 1")
        if not 0 < self.alpha < math.inf:
            raise ConfigError(f"'alpha' is {self.alpha}, expected a positive number")
