# SPDX-License-Identifier: Apache-2.0
"""Checkpoints: directories written under a temporary name and renamed, with a hash of each file. Training resumes from
the newest whole one. Tensors are safetensors, the rest is JSON."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from foundling.contracts.data import Batches, ResumableBatches
from foundling.errors import ConfigError, OutputError, WeightsError
from foundling.runtime.distributed import barrier, is_first_rank, rank_count
from foundling.runtime.files import remove_files, sha256, write_directory
from foundling.train.buffers import changing_buffers
from foundling.train.ema import EMA
from foundling.train.parallel import local, part_of
from foundling.train.state import TrainState
from foundling.weights.directory import hash_of, persistent_tensors, whole
from foundling.weights.manifest import MANIFEST, check, read_manifest, write_manifest

KEEP = 2
_NAME = re.compile(r"step-\d{8,}")
STATE = "state.safetensors"


def save_checkpoint(
    directory: Path, state: TrainState, about: dict[str, Any], *, batches: Batches | None = None
) -> Path:
    """Writes directory/step-00000123 and removes all but the last two once it is safe. `about` is any JSON of the
    caller's. The state of `batches` is saved where they have one (ResumableBatches), else they resume by number.

    Every rank calls, the first one writes; what is written does not depend on the number of ranks.
    """
    state.settle()
    path = directory / f"step-{state.step:08d}"
    tensors = _tensors(state)
    progress: dict[str, Any] = {"step": state.step, "skipped": state.skipped}
    progress["frozen"] = _frozen_hashes(state)
    progress["ema"] = {name: ema.decay for name, ema in state.ema.items()}
    if isinstance(batches, ResumableBatches):
        if rank_count() > 1:
            raise ConfigError("batches with a state of their own cannot be saved by several ranks; train on one")
        values, of_batches = split_tensors(batches.state_dict())
        progress["batches"] = values
        tensors |= {f"batches/{name}": t for name, t in of_batches.items()}
    if not is_first_rank():
        barrier()
        return path
    if path.exists():  # left by a run that was stopped after it; the same step gives the same bytes
        _remove(path)

    def fill(temporary: Path) -> None:
        save_file({n: t.detach().cpu().contiguous() for n, t in tensors.items()}, temporary / STATE)
        write_manifest(temporary, {**about, **progress})

    write_directory(path, fill)
    older = [p for p in checkpoints(directory) if p.name < path.name]
    for old in older[: len(older) + 1 - KEEP]:
        with suppress(OutputError):
            _remove(old)
    barrier()
    return path


def _remove(checkpoint: Path) -> None:
    """Its own files; what somebody else has put there stays."""
    remove_files(checkpoint, (MANIFEST, STATE))


def _tensors(state: TrainState) -> dict[str, Tensor]:
    """Everything that training changes but numbers, by name, whole; a collective where parameters are sharded."""
    tensors = {f"buffers/{name}": t for name, t in state.buffers.items()}
    for name in state.models:
        tensors |= {f"models/{name}/{n}": whole(t.detach()) for n, t in _parts(state, name)[0].items()}
    for kind, holders in (("optimizers", state.optimizers), ("ema", state.ema)):
        for name, holder in holders.items():
            tensors |= {f"{kind}/{name}/{n}": t for n, t in holder.state_tensors().items()}
    return tensors


def _parts(state: TrainState, name: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """(what is saved of a model, what is not: frozen parameters and constant buffers, which adapters leave as they
    are). A model that is not trained is saved whole."""
    model, optimizer = state.models[name], state.optimizers.get(name)
    tensors = persistent_tensors(model)
    if optimizer is None:
        return tensors, {}
    changing = optimizer.params.keys() | changing_buffers(model).keys()
    return (
        {n: t for n, t in tensors.items() if n in changing},
        {n: t for n, t in tensors.items() if n not in changing},
    )


def _frozen_hashes(state: TrainState) -> dict[str, str]:
    """Of what is not saved, by model; computed once, since it does not change."""
    for name in state.models:
        if name not in state.frozen and (frozen := _parts(state, name)[1]):
            state.frozen[name] = hash_of((n, whole(t.detach())) for n, t in sorted(frozen.items()))
    return state.frozen


def checkpoints(directory: Path) -> list[Path]:
    """Oldest first."""
    return sorted(p for p in directory.glob("step-*") if _NAME.fullmatch(p.name) and p.is_dir())


def latest_checkpoint(directory: Path, known: Mapping[str, str] | None = None) -> tuple[Path | None, list[str]]:
    """The newest whole checkpoint, and a line for each damaged one that was skipped. `known`: the SHA-256 of each
    checkpoint's foundling.json, by its folder's name, where somebody has kept it; others are skipped too."""
    damaged = []
    for path in reversed(checkpoints(directory)):
        try:
            if known is not None and known.get(path.name) != sha256(path / MANIFEST):
                problems = ["was not written by this run, or not to its end"]
            else:
                problems = check(path)["problems"]
        except (WeightsError, OSError) as error:
            problems = [str(error)]
        if not problems:
            return path, damaged
        damaged.append(f"{path.name}: {problems[0]}")
    return None, damaged


def load_checkpoint(path: Path, state: TrainState, *, batches: Batches | None = None) -> dict[str, Any]:
    """Puts the checkpoint into `state`, and into `batches` where they have a state, in place; returns the manifest with
    what was saved as `about`. WeightsError for a checkpoint that is damaged or of other models; the EMA of a
    checkpoint is taken over where `state` has none."""
    manifest = read_manifest(path)
    try:
        tensors = load_file(path / STATE)
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path / STATE}: damaged ({str(error).splitlines()[0]})") from None
    for name, decay in manifest["ema"].items():
        if name in state.models and name not in state.ema:
            state.ema[name] = EMA(state.models[name], decay)
    targets = {f"buffers/{n}": t for n, t in state.buffers.items()}
    for name in state.models:
        targets |= {f"models/{name}/{n}": t for n, t in _parts(state, name)[0].items()}
    stored = {n for n in tensors if n.startswith(("models/", "buffers/"))}
    if differing := sorted(stored ^ targets.keys()):
        raise WeightsError(f"{path}: its tensors are not those of this model: '{differing[0]}' is in one only")
    if state.ema.keys() != manifest["ema"].keys():
        raise WeightsError(f"{path}: has an EMA of {list(manifest['ema'])}, this run of {list(state.ema)}")
    if manifest.get("frozen", {}) != _frozen_hashes(state):
        raise WeightsError(f"{path}: the frozen weights are not those that it was trained on; load the same base")
    for name, target in targets.items():
        if tensors[name].shape != target.shape:
            raise WeightsError(f"{path}: '{name}' is {list(tensors[name].shape)}, the model has {list(target.shape)}")
        local(target.detach()).copy_(part_of(tensors[name], target))
    for kind, holders in (("optimizers", state.optimizers), ("ema", state.ema)):
        for name, holder in holders.items():
            holder.load_state_tensors(_below(tensors, f"{kind}/{name}/"))
    if isinstance(batches, ResumableBatches):
        if "batches" not in manifest:
            raise WeightsError(f"{path}: has no state of the batches; it was saved without `batches=`")
        batches.load_state_dict(join_tensors(manifest["batches"], _below(tensors, "batches/")))
    state.step, state.skipped, state.unread = int(manifest["step"]), int(manifest["skipped"]), None
    return manifest


def _below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}


TENSOR = "$tensor"
"""The key that marks where a tensor was, in the JSON of a state."""


def split_tensors(state: Any) -> tuple[Any, dict[str, Tensor]]:
    """A state of dicts, lists, numbers, texts and tensors -> (JSON, its tensors by name). ConfigError for anything
    else, which neither JSON nor safetensors could hold."""
    tensors: dict[str, Tensor] = {}

    def split(value: Any, path: str) -> Any:
        if isinstance(value, Tensor):
            name = f"{len(tensors)}{path}"
            tensors[name] = value.detach().clone()  # safetensors refuses views that share memory
            return {TENSOR: name}
        if value is None or isinstance(value, (bool, int, str)) or (isinstance(value, float) and math.isfinite(value)):
            return value
        if isinstance(value, (list, tuple)):
            return [split(item, f"{path}.{i}") for i, item in enumerate(value)]
        if isinstance(value, dict) and TENSOR not in value and all(isinstance(key, str) for key in value):
            return {key: split(item, f"{path}.{key}") for key, item in value.items()}
        raise ConfigError(
            f"state_dict(){path} is {type(value).__name__} {value!r:.40}, which a checkpoint cannot hold; use finite "
            "numbers, texts, tensors, and lists and dicts (with texts as keys) of them"
        )

    return split(state, ""), tensors


def join_tensors(value: Any, tensors: dict[str, Tensor]) -> Any:
    """The inverse of `split_tensors`; tuples come back as lists."""
    if isinstance(value, dict):
        return tensors[value[TENSOR]] if TENSOR in value else {k: join_tensors(v, tensors) for k, v in value.items()}
    return [join_tensors(item, tensors) for item in value] if isinstance(value, list) else value
