# SPDX-License-Identifier: Apache-2.0
"""Noise schedules (Ho et al. 2020, DDPM, section 2) and the quantities that a network may predict.

x_t = √ᾱ_t x0 + √(1 − ᾱ_t) eps, for steps t = 0 … n_steps − 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from foundling.errors import ConfigError

Kind = Literal["linear", "scaled_linear", "cosine"]
Predicts = Literal["eps", "x0", "v"]


@dataclass(frozen=True)
class NoiseSchedule:
    n_steps: int = 1000
    kind: Kind = "linear"
    start: float = 1e-4
    end: float = 0.02
    predicts: Predicts = "eps"
    clip_sample: bool = True
    """whether a sampler clips each prediction of x0 to ±clip_sample_range"""
    clip_sample_range: float = 1.0

    def __post_init__(self) -> None:
        for name, value, known in (
            ("kind", self.kind, get_args(Kind)),
            ("predicts", self.predicts, get_args(Predicts)),
        ):
            if value not in known:
                raise ConfigError(f"{name} is {value!r}; expected one of {', '.join(known)}")
        if not (0 < self.start <= self.end < 1 and 1 <= self.n_steps <= 100_000):
            raise ConfigError(
                f"noise from {self.start} to {self.end} in {self.n_steps} steps; expected 0 < start ≤ end < 1 and at "
                "most 100000 steps"
            )
        if not 0 < self.clip_sample_range < math.inf:
            raise ConfigError(f"clip_sample_range is {self.clip_sample_range}; expected a positive finite number")

    def alpha_bar(self) -> Tensor:
        """(n_steps,) float64, falling. β_t is linear (DDPM), √β_t is linear (latent diffusion), or ᾱ follows a
        cosine (Nichol & Dhariwal 2021, equation 17, β at most 0.999)."""
        n = self.n_steps
        if self.kind == "cosine":
            cosine = torch.cos((torch.arange(n + 1, dtype=torch.float64) / n + 0.008) / 1.008 * math.pi / 2) ** 2
            beta = (1 - cosine[1:] / cosine[:-1]).clamp_max(0.999)
        elif self.kind == "linear":
            beta = torch.linspace(self.start, self.end, n, dtype=torch.float64)
        else:
            beta = torch.linspace(self.start**0.5, self.end**0.5, n, dtype=torch.float64) ** 2
        return (1 - beta).cumprod(0)

    def clip(self, x0: Tensor) -> Tensor:
        """Clips a predicted x0 if `clip_sample` is set."""
        return x0.clamp(-self.clip_sample_range, self.clip_sample_range) if self.clip_sample else x0

    def spaced(self, n: int) -> list[int]:
        """n evenly spaced steps, from the noisiest down to 0 (DDIM's "leading" choice)."""
        if not 1 <= n <= self.n_steps:
            raise ConfigError(f"{n} sampling steps; expected 1 to {self.n_steps}")
        return [i * (self.n_steps // n) for i in reversed(range(n))]


def _broadcast(values: Tensor, x: Tensor) -> Tensor:
    """(B,) -> (B, 1, …), with the type and number of dimensions of x"""
    return values.to(x.dtype).view(-1, *[1] * (x.ndim - 1))


def noised(x0: Tensor, eps: Tensor, alpha_bar: Tensor) -> Tensor:
    """x_t of x0 and eps (B, …) at alpha_bar (B,)."""
    return _broadcast(alpha_bar.sqrt(), x0) * x0 + _broadcast((1 - alpha_bar).sqrt(), x0) * eps


def target(x0: Tensor, eps: Tensor, alpha_bar: Tensor, predicts: Predicts) -> Tensor:
    """The target of the network; v = √ᾱ eps − √(1 − ᾱ) x0 (Salimans & Ho 2022, appendix D)."""
    if predicts == "eps":
        return eps
    if predicts == "x0":
        return x0
    return _broadcast(alpha_bar.sqrt(), x0) * eps - _broadcast((1 - alpha_bar).sqrt(), x0) * x0


def to_x0(x: Tensor, prediction: Tensor, alpha_bar: Tensor, predicts: Predicts) -> Tensor:
    """x0 from the network's prediction for x = x_t."""
    signal, noise = _broadcast(alpha_bar.sqrt(), x), _broadcast((1 - alpha_bar).sqrt(), x)
    if predicts == "eps":
        return (x - noise * prediction) / signal
    return prediction if predicts == "x0" else signal * x - noise * prediction


def to_eps(x: Tensor, x0: Tensor, alpha_bar: Tensor) -> Tensor:
    """The noise in x = x_t, given x0."""
    return (x - _broadcast(alpha_bar.sqrt(), x) * x0) / _broadcast((1 - alpha_bar).sqrt(), x)
