# SPDX-License-Identifier: Apache-2.0
"""From a ModelSpec to a model: a family and its fields, a published size, or a directory to continue from."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from foundling.adapt.added import merge, wrapping
from foundling.adapt.heads import absorb
from foundling.adapt.layers import start_from_layers
from foundling.adapt.prune import keep_zeros
from foundling.adapt.quantize import dequantize
from foundling.blocks.init import initialise
from foundling.config import from_dict, merged, nearest, to_dict
from foundling.errors import AdaptError, ConfigError, FoundlingError, MismatchError, WeightsError
from foundling.evaluate.rewards import renamed, weighted
from foundling.models import FAMILIES, Family, build, check_sizes, configuration, family, family_of, recognise
from foundling.plan.flops import skeleton
from foundling.plan.memory import NO_TEACHER, FrozenCost, frozen_cost
from foundling.recipes.recipe import ModelSpec, ObjectiveSpec, Recipe, Request, RolloutSpec, ScheduleSpec
from foundling.runtime.files import read_json
from foundling.runtime.hub import is_hub, local_directory, pinned, place_name
from foundling.runtime.rng import generator
from foundling.train.options import OptimOptions
from foundling.weights.configs import read_config
from foundling.weights.directory import weights_hash
from foundling.weights.loading import base_of, is_adapter, load
from foundling.weights.manifest import MANIFEST, read_manifest
from foundling.weights.merged import adapter_hash

OBJECTIVES = {
    "decoder": ("causal", "distill"), "encoder": ("masked", "distill"), "seq2seq": ("span", "infill"),
}  # fmt: skip
"""kind of family -> objectives that it is raised by, the usual one first"""
READS = {
    "causal": (), "masked": ("mask_rate",), "span": ("mask_rate", "mean_span"),
    "infill": ("infill_rate", "mean_span"), "bilm": (), "distill": ("teacher", "teacher_hash", "temperature"),
    "dpo": ("beta",), "ipo": ("beta",),
    "grpo": (POLICY := ("kl_coef", "clip_low", "clip_high", "normalise", "pretraining", "pretraining_hash",
                        "pretraining_coef")),
    "ppo": (*POLICY, "value_coef"),
}  # fmt: skip
"""objective -> fields of its section that it reads"""
STUDENT_READS = {"causal": ("alpha",), "masked": READS["masked"]}
"""what a student is measured as -> fields that it reads besides; DistilBERT's losses have weights of their own"""
OWN = {"bart": ("infill", "span"), "elmo": ("bilm",)}
"""families that are raised by other objectives than their kind, or first by another (Lewis et al. 2019; Peters et al.
2018)"""
PATTERN_CHARS = 1 << 14
"""of the pattern of what is pruned, in a foundling.json"""
RESTORE = "restore it, or give `foundling reproduce` --parent DIR, where it is now"


def measured_as(objective: str, family: str) -> str:
    """The objective by whose batches a model learns and by whose figures it is measured: of a student, the one that its
    family is usually raised by."""
    return OBJECTIVES[FAMILIES[family].kind][0] if objective == "distill" else objective


def fields_read(objective: str, family: str) -> tuple[str, ...]:
    """Fields of the objective's section that it reads with this family; of finetuning beta alone."""
    besides = STUDENT_READS[measured_as(objective, family)] if objective == "distill" else ()
    return (*READS.get(objective, ()), *besides)


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


def pinned_request(request: Request) -> Request:
    """The request with the commits of the models that it names on the hub: who repeats it gets the same."""
    given = request.given
    for section, key in (("model", "directory"), ("objective", "teacher")):
        if place := request.get(f"{section}.{key}"):
            given = merged(given, {section: {key: pinned(place)}})
    if rewards := request.get("rollout.reward"):
        places = {name: pinned(name) for _, name in map(weighted, rewards) if is_hub(name)}
        given = merged(given, {"rollout": {"reward": [renamed(text, places) for text in rewards]}})
    return replace(request, given=given)


