# SPDX-License-Identifier: Apache-2.0
"""Model and objective as one module: the only forward that DDP, FSDP and autocast have to see."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from foundling.contracts.data import Batch
from foundling.contracts.model import layers_of
from foundling.contracts.objective import ContrastiveObjective, Loss, Objective
from foundling.errors import ConfigError
from foundling.runtime.caches import private_compiler_cache
from foundling.runtime.device import Runtime
from foundling.train.buffers import buffers_replaced, changing_buffers, copies


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
            representations = self.objective.represent(self.model, batch)
        if cotangent is None:
            return representations
        return torch.stack([(representations[name].float() * c).sum() for name, c in cotangent.items()]).sum()


def compile_layers(model: Any) -> None:
    """Compiles each layer apart (alike ones share one compilation); embedding and head stay outside, whose backward
    would otherwise add atomically and so differ from run to run."""
    private_compiler_cache()
    for layer in layers_of(model):
        if layer._compiled_call_impl is None:
            layer.compile(dynamic=False)


def checkpoint_layers(model: Any, *, compiled: bool = False) -> None:
    """Activation checkpointing (Chen et al. 2016): keeps only the input of each layer and recomputes the rest in the
    backward pass. The bits are the same for a third more time: the recomputation draws the same random numbers, starts
    from the same buffers, and what it changes in them is dropped.

    ConfigError for a layer with buffers in a model that will be compiled.
    """
    for layer in layers_of(model):
        if isinstance(layer.forward, partial):
            continue
        settings: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": True}
        if changing_buffers(layer):
            if compiled:
                raise ConfigError(
                    f"{type(layer).__name__} has buffers, so it cannot be both compiled and recomputed; "
                    "turn off compile or activation_checkpointing"
                )
            settings["context_fn"] = partial(_recomputation, layer)
        layer.forward = partial(checkpoint, layer.forward, **settings)  # pyright: ignore


def _recomputation(layer: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """The contexts of a layer's forward pass and of its recomputation."""
    before = copies(layer)
    return nullcontext(), buffers_replaced(layer, before)


def is_compiled(model: Any) -> bool:
    return all(layer._compiled_call_impl is not None for layer in layers_of(model))
