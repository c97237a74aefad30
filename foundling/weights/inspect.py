# SPDX-License-Identifier: Apache-2.0
"""What a model directory holds, by its headers: the tree of modules with shapes, parameters and stored bytes."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

from torch import nn

from foundling.config import to_dict
from foundling.models import count_parameters
from foundling.weights.convert.diffusers import tensors_folder
from foundling.weights.directory import compared, opened, persistent_tensors, skeleton

BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "U8": 1, "BOOL": 1}


def inspect(directory: str | Path, *, depth: int | None = None) -> dict[str, Any]:
    """{'family', 'kind', 'about', 'config', 'parameters', 'tensors', 'files', 'dtypes', 'bytes', 'tree'}. The model is
    built on the meta device and compared with the headers as on loading, so a directory that would not load raises the
    same WeightsError. No tensor is read, except a head beside an embedding that the configuration calls tied.

    A part of the tree is {'name', 'kind', 'times', 'parameters', 'bytes', 'tensors', 'parts'}. Equal siblings are one
    part with the totals of all and the `parts` of one. `depth` 0 is the model alone, None the whole tree.
    """
    folder = tensors_folder(Path(directory))
    with opened(folder) as (found, config, _, tensors):
        model = skeleton(found, config, str(folder / "config.json"), tensors)
        kinds, stored, ours = dict[str, int](), dict[str, tuple[str, int]](), persistent_tensors(model)
        for link, names in compared(tensors, found, model):
            held = [(tensors.dtype(name), math.prod(tensors.shape(name, tuple(BYTES)))) for name in names]
            for kind, size in held:
                kinds[kind] = kinds.get(kind, 0) + size
            for name in link.ours:  # several of ours share what one of theirs holds, by their sizes
                stored[name] = held[0][0], ours[name].numel() * BYTES[held[0][0]]
        n_files, n_tensors = len({id(file) for file in tensors.files.values()}), len(tensors)
    total = count_parameters(model)
    names = {id(t): name for name, t in ours.items()}
    return {
        "family": found.name,
        "kind": found.kind,
        "about": (found.module.__doc__ or "").strip().splitlines()[0],
        "config": to_dict(config),
        "parameters": total,
        "tensors": n_tensors,
        "files": n_files,
        "dtypes": kinds,
        "bytes": {
            "stored": sum(size * BYTES[kind] for kind, size in kinds.items()),
            "float32": 4 * total["total"],
            "bfloat16": 2 * total["total"],
        },
        "tree": _part("", model, names, stored, set(), math.inf if depth is None else depth),
    }


def _part(
    name: str, module: nn.Module, names: dict[int, str], stored: dict[str, tuple[str, int]], seen: set[int],
    depth: float,
) -> dict[str, Any]:  # fmt: skip
    tensors, parameters, size = {}, 0, 0
    for leaf, t in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
        if id(t) not in names:  # a buffer that is computed, not stored
            continue
        dtype, n_bytes = stored[names[id(t)]]
        tensors[leaf] = {"shape": list(t.shape), "dtype": dtype}
        if id(t) in seen:
            tensors[leaf]["tied"] = names[id(t)]
            continue
        seen.add(id(t))
        parameters, size = parameters + t.numel() * isinstance(t, nn.Parameter), size + n_bytes
    parts = [_part(child, m, names, stored, seen, depth - 1) for child, m in module.named_children()]
    parts = [part for part in parts if part["tensors"] or part["parts"] or part["parameters"]]
    return {
        "name": name,
        "kind": type(module).__name__,
        "times": 1,
        "parameters": parameters + sum(part["parameters"] for part in parts),
        "bytes": size + sum(part["bytes"] for part in parts),
        "tensors": tensors,
        "parts": _gathered(parts) if depth > 0 else [],
    }


def _gathered(parts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Equal elements of a list as one."""
    groups: list[list[dict[str, Any]]] = []
    for part in parts:
        alike = (g for g in groups if part["name"].isdigit() and g[0] | {"name": ""} == part | {"name": ""})
        group = next(alike, None)
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
    """['0', '1', '2'] -> '0-2'; ['0', '2', '4'] -> '0-4 by 2'; what has no such rule is listed."""
    if len(names) < 3:
        return ", ".join(names)
    numbers = [int(name) for name in names]
    step = numbers[1] - numbers[0]
    if any(b - a != step for a, b in itertools.pairwise(numbers)):
        return ", ".join(names)
    return f"{names[0]}-{names[-1]}" + (f" by {step}" if step > 1 else "")
