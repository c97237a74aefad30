# SPDX-License-Identifier: Apache-2.0
"""Several processes as one: wrapping the step, and sums over ranks."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from foundling.runtime import Runtime
from foundling.train.step import Step


def wrap(step: Step, runtime: Runtime) -> Any:
    """The step itself, or DDP around it; the caller has started the process group (torchrun, or init_process_group)."""
    return DistributedDataParallel(step) if runtime.world_size > 1 else step


def sum_over_ranks(values: Tensor, runtime: Runtime) -> Tensor:
    """In place; float64 for exact counts."""
    if runtime.world_size > 1:
        dist.all_reduce(values)
    return values


def sum_counts(counts: dict[str, int], runtime: Runtime) -> dict[str, int]:
    if runtime.world_size == 1 or not counts:
        return counts
    names = sorted(counts)
    values = torch.tensor([counts[n] for n in names], dtype=torch.float64, device=runtime.device)
    return {n: int(v) for n, v in zip(names, sum_over_ranks(values, runtime).tolist(), strict=True)}
