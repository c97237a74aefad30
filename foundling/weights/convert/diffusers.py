# SPDX-License-Identifier: Apache-2.0
"""Directories of several components, each in a folder of its own: a denoiser with its schedule, in the layout of
diffusers' pipelines. The index names classes; they are looked up here, never imported by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from foundling.config import nearest
from foundling.diffusion.schedule import NoiseSchedule
from foundling.errors import ConfigError, WeightsError
from foundling.models import family_of
from foundling.runtime.distributed import barrier, is_first_rank
from foundling.runtime.files import read_json, write_directory
from foundling.weights.directory import (
    MANIFEST,
    check,
    load,
    weights_hash,
    whole_tensors,
    write_manifest,
    write_weights,
)

INDEX = "model_index.json"
PIPELINE = "DDPMPipeline"
SCHEDULER = "DDPMScheduler"
DIFFUSERS = "diffusers"
_PREDICTS = {"eps": "epsilon", "x0": "sample", "v": "v_prediction"}
_KINDS = {"linear": "linear", "scaled_linear": "scaled_linear", "cosine": "squaredcos_cap_v2"}
_FIELDS = {
    "num_train_timesteps": ("n_steps", (int,)),
    "beta_start": ("start", (int, float)),
    "beta_end": ("end", (int, float)),
    "clip_sample": ("clip_sample", (bool,)),
    "clip_sample_range": ("clip_sample_range", (int, float)),
}
"""key of theirs → field of ours and the types that it may have in a file"""
_ONLY = {
    "_class_name": SCHEDULER,
    "variance_type": "fixed_small",
    "timestep_spacing": "leading",
    "steps_offset": 0,
    "trained_betas": None,
    "thresholding": False,
    "rescale_betas_zero_snr": False,
}
"""What is computed here: with another value the same weights would draw other pictures."""
_INERT = ("_diffusers_version", "dynamic_thresholding_ratio", "sample_max_value")
"""read by nothing but thresholding"""


def save_denoiser(
    model: Any, schedule: NoiseSchedule, directory: str | Path, *, about: dict[str, Any] | None = None
) -> Path:
    """unet/, scheduler/, the index, and foundling.json with every file's hash. Of a model that is sharded over
    processes all call, and the first one writes. OutputError if anything is there, WeightsError for a model that is no
    denoiser."""
    found = family_of(model)
    if found.kind != "denoiser":
        raise WeightsError(f"{found.name} is a {found.kind}, no denoiser; save it with save(model, directory)")
    directory, params, digest = Path(directory), whole_tensors(model), weights_hash(model)

    def fill(aside: Path) -> None:
        write_denoiser(model, params, schedule, aside)
        write_manifest(aside, {"weights_hash": digest, **(about or {})})

    if is_first_rank():
        write_directory(directory, fill)
    barrier()
    return directory


def write_denoiser(model: Any, params: dict[str, Tensor], schedule: NoiseSchedule, directory: Path) -> None:
    """The components and their index, into an existing directory."""
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
    """Where the tensors lie: the denoiser's folder of a pipeline, elsewhere the directory itself."""
    return directory / "unet" if is_pipeline(directory) else directory


def load_denoiser(
    directory: str | Path, *, dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> tuple[Any, NoiseSchedule]:
    """The denoiser and its schedule, from our directory or one that diffusers saved. WeightsError, by file and key, for
    a component that is missing, of a class that is not known here, or that would compute something else."""
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
    return load(directory / "unet", dtype=dtype, device=device), _schedule(
        directory / "scheduler" / "scheduler_config.json"
    )


def _scheduler(schedule: NoiseSchedule) -> dict[str, Any]:
    values = {theirs: getattr(schedule, ours) for theirs, (ours, _) in _FIELDS.items()}
    names = {"beta_schedule": _KINDS[schedule.kind], "prediction_type": _PREDICTS[schedule.predicts]}
    return {key: value for key, value in _ONLY.items() if value is not None} | values | names


def _schedule(file: Path) -> NoiseSchedule:
    """What the file leaves out is as diffusers' class has it, which is how ours starts too."""
    known = _ONLY | _scheduler(NoiseSchedule())
    found = read_json(file)
    for key in found:
        if key not in known and key not in _INERT:
            raise WeightsError(f"{file}: unknown key '{key}'; {nearest(key, [*known])}")
    values = known | found
    for key, wanted in _ONLY.items():
        if values[key] != wanted:
            raise WeightsError(f"{file}: {key} = {values[key]!r} is not supported; only {wanted!r} is")
    for key, (_, types) in _FIELDS.items():
        if type(values[key]) not in types:  # isinstance would take a bool for an int
            raise WeightsError(f"{file}: {key} is {values[key]!r}, expected {types[-1].__name__}")
    named = {}
    for key, ours, table in (("beta_schedule", "kind", _KINDS), ("prediction_type", "predicts", _PREDICTS)):
        names = {theirs: name for name, theirs in table.items()}
        if values[key] not in [*names]:
            raise WeightsError(f"{file}: {key} = {values[key]!r} is not known here; known: {', '.join(names)}")
        named[ours] = names[values[key]]
    try:
        return NoiseSchedule(**{ours: values[theirs] for theirs, (ours, _) in _FIELDS.items()}, **named)
    except ConfigError as error:
        raise WeightsError(f"{file}: {error}") from None
