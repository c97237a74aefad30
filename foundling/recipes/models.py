# SPDX-License-Identifier: Apache-2.0
"""From a ModelSpec to a model: a family and its fields, a published size, or a directory to continue from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foundling.blocks.init import initialise
from foundling.config import from_dict, nearest, partial_dict, to_dict
from foundling.errors import ConfigError, MismatchError, WeightsError
from foundling.models import FAMILIES, build, family, family_of, recognise
from foundling.recipes.recipe import ModelSpec, ObjectiveSpec, Recipe, Request
from foundling.runtime.files import read_json
from foundling.runtime.rng import generator
from foundling.weights.configs import read_config
from foundling.weights.directory import load, weights_hash

OBJECTIVES = {
    "decoder": ("causal", "distill"), "encoder": ("masked",), "seq2seq": ("span", "infill"),
}  # fmt: skip
"""kind of family -> objectives that it is raised by, the usual one first"""
READS = {
    "causal": (), "masked": ("mask_rate",), "span": ("mask_rate", "mean_span"),
    "infill": ("infill_rate", "mean_span"), "distill": ("teacher", "teacher_hash", "temperature", "alpha"),
}  # fmt: skip
"""objective -> fields of its section that it reads"""
INFILLED = ("bart",)
"""families whose usual objective is to write the whole text again (Lewis et al. 2019)"""


@dataclass(frozen=True)
class Origin:
    """Where a model comes from. `fields` are all of its configuration where that is fixed, else None; `overrides` are
    laid over what a size has."""

    family: str
    fields: dict[str, Any] | None
    overrides: dict[str, Any]
    preset: str | None = None
    directory: str | None = None
    model: Any = None
    """loaded from `directory`"""
    weights_hash: str | None = None


def presets() -> dict[str, str]:
    """preset -> family"""
    return {preset: name for name in FAMILIES for preset in family(name).module.PRESETS}


def find_preset(preset: str) -> tuple[str, dict[str, Any]]:
    """(family, fields); ConfigError with the nearest name."""
    known = presets()
    if preset not in known:
        raise ConfigError(f"unknown preset '{preset}'; {nearest(preset, list(known))} (foundling families lists them)")
    return known[preset], dict(family(known[preset]).module.PRESETS[preset])


def family_for(given: dict[str, Any]) -> str:
    """The family that the model section of a request names, by whichever of its keys; nothing is loaded."""
    if preset := given.get("preset"):
        return find_preset(preset)[0]
    if directory := given.get("directory"):
        if not (Path(directory) / "config.json").is_file():
            raise WeightsError(f"{directory}: no config.json, so this is not a model directory")
        found = recognise(read_json(Path(directory) / "config.json"))
        if found is None:
            raise WeightsError(f"{directory}: config.json is of no family that is known here (foundling families)")
        return found.name
    return family(given.get("family", ModelSpec.family)).name


def find_origin(given: dict[str, Any]) -> Origin:
    """Of the model section of a request. ConfigError where keys exclude each other or a field is unknown."""
    overrides, directory, preset = dict(given.get("fields", {})), given.get("directory"), given.get("preset")
    name = family_for(given)
    if (directory and preset) or given.get("family", name) != name:
        flags = {"family": "--family", "preset": "--preset", "directory": "--from"}
        named = [flag for key, flag in flags.items() if given.get(key)]
        raise ConfigError(f"{' and '.join(named)} both name the model; leave one out")
    if directory:
        if overrides:
            flag = min(overrides).replace("_", "-")
            raise ConfigError(f"--from {directory} keeps the size of that model; leave --model.{flag} out")
        model = load(directory)
        found = family_of(model)
        return Origin(
            found.name, to_dict(model.config), {}, directory=directory, model=model, weights_hash=weights_hash(model)
        )
    partial_dict(family(name).config, overrides, where=f"{name} configuration")
    if preset:
        fields = find_preset(preset)[1]
        return Origin(name, check_fields(name, fields | overrides), overrides, preset=preset)
    return Origin(name, None, overrides)


def check_fields(name: str, fields: dict[str, Any]) -> dict[str, Any]:
    """The whole configuration, checked; ConfigError naming the field."""
    return to_dict(from_dict(family(name).config, fields, where=f"{name} configuration"))


def build_model(recipe: Recipe) -> Any:
    """The model as training starts, on the recipe's device."""
    spec = recipe.model
    if spec.directory:
        return load(spec.directory, device=recipe.runtime.device)
    model = build(spec.family, device=recipe.runtime.device, **spec.fields)
    initialise(model, generator("init", recipe.seed))
    return model


