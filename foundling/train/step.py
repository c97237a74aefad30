# SPDX-License-Identifier: Apache-2.0
"""Model and objective as one module: the only forward that DDP, FSDP and autocast have to see."""

from __future__ import annotations

from typing import Any

from torch import nn

from foundling.contracts import Batch, Loss, Objective
from foundling.runtime import Runtime


class Step(nn.Module):
    def __init__(self, model: Any, objective: Objective, runtime: Runtime) -> None:
        super().__init__()
        self.model, self.objective, self.runtime = model, objective, runtime

    def forward(self, batch: Batch) -> Loss:
        with self.runtime.autocast():
            return self.objective(self.model, batch)


def compile_layers(model: Any) -> None:
    """Compiles each layer apart (they share one compilation); embedding and head stay outside, whose backward would
    otherwise add atomically and so differ from run to run."""
    for layer in model.layers:
        if layer._compiled_call_impl is None:
            layer.compile(dynamic=False)


def is_compiled(model: Any) -> bool:
    return all(layer._compiled_call_impl is not None for layer in model.layers)
