# SPDX-License-Identifier: Apache-2.0
"""Samplers: from noise to a sample, with `denoise(x, t) -> x0`, whatever the network predicts."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from foundling.diffusion.schedule import NoiseSchedule, to_eps

Denoise = Callable[[Tensor, int], Tensor]
Noise = Callable[[int], Tensor]
"""step t -> fresh standard noise like x"""


def _pairs(schedule: NoiseSchedule, steps: Sequence[int]) -> list[tuple[int, Tensor, Tensor]]:
    """(t, ᾱ_t, ᾱ of the next step, or 1 after the last)"""
    bars = schedule.alpha_bar()
    next_bars = [bars[t] for t in steps[1:]] + [torch.ones((), dtype=bars.dtype)]
    return [(t, bars[t], next_alpha_bar) for t, next_alpha_bar in zip(steps, next_bars, strict=True)]


def ddpm(denoise: Denoise, x: Tensor, schedule: NoiseSchedule, steps: Sequence[int], noise: Noise) -> Tensor:
    """Ancestral sampling (Ho et al. 2020, algorithm 2), the posterior's own variance β̃ (equation 7)."""
    for t, alpha_bar, next_alpha_bar in _pairs(schedule, steps):
        x0, alpha = denoise(x, t), alpha_bar / next_alpha_bar
        mean = (next_alpha_bar.sqrt() * (1 - alpha) / (1 - alpha_bar)).to(x) * x0 + (
            alpha.sqrt() * (1 - next_alpha_bar) / (1 - alpha_bar)
        ).to(x) * x
        variance = (1 - next_alpha_bar) / (1 - alpha_bar) * (1 - alpha)
        x = mean if variance == 0 else mean + variance.sqrt().to(x) * noise(t)
    return x


def ddim(denoise: Denoise, x: Tensor, schedule: NoiseSchedule, steps: Sequence[int]) -> Tensor:
    """Deterministic sampling (Song et al. 2021, DDIM, equation 12 with η = 0): equal noise gives equal samples."""
    for t, alpha_bar, next_alpha_bar in _pairs(schedule, steps):
        x0 = denoise(x, t)
        eps = to_eps(x, x0, alpha_bar.expand(len(x)))
        x = next_alpha_bar.sqrt().to(x) * x0 + (1 - next_alpha_bar).sqrt().to(x) * eps
    return x


def guided(conditional: Tensor, null: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance (Ho & Salimans 2022, 1 + w = scale): 1 is the plain conditional prediction, above 1
    strengthens the condition."""
    return null + scale * (conditional - null)
