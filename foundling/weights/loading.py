# SPDX-License-Identifier: Apache-2.0
"""Loads a model from wherever a model is expected: a model directory, or the directory of an adapter, whose base is
found and adapted."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import torch

from foundling.adapt.added import added, merge
from foundling.adapt.lora import LoRA
from foundling.adapt.quantize import Kind, dequantize, quantize
from foundling.errors import MismatchError, WeightsError
from foundling.limits import shown
from foundling.runtime.files import read_json
from foundling.runtime.hub import PLACE, SCHEME, is_hub, local_directory
from foundling.weights import directory as plain
from foundling.weights.adapter_layout import CONFIG
from foundling.weights.adapters import base_dtype, load_adapter
from foundling.weights.manifest import MANIFEST, read_manifest

PATTERN_CHARS = 1 << 14
"""of a list of projections in foundling.json, which is matched against every name"""
TOKENIZER = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt")


def load(
    directory: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    base: str | Path | None = None,
    merged: bool = False,
) -> Any:
    """Loads a model of a known family, in evaluation mode, from our directory or one of transformers or diffusers.
    `dtype` is the type of its floating-point tensors.

    A directory with adapter_config.json and no config.json is an adapter: its base is loaded from where the adapter
    says, or from `base`, quantised as it was in training, and adapted. `merged` merges LoRA, with the very
    bits that a saved merged model has.

    Raises WeightsError with file and key if a tensor is missing, unknown or of the wrong shape, a file is not
    safetensors, or the base is not there; MismatchError for another base; ConfigError for another `dtype` or `device`.
    Sizes and shapes are checked against the headers before anything is allocated.
    """
    folder = local_directory(directory)
    if not is_adapter(folder):
        if base is not None:
            raise WeightsError(f"{directory}: a whole model, which has no base; leave the base out")
        model = plain.load(folder, dtype=dtype, device=device)
        model.loaded_from = str(directory)
        return model
    manifest = read_manifest(folder) if (folder / MANIFEST).is_file() else {}
    place = base_of(folder, base)
    trained = base_dtype(manifest, folder / MANIFEST) or dtype
    model = plain.load(local_directory(place), dtype=trained, device=device)
    model.loaded_from = str(place)
    if pattern := manifest.get("quantized"):
        if not isinstance(pattern, str) or len(pattern) > PATTERN_CHARS:
            raise WeightsError(f"{folder / MANIFEST}: damaged, quantized is {shown(pattern)}")
        kind = manifest.get("quantized_kind") or "int8"
        if kind not in get_args(Kind):
            raise WeightsError(f"{folder / MANIFEST}: damaged, quantized_kind is {shown(kind)}")
        quantize(model, pattern, kind)
    try:
        load_adapter(model, folder)
    except MismatchError as error:
        raise MismatchError(f"{error}; the base was read from {place}, --base-model (base=…) names another") from None
    if merged and any(isinstance(m, LoRA) for m in added(model).values()):
        merge(model, only=(LoRA,))
        dequantize(model)
        del model.loaded_from  # it is no longer that base
    return (model if trained == dtype else model.to(dtype)).eval()


def is_adapter(folder: Path) -> bool:
    """Whether a directory is an adapter's and not a model's."""
    return (folder / CONFIG).is_file() and not (folder / "config.json").exists()


def base_of(folder: Path, base: str | Path | None = None) -> str | Path:
    """Where the base of an adapter's directory is: `base` if it is given; else what foundling.json says, from the
    adapter's directory; else what adapter_config.json says, from here, from the adapter's directory, or on the hub.
    WeightsError where it is at none of these."""
    if base is not None:
        return base
    named = read_json(folder / CONFIG).get("base_model_name_or_path")
    beside = read_manifest(folder).get("base_path") if (folder / MANIFEST).is_file() else None
    for path in (folder / beside if isinstance(beside, str) else None, named and Path(str(named))):
        if path and _is_model(path):
            return path
    if not isinstance(named, str) or not named:
        raise WeightsError(f"{folder / CONFIG}: names no base model; give it as --base-model DIR (base=…)")
    if _is_model(folder / named):
        return folder / named
    if is_hub(named):
        return named
    if PLACE.fullmatch(named) and named.count("/") == 1 and not _exists(Path(named)):
        revision = read_json(folder / CONFIG).get("revision")
        return f"{SCHEME}{named}" + (f"@{revision}" if isinstance(revision, str) and revision else "")
    raise WeightsError(f"{folder}: its base model {shown(named)} is not there; give it as --base-model DIR (base=…)")


def _exists(path: Path) -> bool:
    """False too for a name that no file can have: too long, or with a null byte."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def _is_model(path: Path) -> bool:
    return _exists(path / "config.json")


def files_of(directory: str | Path, base: str | Path | None = None) -> Path:
    """The directory with the tokenizer and generation_config.json of a place: its own, or that of its base for an
    adapter that has none."""
    folder = local_directory(directory)
    if not is_adapter(folder) or any((folder / name).is_file() for name in TOKENIZER):
        return folder
    return local_directory(base_of(folder, base))
