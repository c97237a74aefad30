# SPDX-License-Identifier: Apache-2.0
"""How far two float32 computations of one quantity may be apart, from the arithmetic and not from a machine.

A rounding is off by at most 2^-24. In a sum of n products roundings add up like a random walk, to some √n of them
(Higham 2002, Accuracy and Stability of Numerical Algorithms, section 2.8), whatever the order, the width of the vectors
or the fusing of multiply and add. `depth` such sums in a row add up at worst. What is tested against the bound, a wrong
mask, position or row, is off by a hundred times as much or more.
"""

from __future__ import annotations

from math import sqrt
from typing import Any

from torch import Tensor

UNIT = 2.0**-24
"""the unit roundoff of float32"""


def bound(depth: int = 16, terms: int = 64) -> float:
    """Of the largest element. The defaults are those of a tiny model: two layers of some eight products, 64 wide."""
    return UNIT * sqrt(terms) * depth


def close(a: Tensor, b: Tensor, tolerance: float | None = None, what: Any = "") -> None:
    """max|a − b| ≤ tolerance · max|b|, by default `bound()`, 2^-17."""
    error, scale = float((a - b).detach().abs().max()), float(b.detach().abs().max())
    limit = (bound() if tolerance is None else tolerance) * scale
    assert error <= limit, f"{error:.2e} > {limit:.2e} at a scale of {scale:.2e} {what}"
