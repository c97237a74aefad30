# SPDX-License-Identifier: Apache-2.0
"""Learning-rate schedules: from the number of a step to a factor in (0, 1]. This file imports no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Schedule:
    """Linear warm-up, then `cosine` down to `final`, or `wsd`: constant, with a linear decay over the last
    `decay_share` of the steps (Hu et al. 2024, MiniCPM, section 4)."""

    total_steps: int
    kind: Literal["cosine", "wsd"] = "wsd"
    warmup_steps: int = 0
    decay_share: float = 0.8
    final: float = 0.0

    def __call__(self, step: int) -> float:
        """`step` counts from 0; the first factor is already above zero."""
        warmup = min(1.0, (step + 1) / (self.warmup_steps + 1))
        steps_after_warmup = max(1, self.total_steps - self.warmup_steps)
        progress = min(1.0, max(0, step - self.warmup_steps + 0.5) / steps_after_warmup)
        if self.kind == "cosine":
            decay = 0.5 * (1 + math.cos(math.pi * progress))
        else:
            decay = min(1.0, (1 - progress) / self.decay_share)
        return warmup * (self.final + (1 - self.final) * decay)
