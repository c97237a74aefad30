# SPDX-License-Identifier: Apache-2.0
"""Reads and writes diffusers pipelines: a denoiser and its schedule, each in its own folder, and an index that names
their classes. Class names are compared with a table, never imported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from foundling.config import nearest
from foundling.diffusion.schedule import NoiseSchedule
from foundling.errors import ConfigError, WeightsError
from foundling.limits import shown
from foundling.models import family_of
from foundling.runtime.distributed import barrier, is_first_rank
from foundling.runtime.files import read_json, write_directory
from foundling.runtime.hub import local_directory
from foundling.weights.directory import load, weights_hash, whole_tensors, write_weights
from foundling.weights.manifest import MANIFEST, check, write_manifest

INDEX = "model_index.json"
PIPELINE = "DDPMPipeline"
SCHEDULER = "DDPMScheduler"
DIFFUSERS = "diffusers"
_PREDICTION_TYPES = {"eps": "epsilon", "x0": "sample", "v": "v_prediction"}
_BETA_SCHEDULES = {"linear": "linear", "scaled_linear": "scaled_linear", "cosine": "squaredcos_cap_v2"}
_FIELDS = {
    "num_train_timesteps": ("n_steps", (int,)),
    "beta_start": ("start", (int, float)),
    "beta_end": ("end", (int, float)),
    "clip_sample": ("clip_sample", (bool,)),
    "clip_sample_range": ("clip_sample_range", (int, float)),
}
"""Their key → our field and the types allowed in a file."""
_REQUIRED = {
    "_class_name": SCHEDULER,
    "variance_type": "fixed_small",
    "timestep_spacing": "leading",
    "steps_offset": 0,
    "trained_betas": None,
    "thresholding": False,
    "rescale_betas_zero_snr": False,
}
"""The only supported values: others would give different samples."""
_IGNORED = ("_diffusers_version", "dynamic_thresholding_ratio", "sample_max_value")
"""Used only by thresholding."""


def save_denoiser(
    model: Any, schedule: NoiseSchedule, directory: str | Path, *, about: dict[str, Any] | None = None
) -> Path:
    """Writes unet/, scheduler/, the index, and foundling.json with the hash of every file. For a model that is sharded
    over processes, every process must call; the first one writes. Raises OutputError if `directory` is not empty, and
    WeightsError if the model is not a denoiser."""
    family = family_of(model)
    if family.kind != "denoiser":
        raise WeightsError(f"{family.name} is a {family.kind}, not a denoiser; save it with save(model, directory)")
    directory, params, digest = Path(directory), whole_tensors(model), weights_hash(model)

    def fill(temporary: Path) -> None:
        write_denoiser(model, params, schedule, temporary)
        write_manifest(temporary, {"weights_hash": digest, **(about or {})})

    if is_first_rank():
        write_directory(directory, fill)
    barrier()
    return directory


def write_denoiser(model: Any, params: dict[str, Tensor], schedule: NoiseSchedule, directory: Path) -> None:
    """Writes the components and their index to an existing directory."""
    name = family_of(model).module.CONFIG.model_type
    index = {"_class_name": PIPELINE, "unet": [DIFFUSERS, name], "scheduler": [DIFFUSERS, SCHEDULER]}
    for part in ("unet", "scheduler"):
        (directory / part).mkdir()
    write_weights(model, params, directory / "unet")
    for file, value in ((INDEX, index), ("scheduler/scheduler_config.json", _scheduler(schedule))):
        (directory / file).write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def is_pipeline(directory: Path) -> bool:
    return (directory / INDEX).is_file()


def tensors_folder(directory: Path) -> Path:
    """The folder with the tensors: `unet` in a pipeline, otherwise the directory itself."""
    return directory / "unet" if is_pipeline(directory) else directory


def load_denoiser(
    directory: str | Path, *, dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> tuple[Any, NoiseSchedule]:
    """Loads a denoiser and its schedule from our directory or one of diffusers. Raises WeightsError with file and key
    for a component that is missing, of an unknown class, or with unsupported settings."""
    directory = local_directory(directory)
    if not directory.is_dir():
        raise WeightsError(f"{directory}: no such model directory")
    index = read_json(directory / INDEX)
    known = {"unet": "UNet2DModel", "scheduler": SCHEDULER}
    if index.get("_class_name") != PIPELINE:
        raise WeightsError(
            f"{directory / INDEX}: _class_name {index.get('_class_name')!r} is not supported; only {PIPELINE} is"
        )
    for part, value in index.items():
        if not part.startswith("_") and part not in known:
            raise WeightsError(f"{directory / INDEX}: unknown component '{part}'; known: {', '.join(known)}")
        if part in known and (not isinstance(value, list) or value != [DIFFUSERS, known[part]]):
            raise WeightsError(
                f"{directory / INDEX}: '{part}' is {value!r}; only {[DIFFUSERS, known[part]]} is supported"
            )
    for part in known:
        if part not in index or not (directory / part).is_dir() or (directory / part).is_symlink():
            raise WeightsError(f"{directory}: lacks the component '{part}'")
    if (directory / MANIFEST).exists() and (problems := check(directory)["problems"]):
        raise WeightsError(f"{directory}: {problems[0]}")
    return load(directory / "unet", dtype=dtype, device=device), _schedule(
        directory / "scheduler" / "scheduler_config.json"
    )


def _scheduler(schedule: NoiseSchedule) -> dict[str, Any]:
    values = {theirs: getattr(schedule, ours) for theirs, (ours, _) in _FIELDS.items()}
    names = {"beta_schedule": _BETA_SCHEDULES[schedule.kind], "prediction_type": _PREDICTION_TYPES[schedule.predicts]}
    return {key: value for key, value in _REQUIRED.items() if value is not None} | values | names


def _schedule(file: Path) -> NoiseSchedule:
    """Missing keys have the defaults of diffusers' class, which are ours as well."""
    known = _REQUIRED | _scheduler(NoiseSchedule())
    stored = read_json(file)
    for key in stored:
        if key not in known and key not in _IGNORED:
            raise WeightsError(f"{file}: unknown key {shown(key)}; {nearest(key, [*known])}")
    values = known | stored
    for key, required in _REQUIRED.items():
        if values[key] != required:
            raise WeightsError(f"{file}: {key} = {values[key]!r} is not supported; only {required!r} is")
    for key, (_, types) in _FIELDS.items():
        if type(values[key]) not in types:  # isinstance would take a bool for an int
            raise WeightsError(f"{file}: {key} is {values[key]!r}, expected {types[-1].__name__}")
    named = {}
    for key, ours, table in (
        ("beta_schedule", "kind", _BETA_SCHEDULES),
        ("prediction_type", "predicts", _PREDICTION_TYPES),
    ):
        names = {theirs: name for name, theirs in table.items()}
        if values[key] not in [*names]:
            raise WeightsError(f"{file}: {key} = {values[key]!r} is not supported; supported: {', '.join(names)}")
        named[ours] = names[values[key]]
    try:
        return NoiseSchedule(**{ours: values[theirs] for theirs, (ours, _) in _FIELDS.items()}, **named)
    except ConfigError as error:
        raise WeightsError(f"{file}: {error}") from None
