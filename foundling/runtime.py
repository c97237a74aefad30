# SPDX-License-Identifier: Apache-2.0
"""Where and how a run computes, as one value: device, precision, threads, ranks, compiler, seeds."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch

from foundling.errors import ConfigError

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


def keep_freed_memory() -> None:
    """Tells glibc's malloc not to give large blocks back: a step allocates the same ones again and again, and each time
    the kernel would have to clear every page (a tenth of a training step and more). Elsewhere it does nothing."""
    _mallopt({_MMAP_MAX: 0, _TRIM_THRESHOLD: 2**31 - 1, _TOP_PAD: 64 << 20})


def return_freed_memory() -> None:
    """The opposite, for where memory is short: glibc before 2.38 cannot use a freed aligned block for the next one of
    its size, so that what is kept can come to twice what is used (docs/diary.md)."""
    _mallopt({_MMAP_MAX: 65536, _MMAP_THRESHOLD: 1 << 20, _TRIM_THRESHOLD: 1 << 20, _TOP_PAD: 0})


def trim_memory() -> None:
    """Gives back what has been freed so far, whatever was told above; blocks that are used again come back clean."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (OSError, AttributeError, TypeError):
        return


_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -2, -3, -4  # malloc.h


def _mallopt(settings: dict[int, int]) -> None:
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return
    for name, value in settings.items():
        mallopt(name, value)


def is_first_rank() -> bool:
    """Whether this process is the one that writes."""
    return not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0


def barrier() -> None:
    if torch.distributed.is_initialized():
        torch.distributed.barrier()


def available_threads() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


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


def generator(*parts: Any) -> torch.Generator:
    """A CPU generator seeded by a hash of all parts: no two uses share a stream, and none depends on another."""
    digest = hashlib.sha256(repr(parts).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def machine() -> dict[str, Any]:
    """What bitwise reproduction depends on, and what a reader wants to know of the machine."""
    return {
        "torch": torch.__version__,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cpu": _cpu_name(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
    }


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def process_age() -> float:
    """Seconds since this process was started, its imports included; 0 where the kernel does not say."""
    try:
        with open("/proc/self/stat", encoding="ascii") as file:
            started = int(file.read().rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
        with open("/proc/uptime", encoding="ascii") as file:
            return max(0.0, float(file.read().split()[0]) - started)
    except (OSError, ValueError, IndexError):
        return 0.0
