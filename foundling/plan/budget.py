# SPDX-License-Identifier: Apache-2.0
"""The budget of a run: seconds, FLOPs or tokens."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from foundling.errors import BudgetError

Unit = Literal["seconds", "flops", "tokens"]
LARGEST: dict[str, float] = {"seconds": 100 * 365.25 * 86400, "flops": 1e30, "tokens": 1e15}
"""A century, and a thousand times what the largest runs took; far below the numbers that a float cannot tell apart."""


@dataclass(frozen=True)
class Budget:
    """Raises BudgetError unless the value is positive and at most LARGEST."""

    unit: Unit = "seconds"
    value: float = 180.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.value) and self.value > 0):
            raise BudgetError(f"{self}: expected a positive number, such as {self.option} 3")
        if self.value > LARGEST[self.unit]:
            raise BudgetError(
                f"{self}: more than anybody has; give a budget below {Budget(self.unit, LARGEST[self.unit])}"
            )

    @property
    def option(self) -> str:
        """The command-line flag of the unit."""
        return {"seconds": "--minutes"}.get(self.unit, f"--{self.unit}")

    def __str__(self) -> str:
        """As on the command line."""
        return f"{self.option} {self.value / 60 if self.unit == 'seconds' else self.value:g}"
