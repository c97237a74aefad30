# SPDX-License-Identifier: Apache-2.0
"""Writes an adapter and its base as one model directory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from foundling.adapt.added import added, merge, wrapping
from foundling.adapt.heads import absorb
from foundling.adapt.quantize import dequantize
from foundling.errors import ConfigError
from foundling.runtime.files import require_free
from foundling.runtime.hub import local_directory, place_name
from foundling.weights.adapter_layout import FILE
from foundling.weights.convert.hugging_face import COMPANIONS, DTYPES, companions, save_changed, stored_dtype
from foundling.weights.directory import converted, hash_of, persistent_tensors, weights_hash
from foundling.weights.loading import TOKENIZER, base_of, is_adapter, load
from foundling.weights.manifest import MANIFEST, read_manifest
from foundling.weights.tensors import tensors_of

OF_TOKENIZER = (*TOKENIZER, *COMPANIONS[: COMPANIONS.index("generation_config.json")])
"""Files that belong together: those of two tokenizers are not mixed."""


def merge_adapter(directory: str | Path, out: str | Path, *, base: str | Path | None = None) -> dict[str, Any]:
    """Writes the base of an adapter with the adapter merged into it to `out`: computed in float32 and rounded once, to
    the type that the base is stored in (float32 where that has several). A quantised base is dequantised.

    Tokenizer, chat template and generation settings are those of the adapter's directory, or the base's where that has
    none. foundling.json names both parents by the hashes of their weights, and the adapter's recipe. ConfigError for a
    directory that is no adapter, AdaptError for an adapter that cannot be merged, and the errors of `load`; OutputError
    if `out` is not empty. Nothing is written then."""
    folder = local_directory(directory)
    require_free(Path(out))
    if not is_adapter(folder):
        raise ConfigError(f"{directory}: not an adapter; give two models or more, or an adapter's directory")
    place = base_of(folder, base)
    source = local_directory(place)
    name = stored_dtype(source)
    model = load(folder, dtype=torch.float32, base=base)
    parents = [{"name": place_name(place), "weights_hash": _base_hash(source)}, _adapter(folder, directory)]
    if wrapping(model) or not added(model):
        merge(model)
    absorb(model)
    dequantize(model)
    for key, tensor in persistent_tensors(model).items():
        if tensor.is_floating_point():
            tensor.data = converted(tensor.data, DTYPES[name], key)
    recipe = read_manifest(folder).get("recipe") if (folder / MANIFEST).is_file() else None
    about = {"parents": parents} | ({} if recipe is None else {"recipe": recipe})
    return save_changed(model, source, out, about, files=_files(folder, source)) | {"parents": parents}


def _base_hash(directory: Path) -> str:
    """As foundling.json says it; computed where it does not."""
    known = read_manifest(directory).get("weights_hash") if (directory / MANIFEST).is_file() else None
    return known if isinstance(known, str) else weights_hash(load(directory, dtype=DTYPES[stored_dtype(directory)]))


def _adapter(folder: Path, place: str | Path) -> dict[str, str]:
    return {"name": place_name(place), "weights_hash": adapter_hash(folder)}


def adapter_hash(folder: Path) -> str:
    """Of the tensors of an adapter alone."""
    with tensors_of(folder, FILE) as tensors:
        return hash_of((name, tensors.read(name)) for name in sorted(tensors))


def _files(adapter: Path, base: Path) -> list[Path]:
    """The companions of the adapter's directory, and those of the base that it lacks."""
    own = {path.name: path for path in companions(adapter)[0]}
    files = {path.name: path for path in companions(base)[0]}
    if any(name in own for name in TOKENIZER):
        files = {name: path for name, path in files.items() if name not in OF_TOKENIZER}
    return [path for name, path in sorted((files | own).items()) if name != "README.md"]