def family_for(given: dict[str, Any]) -> str:
    """The family that the model section of a request names, by whichever of its keys; nothing is loaded."""
    if preset := given.get("preset"):
        return find_preset(preset)[0]
    if directory := given.get("directory"):
        folder = local_directory(directory)
        file = (local_directory(base_of(folder)) if is_adapter(folder) else folder) / "config.json"
        if not file.is_file():
            raise WeightsError(f"{directory}: no config.json, so this is not a model directory")
        found = recognise(read_json(file))
        if found is None:
            raise WeightsError(f"{directory}: config.json is of no family that is known here (foundling families)")
        return found.name
    return family(given.get("family", ModelSpec.family)).name


def load_parent(directory: str, device: str = "cpu") -> Any:
    """A model that a run builds on; of an adapter its base, with the adapter merged into it. WeightsError for an
    adapter that cannot be."""
    model = load(directory, device=device)
    if is_adapter(local_directory(directory)):
        try:
            if wrapping(model):
                merge(model)
        except AdaptError as error:
            raise WeightsError(f"{directory}: no training starts from this adapter: {error}") from None
        dequantize(model)
        absorb(model)
        model.requires_grad_(True)
    return model


def parent_hash(directory: str) -> str:
    """Of the weights of a model that a run builds on."""
    return weights_hash(load_parent(directory))


def load_start(directory: str, device: str = "cpu") -> Any:
    """A model to continue from. What its foundling.json calls pruned stays zero in training."""
    model, manifest = load_parent(directory, device), local_directory(directory) / MANIFEST
    pruned = read_manifest(manifest.parent).get("pruned") if manifest.is_file() else None
    if pruned is not None:
        pattern = pruned.get("pattern") if isinstance(pruned, dict) else None
        if not isinstance(pattern, str) or len(pattern) > PATTERN_CHARS:
            raise WeightsError(f"{manifest}: 'pruned' has no pattern of at most {PATTERN_CHARS} characters")
        keep_zeros(model, pattern)
    return model


def find_origin(given: dict[str, Any]) -> Origin:
    """Of the model section of a request. ConfigError where keys exclude each other or a field is unknown."""
    overrides, directory, preset = dict(given.get("fields", {})), given.get("directory"), given.get("preset")
    name = family_for(given)
    if (directory and preset) or given.get("family", name) != name:
        flags = {"family": "--family", "preset": "--preset", "directory": "--from"}
        named = [flag for key, flag in flags.items() if given.get(key)]
        raise ConfigError(f"{' and '.join(named)} both name the model; leave one out")
    if directory:
        model = load_start(directory)
        found, fields, digest = family_of(model), to_dict(model.config), weights_hash(model)
        changed = sorted(key for key, value in overrides.items() if key not in fields or fields[key] != value)
        if changed:
            flag = changed[0].replace("_", "-")
            raise ConfigError(f"--from {directory} keeps the size of that model; leave --model.{flag} out")
        check_hash(directory, digest, given.get("weights_hash"))
        return Origin(found.name, fields, {}, directory=directory, model=model, weights_hash=digest)
    check_sizes(family(name), overrides, where=f"{name} configuration")
    if preset:
        fields = find_preset(preset)[1]
        return Origin(name, check_fields(name, fields | overrides), overrides, preset=preset)
    return Origin(name, None, overrides)


def check_fields(name: str, fields: dict[str, Any]) -> dict[str, Any]:
    """The whole configuration, checked; ConfigError naming the field."""
    return to_dict(configuration(family(name), fields, where=f"{name} configuration"))


def build_model(recipe: Recipe) -> Any:
    """The model as training starts, on the recipe's device."""
    spec = recipe.model
    if spec.directory:
        return load_start(spec.directory, device=recipe.runtime.device)
    model = build(spec.family, device=recipe.runtime.device, **spec.fields)
    draw_start(model, recipe)
    return model


