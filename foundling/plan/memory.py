# SPDX-License-Identifier: Apache-2.0
"""Memory of a process tree, as the kernel counts it."""

from __future__ import annotations

import os
import threading
from pathlib import Path


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
