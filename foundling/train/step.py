# SPDX-License-Identifier: Apache-2.0
"""Model and objective as one module: the only forward that DDP, FSDP and autocast have to see."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from foundling.contracts.data import Batch
from foundling.contracts.model import layers_of
from foundling.contracts.objective import ContrastiveObjective, Loss, Objective
from foundling.runtime.device import Runtime


class Step(nn.Module):
    def __init__(self, model: Any, objective: Objective | ContrastiveObjective, runtime: Runtime) -> None:
        super().__init__()
        self.model, self.objective, self.runtime = model, objective, runtime

    def forward(self, batch: Batch, cotangent: dict[str, Tensor] | None = None) -> Loss | dict[str, Tensor] | Tensor:
        """The loss of a micro-batch. For a ContrastiveObjective: its representations or, where the gradient of the loss
        with respect to them is given, Σ representation · cotangent (), whose gradient with respect to the parameters is
        the loss's (Gao et al. 2021)."""
        with self.runtime.autocast():
            if not isinstance(self.objective, ContrastiveObjective):
                return self.objective(self.model, batch)
            found = self.objective.represent(self.model, batch)
        if cotangent is None:
            return found
        return torch.stack([(found[name].float() * c).sum() for name, c in cotangent.items()]).sum()


def compile_layers(model: Any) -> None:
    """Compiles each layer apart (alike ones share one compilation); embedding and head stay outside, whose backward
    would otherwise add atomically and so differ from run to run."""
    for layer in layers_of(model):
        if layer._compiled_call_impl is None:
            layer.compile(dynamic=False)


def checkpoint_layers(model: Any) -> None:
    """Keeps of each layer what enters it alone, and computes the rest again in the backward pass (Chen et al. 2016):
    the same bits for a third more time."""
    for layer in layers_of(model):
        if not isinstance(layer.forward, partial):
            layer.forward = partial(checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False)  # pyright: ignore


def is_compiled(model: Any) -> bool:
    return all(layer._compiled_call_impl is not None for layer in layers_of(model))
