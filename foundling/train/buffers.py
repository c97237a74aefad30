# SPDX-License-Identifier: Apache-2.0
"""Buffers that a forward pass changes (BatchNorm statistics, codebooks): kept right where a layer is computed twice,
where a step is skipped, and over ranks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn

from foundling.runtime.device import Runtime


def changing_buffers(module: nn.Module) -> dict[str, Tensor]:
    """Name -> buffer, of those that a forward pass may change: all but those of modules whose class has
    `constant_buffers`, such as quantised weights."""
    constant = {
        id(b) for m in module.modules() if getattr(m, "constant_buffers", False) for b in m.buffers(recurse=False)
    }
    return {name: b for name, b in module.named_buffers() if id(b) not in constant}


@contextmanager
def buffers_replaced(module: nn.Module, values: dict[str, Tensor] | None = None) -> Iterator[None]:
    """Inside the `with` block the module computes with copies of `values` (by default its own) for its buffers; what it
    changes in them is dropped at the end."""
    values = changing_buffers(module) if values is None else values
    owners = [(module.get_submodule(name.rpartition(".")[0]), name) for name in values]
    saved = [owner._buffers[name.rpartition(".")[2]] for owner, name in owners]
    for owner, name in owners:
        owner._buffers[name.rpartition(".")[2]] = values[name].clone()
    try:
        yield
    finally:
        for (owner, name), buffer in zip(owners, saved, strict=True):
            owner._buffers[name.rpartition(".")[2]] = buffer


def copies(module: nn.Module) -> dict[str, Tensor]:
    return {name: b.detach().clone() for name, b in changing_buffers(module).items()}


@torch.no_grad()
def restore_where(condition: Tensor, module: nn.Module, before: dict[str, Tensor]) -> None:
    """Buffers become what they were `before` where `condition` (a 0-dim bool) holds; nothing waits for the device."""
    for name, buffer in (changing_buffers(module) if before else {}).items():
        buffer.copy_(torch.where(condition, before[name], buffer))


def broadcast_buffers(module: nn.Module, runtime: Runtime) -> None:
    """Every rank takes the first one's buffers, as DistributedDataParallel does."""
    if runtime.world_size > 1:
        for buffer in changing_buffers(module).values():
            dist.broadcast(buffer, src=0)
