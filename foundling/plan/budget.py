# SPDX-License-Identifier: Apache-2.0
"""The budget of a run: seconds, FLOPs or tokens; of finetuning, seconds or epochs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from foundling.errors import BudgetError
from foundling.limits import shown

Unit = Literal["seconds", "flops", "tokens", "epochs"]
LARGEST: dict[str, float] = {"seconds": 100 * 365.25 * 86400, "flops": 1e30, "tokens": 1e15, "epochs": 1e4}
"""A century, and a thousand times what the largest runs took; far below the numbers that a float cannot tell apart."""


@dataclass(frozen=True)
class Budget:
    """Raises BudgetError unless the value is positive and at most LARGEST."""

    unit: Unit = "seconds"
    value: float = 180.0

    def __post_init__(self) -> None:
        if self.unit not in get_args(Unit):
            raise BudgetError(f"the unit of a budget is {shown(self.unit)}; use {', '.join(get_args(Unit))}")
        if isinstance(self.value, bool) or not isinstance(self.value, int | float):
            raise BudgetError(f"{self.option} {shown(self.value)}: expected a positive number")
        if not 0 < self.value <= LARGEST[self.unit]:
            given = str(self) if isinstance(self.value, float) else f"{self.option} {shown(self.value)}"
            largest = Budget(self.unit, LARGEST[self.unit])
            raise BudgetError(f"{given}: expected a positive number of at most {largest}, such as {self.option} 3")

    @property
    def option(self) -> str:
        """The command-line flag of the unit."""
        return {"seconds": "--minutes"}.get(self.unit, f"--{self.unit}")

    def __str__(self) -> str:
        """As on the command line."""
        return f"{self.option} {self.value / 60 if self.unit == 'seconds' else self.value:g}"
