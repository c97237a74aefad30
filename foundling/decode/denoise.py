# SPDX-License-Identifier: Apache-2.0
"""Pictures from a denoiser: each row from its own seed, whatever its neighbours."""

from __future__ import annotations

import math
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from foundling.contracts.denoise import Condition
from foundling.diffusion.samplers import ddim, ddpm, guided
from foundling.diffusion.schedule import NoiseSchedule, to_x0
from foundling.errors import GenerationError
from foundling.runtime.rng import generator

Sampler = Literal["ddpm", "ddim"]


@torch.inference_mode()
def denoise(
    model: Any,
    schedule: NoiseSchedule,
    classes: list[int] | None,
    seeds: list[int],
    *,
    steps: int = 50,
    guidance: float = 1.0,
    sampler: Sampler = "ddim",
) -> Tensor:
    """(rows, C, H, W) in [−1, 1], row i from seeds[i] and of class classes[i] (None: of any). `guidance` above 1
    follows the class more closely at twice the cost. The network computes in its own precision, the sampler in float32.
    GenerationError for unknown classes, not as many as seeds, and a sampler or guidance that is none."""
    c, like = model.config, next(model.parameters())
    device, dtype = like.device, like.dtype
    if not seeds or (classes is not None and len(classes) != len(seeds)):
        raise GenerationError(f"{0 if classes is None else len(classes)} classes for {len(seeds)} seeds; give as many")
    if classes is not None and not all(0 <= n < c.n_classes for n in classes):
        raise GenerationError(f"classes {sorted(set(classes))}; the model knows 0 to {c.n_classes - 1}")
    if sampler not in get_args(Sampler):
        raise GenerationError(f"sampler '{sampler}' is not known; use {' or '.join(get_args(Sampler))}")
    if not math.isfinite(guidance):
        raise GenerationError(f"guidance is {guidance}; expected a finite number, 1 for the class alone")
    ids = None if classes is None else torch.tensor(classes, device=device)
    bars = schedule.alpha_bar().to(device)

    def noise(t: int) -> Tensor:
        shape = (c.channels, c.image_size, c.image_size)
        return torch.stack([torch.randn(shape, generator=generator("sample", s, t)) for s in seeds]).to(device)

    def predict(x: Tensor, t: int) -> Tensor:
        at, seen = torch.full((len(x),), t, device=device), x.to(dtype)
        said = model(seen, at, Condition(ids)).float()
        if ids is not None and guidance != 1:
            said = guided(said, model(seen, at, Condition()).float(), guidance)
        return to_x0(x, said, bars[at], schedule.predicts).clamp(-1, 1)

    path = schedule.spaced(steps)
    if sampler == "ddim":
        return ddim(predict, noise(schedule.n_steps), schedule, path)
    return ddpm(predict, noise(schedule.n_steps), schedule, path, noise)