def draw_start(model: Any, recipe: Recipe) -> str:
    """Gives a new model the weights that training starts from: random ones, and those of a teacher that reads masked
    text where they fit (Sanh et al. 2019, section 3). Returns what to say of it."""
    initialise(model, generator("init", recipe.seed))
    teacher = recipe.objective.teacher
    if not teacher or measured_as(recipe.objective.kind, recipe.model.family) != "masked":
        return ""
    try:
        taken = start_from_layers(model, load(teacher))
    except AdaptError as error:
        return f"note: the student starts at random: {error}"
    return f"the student starts from the teacher's embeddings, head and layers {', '.join(map(str, taken))}"


def check_parents(recipe: Recipe) -> None:
    """MismatchError where a directory that the recipe builds on has other weights than it had."""
    for directory, expected in parents(recipe).items():
        if not is_hub(directory) and not Path(directory).is_dir():
            raise MismatchError(f"{directory}, which the recipe starts from, is not there; {RESTORE}")
        check_hash(directory, parent_hash(directory), expected)


def check_hash(directory: str, found: str, expected: str | None) -> None:
    """MismatchError unless these are the weights that a recipe, where there is one, was resolved with."""
    if expected not in (None, found):
        raise MismatchError(
            f"{directory} has weights {found[:12]}, the recipe was resolved with {str(expected)[:12]}; {RESTORE}"
        )


def with_parents(recipe: Recipe, directories: Sequence[str]) -> Recipe:
    """The recipe with the parents that are found in `directories`, by their weights; ConfigError for a directory that
    is none of them."""
    for directory in directories:
        digest, model, objective = parent_hash(directory), recipe.model, recipe.objective
        if digest not in parents(recipe).values():
            raise ConfigError(f"--parent {directory} has weights {digest[:12]}, none that the recipe starts from")
        if model.weights_hash == digest:
            recipe = replace(recipe, model=replace(model, directory=directory))
        if objective.teacher_hash == digest:
            recipe = replace(recipe, objective=replace(objective, teacher=directory))
        for known, of_reward in recipe.rollout.reward_hashes.items():
            if of_reward == digest:
                recipe = replace(recipe, rollout=_moved(recipe.rollout, known, directory))
    return recipe


def _moved(rollout: RolloutSpec, old: str, new: str) -> RolloutSpec:
    """With another directory of a reward model."""
    names = tuple(renamed(text, {old: new}) for text in rollout.reward)
    hashes = {new if directory == old else directory: digest for directory, digest in rollout.reward_hashes.items()}
    return replace(rollout, reward=names, reward_hashes=hashes)


def parents(recipe: Recipe) -> dict[str, str]:
    """directory -> hash of its weights, of all models that the run starts from."""
    pairs = (
        (recipe.model.directory, recipe.model.weights_hash),
        (recipe.objective.teacher, recipe.objective.teacher_hash),
        *recipe.rollout.reward_hashes.items(),
    )
    return {directory: digest for directory, digest in pairs if directory and digest}


def parent_records(recipe: Recipe) -> list[dict[str, str]]:
    """What a manifest says of the parents; of an adapter, which was merged with its base, also the hash of its own
    tensors, where it is still there."""
    records = list[dict[str, str]]()
    for directory, digest in parents(recipe).items():
        record = {"name": place_name(directory), "weights_hash": digest}
        with suppress(FoundlingError, OSError):
            if is_adapter(folder := local_directory(directory)):
                record["adapter"] = adapter_hash(folder)
        records.append(record)
    return records


def no_prediction(recipe: Recipe) -> str:
    """The text that is shown where no loss is predicted."""
    return "no loss prediction for " + ("continued training" if recipe.model.directory else "this objective")


