# SPDX-License-Identifier: Apache-2.0
"""The budget of a run: seconds, FLOPs or tokens."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from foundling.errors import BudgetError

Unit = Literal["seconds", "flops", "tokens"]


@dataclass(frozen=True)
class Budget:
    """Raises BudgetError unless the value is positive and finite."""

    unit: Unit = "seconds"
    value: float = 180.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.value) and self.value > 0):
            raise BudgetError(f"{self}: expected a positive number, such as {self.option} 3")

    @property
    def option(self) -> str:
        """The command-line flag of the unit."""
        return {"seconds": "--minutes"}.get(self.unit, f"--{self.unit}")

    def __str__(self) -> str:
        """As on the command line."""
        return f"{self.option} {self.value / 60 if self.unit == 'seconds' else self.value:g}"
