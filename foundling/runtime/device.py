# SPDX-License-Identifier: Apache-2.0
"""Where and how a run computes, as one value: device, precision, threads, ranks, compiler."""

from __future__ import annotations

import os
import shutil
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch

from foundling.errors import ConfigError
from foundling.limits import THREADS
from foundling.runtime.memory import keep_freed_memory

Precision = Literal["float32", "bfloat16"]


@dataclass(frozen=True)
class Runtime:
    """`threads` 0 keeps torch's own number. Parameters are float32 always; `precision` is what autocast computes in."""

    device: str = "cpu"
    precision: Precision = "float32"
    threads: int = 0
    rank: int = 0
    world_size: int = 1
    shard: bool = False
    """parameters, gradients and optimiser are split over the ranks (FSDP2) instead of copied to each (DDP)"""
    compile: bool = False

    def __post_init__(self) -> None:
        THREADS._replace(low=0).check(self.threads, "threads")

    def autocast(self) -> AbstractContextManager[Any]:
        if self.precision == "float32":
            return nullcontext()
        return torch.autocast(torch.device(self.device).type, dtype=torch.bfloat16)

    def setup(self) -> None:
        """Applies what is global in the process: the number of threads, and that freed memory is kept for reuse."""
        if self.threads > 0:
            torch.set_num_threads(self.threads)
        if self.device == "cpu":
            keep_freed_memory()


def available_threads() -> int:
    """OMP_NUM_THREADS where it is set, as torch itself does, else the CPUs that it may use; within THREADS."""
    asked = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    if asked.isdecimal() and int(asked):
        return min(int(asked), THREADS.high)
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cpus, THREADS.high)


def default_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def resolve_device(name: str) -> str:
    """'auto' or a device torch has here; raises ConfigError otherwise."""
    if name == "auto":
        return default_device()
    if name == "cpu" or (name == "cuda" and torch.cuda.is_available()):
        return name
    raise ConfigError(
        f"device '{name}' is not available here; use cpu" + (" or cuda" if default_device() != "cpu" else "")
    )


def compiler_missing(device: str = "cpu") -> str | None:
    """Why torch.compile cannot work here, or None. On a CPU inductor needs a C++ compiler and Python's headers."""
    if device != "cpu":
        return None
    import sysconfig

    if not (os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")):
        return "no C++ compiler (g++) found"
    if not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")):
        return "Python's headers (Python.h) are not installed"
    return None
