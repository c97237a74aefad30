# SPDX-License-Identifier: Apache-2.0
"""Merges model directories of one architecture into a new one, tensor by tensor: one tensor of each is in memory."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from torch import Tensor

from foundling.adapt.combine import average, slerp, task, ties
from foundling.config import to_dict
from foundling.errors import ConfigError, MismatchError, WeightsError
from foundling.limits import COMPANION_BYTES, Limit, shown
from foundling.models import Family
from foundling.runtime.files import read_json, require_free, require_space, write_directory, write_json
from foundling.runtime.hub import local_directory, place_name
from foundling.text.tokenizer import NAMES_CODE
from foundling.weights.convert.hugging_face import companions
from foundling.weights.directory import (
    compared,
    converted,
    hash_of,
    opened,
    persistent_tensors,
    skeleton,
    write_config_file,
)
from foundling.weights.keys import Link
from foundling.weights.manifest import MANIFEST, check, read_manifest, write_manifest
from foundling.weights.tensors import FLOATS, INTEGERS, MAX_SHARD_BYTES, TORCH_TYPES, Header, Tensors, stream_tensors

Method = Literal["average", "slerp", "ties", "task"]
MODELS = Limit(64, "models that are merged at once")
TOKENS = ("model", "added_tokens", "normalizer", "pre_tokenizer", "decoder")
"""Parts of tokenizer.json that decide the ids of a text."""


@dataclass(frozen=True)
class CombineOptions:
    """ConfigError for a value out of range."""

    method: Method = "average"
    """average: weighted mean; slerp: along the arc between two; ties: trimmed differences from a base, where signs
    agree; task: weighted differences added to a base"""
    weights: tuple[float, ...] | None = None
    """one for each model: average and slerp take shares of their sum, equal by default; ties 1 each by default; task
    multiplies each difference by its own and has no default"""
    density: float = 0.2
    """ties: share of each difference that is kept"""

    def __post_init__(self) -> None:
        if self.method not in get_args(Method):
            raise ConfigError(f"'method' is {shown(self.method)}; use {', '.join(get_args(Method))}")
        if not 0 < self.density <= 1:
            raise ConfigError(f"'density' is {self.density}, expected above 0, at most 1")
        low = -math.inf if self.method == "task" else 0
        for weight in self.weights or ():
            if not (math.isfinite(weight) and weight >= low):
                raise ConfigError(f"'weights' has {weight}, expected numbers of 0 or more")
        if self.weights is not None and not any(self.weights):
            raise ConfigError(f"'weights' are {list(self.weights)}; at least one has to be above 0")

    def weights_for(self, n_models: int) -> list[float]:
        if self.weights is None and self.method == "task":
            raise ConfigError("method 'task' needs weights, such as --weights 0.4,0.4: how much of each difference")
        weights = [1.0] * n_models if self.weights is None else list(self.weights)
        if len(weights) != n_models:
            raise ConfigError(f"{len(weights)} weights for {n_models} models; give one for each, without the base")
        return weights


class _Source(NamedTuple):
    """A directory whose headers were read."""

    place: str | Path
    directory: Path
    family: Family
    model: Any
    """on the meta device"""
    tensors: Tensors
    links: list[tuple[Link, list[str]]]
    names: dict[str, str]
    """published name -> the name in this directory"""


def combine(
    directories: list[str | Path], out: str | Path, options: CombineOptions, *, base: str | Path | None = None
) -> dict[str, Any]:
    """Writes the merged model to `out`, in the types that `base` has, or the first directory where there is none, from
    where it takes tokenizer, chat template and generation settings too. foundling.json names the parents by hash.

    Numbers that count (I64 …) are those of base or first. ConfigError for models and options that do not go together,
    MismatchError, naming what differs, for another architecture, size or tokenizer, WeightsError for damaged
    directories, OutputError if `out` is not empty; nothing is written then.
    """
    weights, out = _check(directories, options, base), Path(out)
    require_free(out)
    with ExitStack() as stack:
        sources = [_open(place, stack) for place in ([] if base is None else [base]) + directories]
        for source in sources[1:]:
            _compare(sources[0], source)
        first, models = sources[0], sources[0 if base is None else 1 :]
        headers = {theirs: _header(first.tensors, name) for theirs, name in first.names.items()}
        files = [path for path in companions(first.directory)[0] if path.name != "README.md"]
        require_space(out, sum(header.nbytes for header in headers.values()))

        def compute(name: str) -> Tensor:
            read = [source.tensors.read(source.names[name]) for source in models]
            start = read[0] if base is None else first.tensors.read(first.names[name])
            if not start.is_floating_point():
                return start
            merged = _merged(options, weights, start, read)
            return converted(merged, start.dtype, f"{out}: {name}")

        def fill(temporary: Path) -> None:
            weights_file = first.family.module.CONFIG.weights
            dtype = TORCH_TYPES[next(iter(headers.values())).dtype]
            write_config_file(first.model, dtype, temporary)
            stream_tensors(headers, compute, temporary, weights_file, MAX_SHARD_BYTES)
            for path in files:
                _copy(path, temporary)
            about = {
                "weights_hash": _hash(_open(temporary, stack)),
                "merge": {"method": options.method, "weights": weights}
                | ({"density": options.density} if options.method == "ties" else {}),
                "parents": [_parent(source) for source in sources],
            }
            write_manifest(temporary, about)

        write_directory(out, fill)
        return {
            "out": str(out), "family": first.family.name, "method": options.method, "weights": weights,
            "tensors": len(headers), "parents": [_parent(source) for source in sources],
            "kept": [path.name for path in files],
        }  # fmt: skip


def _check(directories: list[str | Path], options: CombineOptions, base: str | Path | None) -> list[float]:
    n, needs_base = len(directories), options.method in ("ties", "task")
    MODELS.check(n, "the number of models")
    if needs_base and base is None:
        raise ConfigError(f"method '{options.method}' adds differences to a base; name it with --base DIR")
    if not needs_base and base is not None:
        raise ConfigError(f"method '{options.method}' has no base; leave --base out, or use ties or task")
    if options.method == "slerp" and n != 2:
        raise ConfigError(f"method 'slerp' merges two models, {n} were given; use average for more")
    if n < 2 and options.method != "task":
        raise ConfigError(f"method '{options.method}' merges two models or more, {n} was given")
    return options.weights_for(n)


def _merged(options: CombineOptions, weights: list[float], start: Tensor, read: list[Tensor]) -> Tensor:
    if options.method == "slerp":
        return slerp(read[0], read[1], weights[1] / sum(weights))
    if options.method == "ties":
        return ties(start, read, weights, options.density)
    return task(start, read, weights) if options.method == "task" else average(read, weights)


def _open(place: str | Path, stack: ExitStack) -> _Source:
    directory = local_directory(place)
    if (directory / MANIFEST).is_file() and (problems := check(directory)["problems"]):
        raise WeightsError(f"{directory}: {'; '.join(problems)}")
    family, config, inert, tensors, _ = stack.enter_context(opened(directory))
    model = skeleton(family, config, str(directory / "config.json"), tensors)
    model.inert = {key: value for key, value in inert.items() if key != NAMES_CODE}
    links = compared(tensors, family, model)
    names = {theirs: name for link, stored in links for theirs, name in zip(link.theirs, stored, strict=True)}
    return _Source(place, directory, family, model, tensors, links, names)


def _header(tensors: Tensors, name: str) -> Header:
    return Header(tensors.dtype(name), tensors.shape(name, FLOATS + INTEGERS))


def _compare(a: _Source, b: _Source) -> None:
    """MismatchError, naming what differs. Rates of dropout may: they are not of the weights."""
    if a.family.name != b.family.name:
        raise MismatchError(f"{a.directory} is a {a.family.name}, {b.directory} a {b.family.name}; merge one family")
    ours, theirs = to_dict(a.model.config), to_dict(b.model.config)
    differing = [key for key in ours if ours[key] != theirs[key] and not key.endswith("dropout")]
    if differing:
        key = differing[0]
        more = f" (and {', '.join(differing[1:])})" if differing[1:] else ""
        raise MismatchError(
            f"{key} is {shown(ours[key])} in {a.directory} and {shown(theirs[key])} in {b.directory}{more}; "
            "only models of one shape can be merged"
        )
    if a.names.keys() != b.names.keys():
        name = min(a.names.keys() ^ b.names.keys())
        raise MismatchError(f"tensor '{name}' is in one of {a.directory} and {b.directory} only")
    files = [source.directory / "tokenizer.json" for source in (a, b)]
    if all(file.is_file() for file in files):
        parts = [read_json(file, COMPANION_BYTES.high) for file in files]
        for part in TOKENS:
            if parts[0].get(part) != parts[1].get(part):
                raise MismatchError(
                    f"'{part}' of tokenizer.json differs between {a.directory} and {b.directory}; "
                    "one id would stand for two tokens"
                )


def _hash(source: _Source) -> str:
    """weights_hash of the model as it is stored."""
    places = {name: (link, stored, i) for link, stored in source.links for i, name in enumerate(link.ours)}

    def tensors() -> Iterator[tuple[str, Tensor]]:
        for name in sorted(persistent_tensors(source.model)):
            link, stored, i = places[name]
            yield name, link.to_ours([source.tensors.read(part) for part in stored])[i]

    return hash_of(tensors())


def _parent(source: _Source) -> dict[str, str]:
    """Its name and the hash of its weights, computed where its foundling.json does not say it."""
    manifest = read_manifest(source.directory) if (source.directory / MANIFEST).is_file() else {}
    known = manifest.get("weights_hash")
    return {"name": place_name(source.place), "weights_hash": known if isinstance(known, str) else _hash(source)}


def _copy(path: Path, directory: Path) -> None:
    """A companion without what names code."""
    values = read_json(path, COMPANION_BYTES.high) if path.suffix == ".json" else {}
    if values.pop(NAMES_CODE, None) is None:
        (directory / path.name).write_bytes(path.read_bytes())
    else:
        write_json(directory / path.name, values)
