# SPDX-License-Identifier: Apache-2.0
"""Adapters in a directory of their own, bound by hash to the base that they were trained on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from foundling.adapt.lora import LoRAOptions, adapter_tensors, lora
from foundling.config import from_dict, to_dict
from foundling.errors import AdaptError, MismatchError, WeightsError
from foundling.weights.directory import MANIFEST, check, read_manifest, weights_hash, write_manifest
from foundling.weights.files import write_directory
from foundling.weights.keys import unknown
from foundling.weights.tensors import opening

FILE = "adapter.safetensors"


def save_adapter(model: Any, directory: str | Path, *, about: dict[str, Any] | None = None) -> Path:
    """Writes the adapters alone, and what they belong to; OutputError if `directory` holds anything already."""
    tensors = {name: p.detach().cpu().contiguous() for name, p in adapter_tensors(model).items()}
    if not tensors:
        raise AdaptError("the model has no adapters to save; put some on with lora(…)")
    directory = Path(directory)
    bound = {"kind": "lora", "base": weights_hash(model), "lora": to_dict(model.lora_options)}

    def fill(aside: Path) -> None:
        save_file(tensors, aside / FILE, metadata={"format": "pt"})
        write_manifest(aside, {**(about or {}), **bound})

    write_directory(directory, fill)
    return directory


def load_adapter(model: nn.Module, directory: str | Path) -> list[str]:
    """Puts saved adapters on the base they were trained on, in place; the names of the projections.

    MismatchError for another base. WeightsError, by file and key, for what is damaged, missing, extra or ill-shaped.
    """
    directory = Path(directory)
    if not (directory / MANIFEST).is_file():
        raise WeightsError(f"{directory}: no {MANIFEST}; is this an adapter's directory?")
    manifest = read_manifest(directory)
    if manifest.get("kind") != "lora" or not isinstance(manifest.get("lora"), dict):
        raise WeightsError(f"{directory / MANIFEST}: not of an adapter")
    if problems := check(directory)["problems"]:
        raise WeightsError(f"{directory}: {problems[0]}")
    here = weights_hash(model)
    if here != manifest.get("base"):
        raise MismatchError(
            f"{directory}: trained on a base of hash {str(manifest.get('base'))[:12]}…, this one is {here[:12]}…; "
            "load that base, quantised in the same way if it was"
        )
    options = from_dict(LoRAOptions, manifest["lora"], where=str(directory / MANIFEST))
    names = lora(model, options, torch.Generator())
    wanted = adapter_tensors(model)
    with opening(directory / FILE) as opened:
        present = set(opened.keys())
        for name, p in wanted.items():
            if name not in present:
                raise WeightsError(f"{directory / FILE}: lacks tensor '{name}'")
            shape = tuple(opened.get_slice(name).get_shape())
            if shape != tuple(p.shape):
                raise WeightsError(f"{directory / FILE}: tensor '{name}' is {list(shape)}, not {list(p.shape)}")
            p.data.copy_(opened.get_tensor(name))
        for name in sorted(present - wanted.keys()):
            raise unknown(name, wanted, str(directory / FILE))
    return names
