# SPDX-License-Identifier: Apache-2.0
"""From noise to a sample. A sampler takes `denoise(x, t) -> x0`, whatever the network predicts, and walks down."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from foundling.diffusion.schedule import NoiseSchedule, to_eps

Denoise = Callable[[Tensor, int], Tensor]
Noise = Callable[[int], Tensor]
"""step t -> fresh standard noise like x"""


def _pairs(schedule: NoiseSchedule, steps: Sequence[int]) -> list[tuple[int, Tensor, Tensor]]:
    """(t, ᾱ_t, ᾱ of the step after, 1 after the last)"""
    bars = schedule.alpha_bar()
    after = [bars[t] for t in steps[1:]] + [torch.ones((), dtype=bars.dtype)]
    return [(t, bars[t], later) for t, later in zip(steps, after, strict=True)]


def ddpm(denoise: Denoise, x: Tensor, schedule: NoiseSchedule, steps: Sequence[int], noise: Noise) -> Tensor:
    """Ancestral sampling (Ho et al. 2020, algorithm 2), the posterior's own variance β̃ (equation 7)."""
    for t, here, later in _pairs(schedule, steps):
        x0, alpha = denoise(x, t), here / later
        mean = (later.sqrt() * (1 - alpha) / (1 - here)).to(x) * x0 + (alpha.sqrt() * (1 - later) / (1 - here)).to(
            x
        ) * x
        variance = (1 - later) / (1 - here) * (1 - alpha)
        x = mean if variance == 0 else mean + variance.sqrt().to(x) * noise(t)
    return x


def ddim(denoise: Denoise, x: Tensor, schedule: NoiseSchedule, steps: Sequence[int]) -> Tensor:
    """Without fresh noise (Song et al. 2021, DDIM, equation 12 with η = 0): the same start gives the same sample."""
    for t, here, later in _pairs(schedule, steps):
        x0 = denoise(x, t)
        eps = to_eps(x, x0, here.expand(len(x)))
        x = later.sqrt().to(x) * x0 + (1 - later).sqrt().to(x) * eps
    return x


def guided(conditional: Tensor, null: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance (Ho & Salimans 2022, 1 + w = scale): 1 is the condition alone, above 1 more of it."""
    return null + scale * (conditional - null)
