# SPDX-License-Identifier: Apache-2.0
"""Models that remove noise from a sample."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor


@dataclass(frozen=True)
class Condition:
    """What a denoiser is conditioned on besides the noisy sample. A denoiser refuses by name a field that it does not
    read (ConfigError). A row without a condition, or where `keep` is False, gets the null condition of classifier-free
    guidance."""

    classes: Tensor | None = None
    """(B,) int64, embedded by the model"""
    _: KW_ONLY
    vector: Tensor | None = None
    """(B, D), one embedding for the whole sample"""
    memory: Tensor | None = None
    """(B, S, D), states of an encoder, for cross-attention"""
    concat: Tensor | None = None
    """(B, C', H, W), concatenated to the sample's channels"""
    keep: Tensor | None = None
    """(B,) bool, False where the condition is dropped"""

    def given(self) -> set[str]:
        """The names of the conditions that are set, `keep` apart."""
        return {name for name in ("classes", "vector", "memory", "concat") if getattr(self, name) is not None}


@runtime_checkable
class Denoiser(Protocol):
    """x (B, *sample_shape) at noise level t (B,), as the schedule numbers it -> a prediction like x."""

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """of one sample: (C, H, W) for images"""
        ...

    def __call__(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor: ...
