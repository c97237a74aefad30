# SPDX-License-Identifier: Apache-2.0
"""Directories of several components, each in a folder of its own: a denoiser with its schedule, in the layout of
diffusers' pipelines. The index names classes; they are looked up here, never imported by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from foundling.diffusion.schedule import NoiseSchedule
from foundling.errors import ConfigError, WeightsError
from foundling.models import family_of
from foundling.weights.directory import (
    MANIFEST,
    check,
    load,
    weights_hash,
    whole_parameters,
    write_manifest,
    write_weights,
)
from foundling.weights.files import read_json, write_directory

INDEX = "model_index.json"
PIPELINE = "DDPMPipeline"
SCHEDULER = "DDPMScheduler"
DIFFUSERS = "diffusers"
_PREDICTS = {"eps": "epsilon", "x0": "sample", "v": "v_prediction"}
_KINDS = {"linear": "linear", "scaled_linear": "scaled_linear", "cosine": "squaredcos_cap_v2"}


def save_denoiser(
    model: Any, schedule: NoiseSchedule, directory: str | Path, *, about: dict[str, Any] | None = None
) -> Path:
    """unet/, scheduler/, the index, and foundling.json with every file's hash; OutputError if anything is there."""
    directory = Path(directory)
    name = family_of(model).module.CONFIG.model_type
    index = {"_class_name": PIPELINE, "unet": [DIFFUSERS, name], "scheduler": [DIFFUSERS, SCHEDULER]}

    def fill(aside: Path) -> None:
        for part in ("unet", "scheduler"):
            (aside / part).mkdir()
        write_weights(model, whole_parameters(model), aside / "unet")
        for file, value in ((INDEX, index), ("scheduler/scheduler_config.json", _scheduler(schedule))):
            (aside / file).write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
        write_manifest(aside, {"weights_hash": weights_hash(model), **(about or {})})

    write_directory(directory, fill)
    return directory


def load_denoiser(directory: str | Path) -> tuple[Any, NoiseSchedule]:
    """The denoiser and its schedule, from our directory or one that diffusers saved. WeightsError, by file and key, for
    a component that is missing or of a class that is not known here."""
    directory = Path(directory)
    if not directory.is_dir():
        raise WeightsError(f"{directory}: no such model directory")
    index = read_json(directory / INDEX)
    known = {"unet": "UNet2DModel", "scheduler": SCHEDULER}
    if index.get("_class_name") != PIPELINE:
        raise WeightsError(
            f"{directory / INDEX}: _class_name {index.get('_class_name')!r} is not known; only {PIPELINE}"
        )
    for part, value in index.items():
        if not part.startswith("_") and part not in known:
            raise WeightsError(f"{directory / INDEX}: unknown component '{part}'; known: {', '.join(known)}")
        if part in known and (not isinstance(value, list) or value != [DIFFUSERS, known[part]]):
            raise WeightsError(f"{directory / INDEX}: '{part}' is {value!r}; only {[DIFFUSERS, known[part]]} is known")
    for part in known:
        if part not in index or not (directory / part).is_dir() or (directory / part).is_symlink():
            raise WeightsError(f"{directory}: lacks the component '{part}'")
    if (directory / MANIFEST).exists() and (problems := check(directory)["problems"]):
        raise WeightsError(f"{directory}: {problems[0]}")
    return load(directory / "unet"), _schedule(directory / "scheduler" / "scheduler_config.json")


def _scheduler(schedule: NoiseSchedule) -> dict[str, Any]:
    return {
        "_class_name": SCHEDULER,
        "num_train_timesteps": schedule.n_steps,
        "beta_start": schedule.start,
        "beta_end": schedule.end,
        "beta_schedule": _KINDS[schedule.kind],
        "prediction_type": _PREDICTS[schedule.predicts],
        "variance_type": "fixed_small",
        "clip_sample": True,
        "timestep_spacing": "leading",
    }


def _schedule(file: Path) -> NoiseSchedule:
    values = read_json(file)
    kinds, predicts = ({v: k for k, v in table.items()} for table in (_KINDS, _PREDICTS))
    defaults = _scheduler(NoiseSchedule())
    for key in ("_class_name", "variance_type", "timestep_spacing"):
        if values.get(key, defaults[key]) != defaults[key]:
            raise WeightsError(f"{file}: {key} = {values[key]!r} is not supported; only {defaults[key]!r} is")
    for key in ("trained_betas", "thresholding", "rescale_betas_zero_snr"):
        if values.get(key):
            raise WeightsError(f"{file}: {key} = {values[key]!r} is not supported")
    read = {key: values.get(key, default) for key, default in defaults.items()}
    if read["beta_schedule"] not in kinds or read["prediction_type"] not in predicts:
        raise WeightsError(f"{file}: {read['beta_schedule']!r} with {read['prediction_type']!r} is not known here")
    numbers = [read[key] for key in ("num_train_timesteps", "beta_start", "beta_end")]
    if not all(isinstance(n, int | float) and not isinstance(n, bool) for n in numbers):
        raise WeightsError(f"{file}: num_train_timesteps, beta_start, beta_end are {numbers}, expected numbers")
    steps, start, end = numbers
    kind, said = kinds[read["beta_schedule"]], predicts[read["prediction_type"]]
    try:
        return NoiseSchedule(int(steps), kind, start, end, said)  # pyright: ignore[reportArgumentType]  known names
    except ConfigError as error:
        raise WeightsError(f"{file}: {error}") from None
