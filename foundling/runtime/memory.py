# SPDX-License-Identifier: Apache-2.0
"""What this process does with memory that it has freed, and how much it and its children hold."""

from __future__ import annotations

import ctypes
import os
import threading
from pathlib import Path


def keep_freed_memory() -> None:
    """Tells glibc's malloc not to give large blocks back: a step allocates the same ones again and again, and each time
    the kernel would have to clear every page (a tenth of a training step and more). Elsewhere it does nothing."""
    _mallopt({_MMAP_MAX: 0, _TRIM_THRESHOLD: 2**31 - 1, _TOP_PAD: 64 << 20})


def return_freed_memory() -> None:
    """The opposite, for where memory is short: glibc before 2.38 cannot use a freed aligned block for the next one of
    its size, so that what is kept can come to twice what is used (docs/benchmarks.md)."""
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


def anonymous_bytes(pid: int) -> int:
    """RssAnon of one process in bytes (what it allocated, not the files it maps); 0 if it is gone or unknown."""
    try:
        with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as lines:
            for line in lines:
                if line.startswith("RssAnon:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0


def tree(pid: int) -> list[int]:
    """The process and its descendants."""
    found = [pid]
    for parent in found:
        try:
            for task in Path(f"/proc/{parent}/task").iterdir():
                found += [int(child) for child in (task / "children").read_text().split()]
        except OSError:
            continue
    return found


def tree_bytes(pid: int) -> int:
    """RssAnon summed over the process tree; where /proc is missing, this process's peak resident size."""
    if not Path("/proc/self/status").exists():
        import resource
        import sys

        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return sum(anonymous_bytes(p) for p in tree(pid))


def free_memory() -> int:
    """Bytes that can be taken without swapping, within the control group's limit."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration, ValueError):
        free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 8 << 30
    try:
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii"))
    except (OSError, ValueError):
        limit = free
    return min(free, limit)


class PeakMemory:
    """Samples the tree's memory in the background; `peak` is the most that was seen."""

    def __init__(self, every: float = 0.2) -> None:
        self.peak = tree_bytes(os.getpid())
        self.every, self.done = every, threading.Event()
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while not self.done.wait(self.every):
            self.sample()

    def sample(self) -> int:
        now = tree_bytes(os.getpid())
        self.peak = max(self.peak, now)
        return now
