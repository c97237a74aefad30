# SPDX-License-Identifier: Apache-2.0
"""Energy: read from the processor's counter where there is one, else estimated and marked so."""

from __future__ import annotations

from pathlib import Path
from typing import TypedDict

WATTS_PER_THREAD = 12.0
"""A processor core at work; what the Green Algorithms calculator (Lannelongue et al. 2021) takes for an unknown one."""
WATTS_PER_GIB = 0.3725
"""Memory; same source."""
COUNTERS = Path("/sys/class/powercap")


class Joules(TypedDict):
    value: float
    source: str


def _counters() -> list[tuple[int, int]]:
    """(microjoules, where it wraps) of each processor package; [] where the kernel shows none."""
    found = []
    for zone in sorted(COUNTERS.glob("intel-rapl:?")) if COUNTERS.is_dir() else []:
        try:
            found.append((int((zone / "energy_uj").read_text()), int((zone / "max_energy_range_uj").read_text())))
        except (OSError, ValueError):
            return []
    return found


def estimate(seconds: float, threads: int, memory_bytes: int) -> Joules:
    watts = WATTS_PER_THREAD * threads + WATTS_PER_GIB * memory_bytes / 2**30
    return {
        "value": round(seconds * watts, 1),
        "source": f"estimate: {WATTS_PER_THREAD:g} W a thread, {WATTS_PER_GIB} W/GiB",
    }


class Meter:
    """Counts from its making. The counter covers the whole package, whoever else uses it."""

    def __init__(self) -> None:
        self.begin = _counters()

    def read(self, seconds: float, threads: int, memory_bytes: int) -> Joules:
        end = _counters()
        if not self.begin or len(end) != len(self.begin):
            return estimate(seconds, threads, memory_bytes)
        used = sum((b - a) % wrap for (a, _), (b, wrap) in zip(self.begin, end, strict=True))
        return {"value": round(used / 1e6, 1), "source": "counter: RAPL, whole processor package"}
