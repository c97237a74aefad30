# SPDX-License-Identifier: Apache-2.0
"""Energy: read from the processor's counter if there is one, otherwise estimated and marked as an estimate."""

from __future__ import annotations

from pathlib import Path
from typing import TypedDict

WATTS_PER_THREAD = 12.0
"""A busy core: the value of the Green Algorithms calculator (Lannelongue et al. 2021) for an unknown processor."""
WATTS_PER_GIB = 0.3725
"""Memory, from the same source."""
COUNTERS = Path("/sys/class/powercap")


class Joules(TypedDict):
    value: float
    source: str


def _counters() -> list[tuple[int, int]]:
    """(microjoules, maximum before it wraps) of each processor package; [] if the kernel provides none."""
    readings = []
    for zone in sorted(COUNTERS.glob("intel-rapl:?")) if COUNTERS.is_dir() else []:
        try:
            readings.append((int((zone / "energy_uj").read_text()), int((zone / "max_energy_range_uj").read_text())))
        except (OSError, ValueError):
            return []
    return readings


def estimate(seconds: float, threads: int, memory_bytes: int) -> Joules:
    watts = WATTS_PER_THREAD * threads + WATTS_PER_GIB * memory_bytes / 2**30
    return {
        "value": round(seconds * watts, 1),
        "source": f"estimate: {WATTS_PER_THREAD:g} W a thread, {WATTS_PER_GIB} W/GiB",
    }


class Meter:
    """Measures energy since its construction. The counter covers the whole package, including other processes."""

    def __init__(self) -> None:
        self.start = _counters()

    def counted(self) -> float:
        """Joules by the counter since then; 0 where there is none."""
        end = _counters()
        if not self.start or len(end) != len(self.start):
            return 0.0
        return sum((b - a) % wrap for (a, _), (b, wrap) in zip(self.start, end, strict=True)) / 1e6

    def read(self, seconds: float, threads: int, memory_bytes: int, before: float = 0.0) -> Joules:
        """`before`: joules that earlier processes of the same run counted."""
        used = self.counted()
        if not used:
            return estimate(seconds, threads, memory_bytes)
        return {"value": round(before + used, 1), "source": "counter: RAPL, whole processor package"}
