# SPDX-License-Identifier: Apache-2.0
"""Exponential moving average of parameters (Polyak & Juditsky 1992; Ho et al. 2020 use 0.9999 for samples)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from foundling.errors import WeightsError
from foundling.train.options import check_decay
from foundling.train.parallel import gathered, local, part_of


class EMA:
    """average ← decay · average + (1 − decay) · parameter after each step, for every trainable parameter. It starts at
    the parameters as they are. Buffers are not averaged."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        """ConfigError for a decay that is not between 0 and 1."""
        check_decay(decay)
        self.decay = decay
        self.params: dict[str, nn.Parameter] = {}
        self.averages: dict[str, Tensor] = {}
        self.bind(model)

    def bind(self, model: nn.Module) -> None:
        """Follows the model's parameters as they are now (sharding replaces them); averages are kept by name."""
        averages = self.state_tensors()
        self.params = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.averages = {name: local(p.detach()).clone() for name, p in self.params.items()}
        if averages:
            self.load_state_tensors(averages)

    @torch.no_grad()
    def update(self, skipped: Tensor) -> None:
        """One step of the recurrence, or none where `skipped`, () bool on the parameters' device, is true."""
        params = [local(p) for p in self.params.values()]
        weight = torch.where(skipped, 0.0, 1 - self.decay)
        torch._foreach_lerp_(list(self.averages.values()), params, [weight] * len(params))

    def state_tensors(self) -> dict[str, Tensor]:
        """Parameter name -> whole average; a collective where parameters are sharded."""
        return {name: gathered(average, self.params[name]) for name, average in self.averages.items()}

    def load_state_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Takes whole averages by parameter name; WeightsError unless they are those of the trainable parameters."""
        if differing := sorted(tensors.keys() ^ self.averages.keys()):
            raise WeightsError(f"the EMA is not of this model's trainable parameters: '{differing[0]}' is in one only")
        for name, average in self.averages.items():
            average.copy_(part_of(tensors[name], self.params[name]))