def objective_for(request: Request) -> str:
    """The objective of a request: as given, or as its family is usually raised; ConfigError where it does not fit."""
    given, teacher = request.get("objective.kind"), request.get("objective.teacher")
    name = family_for(request.get("model", {}))
    check_sizes(family(name), request.get("model.fields", {}), where=f"{name} configuration")
    kind = FAMILIES[name].kind
    if kind not in OBJECTIVES:
        known = ", ".join(n for n, entry in FAMILIES.items() if entry.kind in OBJECTIVES)
        raise ConfigError(f"family '{name}' is not raised from text; use one of {known}")
    known = OWN.get(name, OBJECTIVES[kind])
    chosen = given or ("distill" if teacher else known[0])
    if chosen not in known:
        raise ConfigError(f"objective '{chosen}' is not for {name}; known: {', '.join(known)}")
    if (chosen == "distill") != bool(teacher):
        raise ConfigError("distillation needs a teacher: give --teacher DIR, and no other objective")
    return chosen


def objective_of(request: Request) -> ObjectiveSpec:
    """With what was given of its section, and the hash of a teacher's weights."""
    kind, given, name = objective_for(request), request.get("objective", {}), family_for(request.get("model", {}))
    reads, measured = fields_read(kind, name), measured_as(kind, name)
    for field, value in given.items():
        if field not in ("kind", *reads) and value != getattr(ObjectiveSpec, field):  # a written recipe has all
            whose = "" if measured == kind else f" of a model of the kind '{FAMILIES[name].kind}'"
            raise ConfigError(f"--{field.replace('_', '-')} is not for the objective '{kind}'{whose}; leave it out")
    if measured != "causal" and request.get("data.fim_rate"):
        raise ConfigError(f"--fim-rate is not for the objective '{kind}'; leave it out")
    values = {**given, "kind": kind}
    if teacher := given.get("teacher"):
        model = load(teacher)
        check_teacher(teacher, model, name)
        values["teacher_hash"] = weights_hash(model)
        check_hash(teacher, values["teacher_hash"], given.get("teacher_hash"))
    return from_dict(ObjectiveSpec, values, where="objective")


def check_teacher(directory: str, model: Any, student: str) -> None:
    """ConfigError where `model`, loaded from there, cannot teach a model of the family `student`."""
    found, kind = family_of(model), FAMILIES[student].kind
    if found.kind != kind:
        raise ConfigError(
            f"the teacher {directory} is of the kind '{found.kind}' ({found.name}), its student of the kind '{kind}' "
            f"({student}); both need the same"
        )
    if "distill" not in OWN.get(found.name, OBJECTIVES[kind]):
        raise ConfigError(f"the teacher {directory} is of the family '{found.name}', which is not distilled")
    if model.head is None:
        raise ConfigError(f"the teacher {directory} has no head over its vocabulary; take a model that has one")


def parent_config(directory: str) -> Any:
    """The configuration in the config.json of a model directory, without what its weights alone tell."""
    return _parent(directory)[1]


def _parent(directory: str) -> tuple[Family, Any]:
    file = local_directory(directory) / "config.json"
    return read_config(read_json(file), str(file))[:2]


def teacher_cost(objective: ObjectiveSpec, seq_len: int) -> FrozenCost:
    """Memory and FLOPs per token that a teacher, where there is one, adds to a step."""
    if objective.teacher is None:
        return NO_TEACHER
    found, config = _parent(objective.teacher)
    return frozen_cost(skeleton(found.name, to_dict(config)), seq_len)


def check_unused(given: dict[str, Any]) -> None:
    """ConfigError for a setting that the others make meaningless: it would be ignored."""
    optim, schedule = given.get("optim", {}), given.get("schedule", {})
    for name in ("matrix_learning_rate", "momentum"):
        if optim.get("optimizer") == "adamw" and optim.get(name) not in (None, getattr(OptimOptions, name)):
            raise ConfigError(f"--{name.replace('_', '-')} is Muon's; with --optimizer adamw leave it out")
    if schedule.get("kind") == "cosine" and schedule.get("decay_share") not in (None, ScheduleSpec.decay_share):
        raise ConfigError("--decay-share is for --schedule wsd; with cosine leave it out")
