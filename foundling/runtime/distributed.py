# SPDX-License-Identifier: Apache-2.0
"""Several processes as one."""

from __future__ import annotations

import torch


def is_first_rank() -> bool:
    """Whether this process is the one that writes."""
    return not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0


def barrier() -> None:
    if torch.distributed.is_initialized():
        torch.distributed.barrier()


def rank_count() -> int:
    return torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
