# SPDX-License-Identifier: Apache-2.0
"""The random numbers that modules draw while they train (dropout): seeded by where they are drawn, so that a run gives
the same bits whatever ran before it, however often it was resumed, and on however many ranks."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch

from foundling.runtime.rng import generator


def module_seed(seed: int, step: int, micro_batch: int) -> int:
    """`step` counts updates from 0, `micro_batch` over all ranks: rank r has r · n to r · n + n − 1."""
    return generator("module", seed, step, micro_batch).initial_seed()


def seed_modules(seed: int, device: str) -> None:
    """Seeds torch's global generators of the CPU and of `device`, and of no other device."""
    torch.default_generator.manual_seed(seed)
    if torch.device(device).type == "cuda":
        with torch.cuda.device(torch.device(device)):
            torch.cuda.manual_seed(seed)


def global_rng_kept(device: str) -> AbstractContextManager[None]:
    """Gives the caller's global generators back as they were."""
    on_cuda = torch.device(device).type == "cuda"
    index = torch.device(device).index
    return torch.random.fork_rng([torch.cuda.current_device() if index is None else index] if on_cuda else [])
