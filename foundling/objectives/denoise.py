# SPDX-License-Identifier: Apache-2.0
"""Denoising (Ho et al. 2020, section 3.4, the simple loss), with the condition dropped at random for classifier-free
guidance (Ho & Salimans 2022, algorithm 1)."""

from __future__ import annotations

from typing import Any

import torch

from foundling.contracts.data import Batch
from foundling.contracts.denoise import Condition
from foundling.contracts.objective import Loss, Term
from foundling.diffusion.schedule import NoiseSchedule, noised, target
from foundling.errors import ConfigError
from foundling.runtime.rng import generator


class Denoise:
    """loss: squared error per element. Batch: `pixels` (B, C, H, W) in [−1, 1], `classes` (B,), `sample_ids` (B,).

    `drop` is the probability that a sample's condition is dropped. The noise level, the noise and the drop depend on
    (seed, sample id) alone, not on ranks or micro-batches. ConfigError for a `drop` outside [0, 1].
    """

    def __init__(self, schedule: NoiseSchedule, *, seed: int, drop: float = 0.1) -> None:
        if not 0 <= drop <= 1:
            raise ConfigError(f"drop is {drop}; expected a probability between 0 and 1")
        self.schedule, self.seed, self.drop = schedule, seed, drop
        self.alpha_bar = schedule.alpha_bar()

    def normalizers(self, batch: Batch) -> dict[str, int]:
        return {"loss": batch["pixels"].numel()}

    def __call__(self, model: Any, batch: Batch) -> Loss:
        x0, steps, noises, kept = batch["pixels"], [], [], []
        for k in batch["sample_ids"].tolist():
            draw = generator("denoise", self.seed, k)
            steps.append(int(torch.randint(self.schedule.n_steps, (), generator=draw)))
            kept.append(bool(torch.rand((), generator=draw) >= self.drop))
            noises.append(torch.randn(x0.shape[1:], generator=draw))
        eps, t = torch.stack(noises).to(x0), torch.tensor(steps, device=x0.device)
        bars = self.alpha_bar.to(x0.device)[t]
        condition = Condition(batch["classes"], keep=torch.tensor(kept, device=x0.device))
        predicted = model(noised(x0, eps, bars), t, condition).float()
        wanted = target(x0, eps, bars, self.schedule.predicts)
        return {"loss": Term((predicted - wanted).square().sum(), x0.numel())}
