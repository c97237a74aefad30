# SPDX-License-Identifier: Apache-2.0
"""How much noise there is at each step (Ho et al. 2020, DDPM, section 2), and what a network may predict of it.

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
        """(n_steps,) float64, falling. β_t rises linearly (DDPM), its root does (latent diffusion), or ᾱ follows a
        cosine (Nichol & Dhariwal 2021, equation 17, β at most 0.999)."""
        n = self.n_steps
        if self.kind == "cosine":
            at = torch.cos((torch.arange(n + 1, dtype=torch.float64) / n + 0.008) / 1.008 * math.pi / 2) ** 2
            beta = (1 - at[1:] / at[:-1]).clamp_max(0.999)
        elif self.kind == "linear":
            beta = torch.linspace(self.start, self.end, n, dtype=torch.float64)
        else:
            beta = torch.linspace(self.start**0.5, self.end**0.5, n, dtype=torch.float64) ** 2
        return (1 - beta).cumprod(0)

    def clip(self, x0: Tensor) -> Tensor:
        """A predicted x0 as the sampler uses it."""
        return x0.clamp(-self.clip_sample_range, self.clip_sample_range) if self.clip_sample else x0

    def spaced(self, n: int) -> list[int]:
        """n steps out of all, from the noisiest down, evenly spaced and ending at 0 (DDIM's "leading" choice)."""
        if not 1 <= n <= self.n_steps:
            raise ConfigError(f"{n} sampling steps; expected 1 to {self.n_steps}")
        return [i * (self.n_steps // n) for i in reversed(range(n))]


def _like(values: Tensor, x: Tensor) -> Tensor:
    """(B,) -> (B, 1, …) in x's type"""
    return values.to(x.dtype).view(-1, *[1] * (x.ndim - 1))


def noised(x0: Tensor, eps: Tensor, alpha_bar: Tensor) -> Tensor:
    """x_t of x0 and eps (B, …) at alpha_bar (B,)."""
    return _like(alpha_bar.sqrt(), x0) * x0 + _like((1 - alpha_bar).sqrt(), x0) * eps


def target(x0: Tensor, eps: Tensor, alpha_bar: Tensor, predicts: Predicts) -> Tensor:
    """What the network is to say; v = √ᾱ eps − √(1 − ᾱ) x0 (Salimans & Ho 2022, appendix D)."""
    if predicts == "eps":
        return eps
    if predicts == "x0":
        return x0
    return _like(alpha_bar.sqrt(), x0) * eps - _like((1 - alpha_bar).sqrt(), x0) * x0


def to_x0(x: Tensor, said: Tensor, alpha_bar: Tensor, predicts: Predicts) -> Tensor:
    """x0 from what the network said of x = x_t."""
    signal, noise = _like(alpha_bar.sqrt(), x), _like((1 - alpha_bar).sqrt(), x)
    if predicts == "eps":
        return (x - noise * said) / signal
    return said if predicts == "x0" else signal * x - noise * said


def to_eps(x: Tensor, x0: Tensor, alpha_bar: Tensor) -> Tensor:
    """The noise that x = x_t holds if x0 is right."""
    return (x - _like(alpha_bar.sqrt(), x) * x0) / _like((1 - alpha_bar).sqrt(), x)
