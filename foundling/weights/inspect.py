# SPDX-License-Identifier: Apache-2.0
"""Describes a model directory from its headers: the tree of modules with shapes, parameters and stored bytes."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

from torch import nn

from foundling.adapt.heads import SCORE, register
from foundling.config import to_dict
from foundling.models import count_parameters
from foundling.runtime.files import read_json
from foundling.runtime.hub import local_directory
from foundling.weights.adapter_layout import CONFIG, FILE
from foundling.weights.convert.diffusers import tensors_folder
from foundling.weights.directory import compared, opened, persistent_tensors, skeleton
from foundling.weights.heads import empty_head
from foundling.weights.loading import is_adapter
from foundling.weights.manifest import MANIFEST, read_manifest
from foundling.weights.tensors import tensors_of

BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "U8": 1, "BOOL": 1, "MXFP4": 17 / 32}


def inspect(directory: str | Path, *, depth: int | None = None) -> dict[str, Any]:
    """Returns {'family', 'kind', 'about', 'config', 'parameters', 'tensors', 'files', 'dtypes', 'bytes', 'tree'}.

    Builds the model on the meta device and compares it with the headers, as `load` does, and raises the same
    WeightsError. It reads no tensor, except to compare head and embedding if the configuration calls them tied.

    A node of the tree is {'name', 'kind', 'times', 'parameters', 'bytes', 'tensors', 'parts'}. Equal siblings are
    merged into one node with the totals of all and the `parts` of one. `depth` 0 gives the root alone, None the whole
    tree. Of an adapter's directory it returns what `inspect_adapter` does.
    """
    if is_adapter(local_directory(directory)):
        return inspect_adapter(local_directory(directory))
    folder = tensors_folder(local_directory(directory))
    with opened(folder) as (family, config, _, tensors, head):
        model = skeleton(family, config, str(folder / "config.json"), tensors, scores=head is not None)
        dtypes, stored, ours = dict[str, int](), dict[str, tuple[str, int]](), persistent_tensors(model)
        for link, names in compared(tensors, family, model):
            headers = [(tensors.dtype(name), math.prod(tensors.shape(name, tuple(BYTES)))) for name in names]
            for kind, size in headers:
                dtypes[kind] = dtypes.get(kind, 0) + size
            for name in link.ours:  # one published tensor may hold several of ours
                stored[name] = headers[0][0], int(ours[name].numel() * BYTES[headers[0][0]])
        if head is not None:
            described, tensors = head
            register(model, empty_head(model, described, tensors))
            ours = persistent_tensors(model)
            for part, name in described.names.items():
                kind, size = tensors.dtype(name), math.prod(tensors.shape(name, tuple(BYTES)))
                dtypes[kind] = dtypes.get(kind, 0) + size
                stored[f"{SCORE}.{part}"] = kind, int(size * BYTES[kind])
        n_files, n_tensors = len({id(file) for file in tensors.files.values()}), len(tensors)
    total = count_parameters(model)
    names = {id(t): name for name, t in ours.items()}
    return {
        "family": family.name,
        "kind": family.kind,
        "about": family.about,
        "config": to_dict(config),
        "parameters": total,
        "tensors": n_tensors,
        "files": n_files,
        "dtypes": dtypes,
        "bytes": {
            "stored": int(sum(size * BYTES[kind] for kind, size in dtypes.items())),
            "float32": 4 * total["total"],
            "bfloat16": 2 * total["total"],
        },
        "tree": _module_tree("", model, names, stored, set(), math.inf if depth is None else depth),
    }


def inspect_adapter(folder: Path) -> dict[str, Any]:
    """Of an adapter's directory, from its headers: {'kind': 'adapter', 'peft_type', 'base': {'place', 'weights_hash',
    'dtype', 'quantized'}, 'rank', 'alpha', 'target_modules', 'parameters', 'tensors', 'dtypes', 'bytes'}. What the
    files do not say is None. The base is not read."""
    config = read_json(folder / CONFIG)
    manifest = read_manifest(folder) if (folder / MANIFEST).is_file() else {}
    dtypes, parameters = dict[str, int](), 0
    with tensors_of(folder, FILE) as tensors:
        for name in tensors:
            size = math.prod(tensors.shape(name))
            dtypes[tensors.dtype(name)] = dtypes.get(tensors.dtype(name), 0) + size
            parameters += size
        n_tensors = len(tensors)
    return {
        "kind": "adapter",
        "peft_type": config.get("peft_type"),
        "base": {
            "place": config.get("base_model_name_or_path"),
            "weights_hash": manifest.get("base"),
            "dtype": manifest.get("base_dtype"),
            "quantized": manifest.get("quantized"),
        },
        "rank": config.get("r"),
        "alpha": config.get("lora_alpha"),
        "target_modules": config.get("target_modules"),
        "parameters": parameters,
        "tensors": n_tensors,
        "dtypes": dtypes,
        "bytes": int(sum(size * BYTES[kind] for kind, size in dtypes.items())),
    }


def _module_tree(
    name: str, module: nn.Module, names: dict[int, str], stored: dict[str, tuple[str, int]], counted: set[int],
    depth: float,
) -> dict[str, Any]:  # fmt: skip
    tensors, parameters, size = {}, 0, 0
    for leaf, t in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
        if id(t) not in names:  # a buffer that is computed, not stored
            continue
        dtype, n_bytes = stored[names[id(t)]]
        tensors[leaf] = {"shape": list(t.shape), "dtype": dtype}
        if id(t) in counted:
            tensors[leaf]["tied"] = names[id(t)]
            continue
        counted.add(id(t))
        parameters, size = parameters + t.numel() * isinstance(t, nn.Parameter), size + n_bytes
    parts = [_module_tree(child, m, names, stored, counted, depth - 1) for child, m in module.named_children()]
    parts = [part for part in parts if part["tensors"] or part["parts"] or part["parameters"]]
    return {
        "name": name,
        "kind": type(module).__name__,
        "times": 1,
        "parameters": parameters + sum(part["parameters"] for part in parts),
        "bytes": size + sum(part["bytes"] for part in parts),
        "tensors": tensors,
        "parts": _merge_equal(parts) if depth > 0 else [],
    }


def _merge_equal(parts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Merges equal elements of a list into one node."""
    groups: list[list[dict[str, Any]]] = []
    for part in parts:
        matching = (g for g in groups if part["name"].isdigit() and g[0] | {"name": ""} == part | {"name": ""})
        group = next(matching, None)
        if group is None:
            groups.append([part])
        else:
            group.append(part)
    return [
        group[0]
        | {
            "name": _span([part["name"] for part in group]),
            "times": len(group),
            "parameters": sum(part["parameters"] for part in group),
            "bytes": sum(part["bytes"] for part in group),
        }
        for group in groups
    ]


def _span(names: list[str]) -> str:
    """['0', '1', '2'] -> '0-2'; ['0', '2', '4'] -> '0-4 by 2'; others are listed."""
    if len(names) < 3:
        return ", ".join(names)
    numbers = [int(name) for name in names]
    step = numbers[1] - numbers[0]
    if any(b - a != step for a, b in itertools.pairwise(numbers)):
        return ", ".join(names)
    return f"{names[0]}-{names[-1]}" + (f" by {step}" if step > 1 else "")
