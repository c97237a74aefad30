# SPDX-License-Identifier: Apache-2.0
"""What training changes, as one value: saving and resuming handle all of it and nothing besides."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from foundling.train.ema import EMA
from foundling.train.optim import Optimizer
from foundling.train.options import OptimOptions

MODEL = "model"
"""The name of the only model of a run that has one."""


@dataclass
class TrainState:
    """Models and their optimisers by name; an optimiser trains the model of the same name, and a model without one is
    saved but not trained. Random numbers are drawn from (seed, step or sample), so there is no generator to keep."""

    models: dict[str, Any]
    optimizers: dict[str, Optimizer]
    buffers: dict[str, Tensor] = field(default_factory=dict)
    """what a recipe keeps besides the models, such as the running mean of a reward; changed in place"""
    ema: dict[str, EMA] = field(default_factory=dict)
    step: int = 0
    """updates done, of all models"""
    skipped: int = 0
    """updates that were not finite and changed nothing. The last update is not counted until the next one or
    `settle()`, so that no step waits for the device."""
    unread: Tensor | None = field(default=None, repr=False)
    """() bool on the device: whether the last update was not finite"""
    frozen: dict[str, str] = field(default_factory=dict, repr=False)
    """SHA-256 of what is frozen in each model: not saved in a checkpoint, which is bound to it"""
    steps: dict[str, Any] = field(default_factory=dict, repr=False)
    """name -> the Step around a model as it is first trained here (sharding cannot be done twice), and how its layers
    are computed. Not saved."""

    @classmethod
    def build(cls, model: nn.Module, options: OptimOptions, *, ema_decay: float | None = None) -> TrainState:
        """The state of a run that trains one model, called "model"."""
        ema = {} if ema_decay is None else {MODEL: EMA(model, ema_decay)}
        return cls({MODEL: model}, {MODEL: Optimizer(model, options)}, ema=ema)

    @property
    def model(self) -> Any:
        """The model called "model"."""
        return self.models[MODEL]

    @property
    def optimizer(self) -> Optimizer:
        """The optimiser of the model called "model"."""
        return self.optimizers[MODEL]

    def settle(self, last: Tensor | None = None) -> None:
        """Counts the update before, which waits for it, and remembers `last` to be counted the next time."""
        previous, self.unread = self.unread, last
        if previous is not None and previous.item():
            self.skipped += 1
