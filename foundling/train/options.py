# SPDX-License-Identifier: Apache-2.0
"""The settings of training as frozen dataclasses. This file imports no torch, so that `--help` stays fast."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from foundling.errors import ConfigError


@dataclass(frozen=True)
class OptimOptions:
    """Settings of the optimiser. Learning rates are stated at blocks/init.BASE_WIDTH and transferred to the model's own
    width (blocks/init.adam_scale). ConfigError for a value out of range."""

    optimizer: Literal["muon", "adamw"] = "muon"
    """muon: Muon for hidden matrices and AdamW for the rest; adamw: AdamW for everything"""
    learning_rate: float = 0.02
    """of AdamW: embeddings, head, gains, biases; of all parameters when it is the only optimiser"""
    matrix_learning_rate: float = 0.02
    """of Muon: the size of a step in the spectral norm, before the factor for the shape"""
    betas: tuple[float, float] = (0.9, 0.95)
    """of AdamW: decay of its two moments"""
    momentum: float = 0.95
    """of Muon"""
    weight_decay: float = 0.01
    """of matrices, decoupled: a share of the learning rate is taken off the weights at each step"""
    layer_decay: float = 1.0
    """each layer's learning rates are those of the layer above it times this; 1 / 2.6 in Howard & Ruder 2018"""

    def __post_init__(self) -> None:
        if self.optimizer not in ("muon", "adamw"):
            raise ConfigError(f"'optimizer' is {self.optimizer!r}; use 'muon' or 'adamw'")
        for name in ("learning_rate", "matrix_learning_rate"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"'{name}' is {getattr(self, name)}, expected a positive number")
        if not all(0 <= beta < 1 for beta in self.betas) or not 0 <= self.momentum < 1:
            raise ConfigError(f"'betas' {self.betas} and 'momentum' {self.momentum} are expected from 0 to below 1")
        if not 0 <= self.weight_decay < math.inf:
            raise ConfigError(f"'weight_decay' is {self.weight_decay}, expected 0 or more")
        if not 0 < self.layer_decay <= 1:
            raise ConfigError(f"'layer_decay' is {self.layer_decay}, expected above 0, at most 1")


@dataclass(frozen=True)
class TrainOptions:
    """Settings of a training step. ConfigError for a value out of range."""

    micro_batch_size: int
    """rows of this rank's part that go through the model at once; it changes memory, not the result"""
    clip: float = 1.0
    """the largest norm of the gradient over all parameters; a larger one is scaled down to it"""
    activation_checkpointing: bool = False
    """recompute each layer in the backward pass instead of keeping its activations; it changes memory and time, not
    the result"""
    max_skipped: int = 20
    """non-finite steps in a run before it stops with DivergedError"""
    seed: int = 0
    """of the random numbers that modules draw while they train (dropout)"""
    ema_decay: float | None = None
    """keep an exponential moving average of the trained parameters with this decay a step; None keeps none"""
    unfreeze_every: int | None = None
    """train the head alone at first, and one more layer, from the top, after each so many steps; None trains all"""

    def __post_init__(self) -> None:
        if self.micro_batch_size < 1:
            raise ConfigError(f"'micro_batch_size' is {self.micro_batch_size}, expected at least 1")
        if not self.clip > 0:
            raise ConfigError(f"'clip' is {self.clip}, expected a positive number")
        if self.max_skipped < 0:
            raise ConfigError(f"'max_skipped' is {self.max_skipped}, expected 0 or more")
        if self.ema_decay is not None:
            check_decay(self.ema_decay)
        if self.unfreeze_every is not None and self.unfreeze_every < 1:
            raise ConfigError(f"'unfreeze_every' is {self.unfreeze_every}, expected at least 1 step")


def check_decay(decay: float) -> None:
    if not 0 < decay < 1:
        raise ConfigError(f"'ema_decay' is {decay}, expected a number between 0 and 1, such as 0.999")
