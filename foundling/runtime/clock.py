# SPDX-License-Identifier: Apache-2.0
"""Time."""

from __future__ import annotations

import os


def process_age() -> float:
    """Seconds since this process was started, its imports included; 0 where the kernel does not say."""
    try:
        with open("/proc/self/stat", encoding="ascii") as file:
            started = int(file.read().rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
        with open("/proc/uptime", encoding="ascii") as file:
            return max(0.0, float(file.read().split()[0]) - started)
    except (OSError, ValueError, IndexError):
        return 0.0
