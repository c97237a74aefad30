# SPDX-License-Identifier: Apache-2.0
"""Several processes as one: the wrapped step, sums over ranks, and tensors of which each rank has a part."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset
from torch.nn.parallel import DistributedDataParallel

from foundling.contracts.model import layers_of
from foundling.runtime.device import Runtime
from foundling.train.step import Step


def wrap(step: Step, runtime: Runtime) -> Any:
    """The step itself, DDP around it, or FSDP2 inside it (layers one by one; embedding, final norm and head in the
    root group). The caller has started the process group (torchrun, or init_process_group)."""
    if runtime.world_size == 1:
        return step
    if not runtime.shard:
        return DistributedDataParallel(step, broadcast_buffers=False)  # once an update is enough: train/buffers
    mesh = init_device_mesh(torch.device(runtime.device).type, (runtime.world_size,))
    for layer in layers_of(step.model):
        fully_shard(layer, mesh=mesh)
    return fully_shard(step, mesh=mesh)


def sync_gradients(step: Any, on: bool) -> None:
    """Whether the backward passes that follow reduce over ranks: only the last one of a step has to."""
    if isinstance(step, FSDPModule):
        step.set_requires_gradient_sync(on)
    elif isinstance(step, DistributedDataParallel):
        step.require_backward_grad_sync = on


def sum_over_ranks(values: Tensor, runtime: Runtime) -> Tensor:
    """In place."""
    if runtime.world_size > 1:
        dist.all_reduce(values)
    return values


def sum_counts(counts: dict[str, int], runtime: Runtime) -> dict[str, int]:
    """Summed over ranks: on the CPU where the process group can, as one that init_process_group makes without a
    `backend` does, so that nothing waits for the device."""
    if runtime.world_size == 1 or not counts:
        return counts
    names = sorted(counts)
    device = "cpu" if "cpu" in dist.get_backend_config() else runtime.device
    values = torch.tensor([counts[n] for n in names], dtype=torch.float64, device=device)  # exact up to 2⁵³
    return {n: int(v) for n, v in zip(names, sum_over_ranks(values, runtime).tolist(), strict=True)}


def gather_rows(rows: Tensor, runtime: Runtime) -> Tensor:
    """(B, …) of every rank -> (world_size · B, …), in the order of ranks."""
    if runtime.world_size == 1:
        return rows
    parts = [torch.empty_like(rows) for _ in range(runtime.world_size)]
    dist.all_gather(parts, rows.contiguous())
    return torch.cat(parts)


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a tensor, sharing its memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def part_of(full: Tensor, like: Tensor) -> Tensor:
    """This rank's part of `full`, which every rank has, if `like` is sharded; else all of it."""
    if not isinstance(like, DTensor):
        return full
    shape, offset = compute_local_shape_and_global_offset(full.shape, like.device_mesh, like.placements)
    for dim, (start, size) in enumerate(zip(offset, shape, strict=True)):
        full = full.narrow(dim, min(start, full.shape[dim]), size)
    return full


def gathered(part: Tensor, like: Tensor) -> Tensor:
    """The whole tensor of which each rank has a `part`, sharded like `like`; a collective."""
    if not isinstance(like, DTensor):
        return part
    whole = DTensor.from_local(
        part, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
    )
    return whole.full_tensor()


def total_norm(gradients: list[Tensor], runtime: Runtime) -> Tensor:
    """√Σ g² over all parameters and, where they are sharded, all ranks. Each row's norm is taken first (no rank has
    half a row), then the sum over rows in float64. So the last bit does not depend on the number of ranks; a clipped
    Adam step would turn it into a visible difference."""
    rows = [torch.linalg.vector_norm(g.flatten(1), dim=1) if g.ndim > 1 else g for g in map(local, gradients)]
    squares = torch.cat([r.flatten() for r in rows]).double().square().sum()
    if any(isinstance(g, DTensor) for g in gradients):
        squares = sum_over_ranks(squares, runtime)
    return squares.sqrt().float()
