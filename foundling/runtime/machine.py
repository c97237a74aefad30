# SPDX-License-Identifier: Apache-2.0
"""What this machine is, as far as results depend on it."""

from __future__ import annotations

import platform
from typing import Any

import torch

from foundling.runtime.release import release


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


def versions() -> str:
    """Of what computes: this library and torch."""
    return f"foundling {release()}, torch {torch.__version__}"


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
