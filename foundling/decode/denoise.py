# SPDX-License-Identifier: Apache-2.0
"""Samples from a denoiser. Each row is drawn from its own seed, whatever the other rows are."""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from torch import Tensor

from foundling.contracts.denoise import Condition
from foundling.decode.request import check_ids
from foundling.diffusion.samplers import ddim, ddpm, guided
from foundling.diffusion.schedule import NoiseSchedule, to_x0
from foundling.errors import GenerationError
from foundling.limits import ROWS, SEED, check_number
from foundling.runtime.mode import evaluation_mode
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
    """(rows, *model.sample_shape): row i from seeds[i], of class classes[i] (None: unconditional). The schedule decides
    whether predictions of x0 are clipped. `guidance` above 1 strengthens the class at twice the cost. The network runs
    in its own precision, the sampler in float32. Raises GenerationError for unknown classes, a number of classes other
    than that of seeds, and an unknown sampler or guidance."""
    weight = next(model.parameters())
    device, dtype = weight.device, weight.dtype
    _check(model, classes, seeds, guidance, sampler)
    ids = None if classes is None else torch.tensor(classes, device=device)
    alpha_bar = schedule.alpha_bar().to(device)

    def noise(t: int) -> Tensor:
        draws = [torch.randn(model.sample_shape, generator=generator("sample", seed, t)) for seed in seeds]
        return torch.stack(draws).to(device)

    def predict_x0(x: Tensor, t: int) -> Tensor:
        at, inputs = torch.full((len(x),), t, device=device), x.to(dtype)
        prediction = model(inputs, at, Condition(ids)).float()
        if ids is not None and guidance != 1:
            prediction = guided(prediction, model(inputs, at, Condition()).float(), guidance)
        return schedule.clip(to_x0(x, prediction, alpha_bar[at], schedule.predicts))

    path = schedule.spaced(steps)
    with evaluation_mode(model):
        if sampler == "ddim":
            return ddim(predict_x0, noise(schedule.n_steps), schedule, path)
        return ddpm(predict_x0, noise(schedule.n_steps), schedule, path, noise)


def _check(model: Any, classes: list[int] | None, seeds: list[int], guidance: float, sampler: str) -> None:
    n_classes = model.config.n_classes
    ROWS._replace(low=0).check(len(seeds), "the number of seeds", GenerationError)
    for seed in seeds:
        SEED.check(seed, "seeds contains a value that", GenerationError)
    if classes is not None:
        check_ids(classes, "classes")
    if not seeds or (classes is not None and len(classes) != len(seeds)):
        raise GenerationError(
            f"{0 if classes is None else len(classes)} classes for {len(seeds)} seeds; pass one class per seed, or None"
        )
    if classes is not None and not all(0 <= n < n_classes for n in classes):
        raise GenerationError(f"classes {sorted(set(classes))}; the model has classes 0 to {n_classes - 1}")
    if sampler not in get_args(Sampler):
        raise GenerationError(f"sampler '{sampler}' is unknown; use {' or '.join(get_args(Sampler))}")
    check_number(guidance, "guidance (1 for none)", error=GenerationError)
