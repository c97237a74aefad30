# SPDX-License-Identifier: Apache-2.0
"""Models that take noise out of a sample."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True)
class Condition:
    """What a denoiser is told besides the noisy sample. Without classes, or where `keep` (B,) bool is False, it is
    told nothing: the null condition of classifier-free guidance."""

    classes: Tensor | None = None
    """(B,) int64; the model embeds them"""
    keep: Tensor | None = None


class Denoiser(Protocol):
    """x (B, C, H, W) at noise level t (B,), as the schedule states it -> a prediction like x."""

    def __call__(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor: ...