def check_parents(recipe: Recipe) -> None:
    """MismatchError where a directory that the recipe builds on has other weights than it had."""
    for directory, expected in parents(recipe).items():
        found = weights_hash(load(directory))
        if found != expected:
            raise MismatchError(
                f"{directory} has weights {found[:12]}, the recipe was resolved with {expected[:12]}; restore them"
            )


def parents(recipe: Recipe) -> dict[str, str]:
    """directory -> hash of its weights, of all models that the run starts from."""
    pairs = (
        (recipe.model.directory, recipe.model.weights_hash),
        (recipe.objective.teacher, recipe.objective.teacher_hash),
    )
    return {directory: digest for directory, digest in pairs if directory and digest}


def objective_for(request: Request) -> str:
    """The objective of a request: as given, or as its family is usually raised; ConfigError where it does not fit."""
    given, teacher = request.get("objective.kind"), request.get("objective.teacher")
    name = family_for(request.get("model", {}))
    kind = FAMILIES[name].kind
    if kind not in OBJECTIVES:
        known = ", ".join(n for n, entry in FAMILIES.items() if entry.kind in OBJECTIVES)
        raise ConfigError(f"family '{name}' is not raised from text; use one of {known}")
    usual = "distill" if teacher else "infill" if name in INFILLED else OBJECTIVES[kind][0]
    chosen = given or usual
    if chosen not in OBJECTIVES[kind]:
        raise ConfigError(f"objective '{chosen}' is not for {name}; known: {', '.join(OBJECTIVES[kind])}")
    if (chosen == "distill") != bool(teacher):
        raise ConfigError("distillation needs a teacher: give --teacher DIR, and no other objective")
    return chosen


def objective_of(request: Request) -> ObjectiveSpec:
    """With what was given of its section, and the hash of a teacher's weights."""
    kind, given = objective_for(request), request.get("objective", {})
    for name in given:
        if name not in ("kind", *READS[kind]):
            raise ConfigError(f"--{name.replace('_', '-')} is not for the objective '{kind}'; leave it out")
    if kind not in ("causal", "distill") and request.get("data.fim_rate"):
        raise ConfigError(f"--fim-rate is not for the objective '{kind}'; leave it out")
    values = {"kind": kind, **given}
    if teacher := given.get("teacher"):
        values["teacher_hash"] = weights_hash(load(teacher))
    return from_dict(ObjectiveSpec, values, where="objective")


def parent_vocab_size(directory: str) -> int:
    """Rows of the embedding of a model directory, by its config.json."""
    file = Path(directory) / "config.json"
    return read_config(read_json(file), str(file))[1].vocab_size


def check_unused(given: dict[str, Any]) -> None:
    """ConfigError for a setting that the others make meaningless: it would be ignored."""
    optim, schedule = given.get("optim", {}), given.get("schedule", {})
    for name in ("matrix_learning_rate", "momentum"):
        if name in optim and optim.get("optimizer") == "adamw":
            raise ConfigError(f"--{name.replace('_', '-')} is Muon's; with --optimizer adamw leave it out")
    if "decay_share" in schedule and schedule.get("kind") == "cosine":
        raise ConfigError("--decay-share is for --schedule wsd; with cosine leave it out")
