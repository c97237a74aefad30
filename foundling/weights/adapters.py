# SPDX-License-Identifier: Apache-2.0
"""Saves and loads adapters in a directory of their own, bound by hash to their base model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from foundling.adapt.added import adapter_tensors
from foundling.adapt.bank import Adapter, AdapterBank
from foundling.adapt.lora import GROUPED, LINEAR, LoRAOptions, adaptable, lora, shapes
from foundling.adapt.quantize import QUANTISED, quantized_kind
from foundling.adapt.rewrite import pattern_of
from foundling.config import from_dict, to_dict
from foundling.errors import AdaptError, MismatchError, WeightsError
from foundling.runtime.distributed import barrier, is_first_rank
from foundling.runtime.files import write_directory
from foundling.runtime.hub import local_directory
from foundling.weights.directory import converted, weights_hash, whole
from foundling.weights.keys import unknown
from foundling.weights.manifest import MANIFEST, check, read_manifest, write_manifest
from foundling.weights.tensors import tensors_of

FILE = "adapter.safetensors"


def save_adapter(model: Any, directory: str | Path, *, about: dict[str, Any] | None = None) -> Path:
    """Writes the adapters without the base, and the hash of the base. Raises OutputError if `directory` is not empty.
    For a model that is sharded over processes, every process must call; the first one writes."""
    tensors = {name: whole(p.detach()).cpu().contiguous() for name, p in adapter_tensors(model).items()}
    if not tensors:
        raise AdaptError("the model has no adapters to save; add some with lora(…)")
    directory = Path(directory)
    bound = {
        "kind": "lora",
        "base": weights_hash(model),
        "lora": to_dict(model.lora_options),
        "targets": sorted({name.rpartition(".")[0] for name in tensors}),
        "quantized": _quantize_pattern(model),
        "quantized_kind": quantized_kind(model) or "",
    }

    def fill(temporary: Path) -> None:
        save_file(tensors, temporary / FILE, metadata={"format": "pt"})
        write_manifest(temporary, {**(about or {}), **bound})

    if is_first_rank():
        write_directory(directory, fill)
    barrier()
    return directory


def _quantize_pattern(model: nn.Module) -> str:
    """The pattern with which `quantize` produces this base; '' if it has no quantised weights."""
    projections = {
        name.removesuffix(".base"): m for name, m in model.named_modules() if isinstance(m, LINEAR + GROUPED)
    }
    return pattern_of([name for name, m in projections.items() if isinstance(m, QUANTISED)], projections)


def load_adapter(model: nn.Module, directory: str | Path) -> list[str]:
    """Adds saved adapters to their base, in place, and returns the names of the projections. Raises the errors of
    `read_adapter`, and then leaves the model unchanged."""
    options, tensors = read_adapter(model, directory)
    names = lora(model, options, torch.Generator())
    for name, p in adapter_tensors(model).items():
        p.data.copy_(tensors[name])
    return names


def load_adapters(model: nn.Module, directories: Mapping[str, str | Path]) -> AdapterBank:
    """Loads several named adapters at once, for an engine whose requests choose one each; see `AdapterBank`."""
    return AdapterBank(model, {name: read_adapter(model, directory) for name, directory in directories.items()})


def read_adapter(model: nn.Module, directory: str | Path) -> Adapter:
    """Reads an adapter and checks it against the base.

    Raises MismatchError for another base, and WeightsError with file and key for damaged files and for missing, unknown
    or misshapen tensors.
    """
    directory = local_directory(directory)
    if not (directory / MANIFEST).is_file():
        raise WeightsError(f"{directory}: no {MANIFEST}; is this an adapter's directory?")
    manifest = read_manifest(directory)
    if manifest.get("kind") != "lora" or not isinstance(manifest.get("lora"), dict):
        raise WeightsError(f"{directory / MANIFEST}: not the manifest of an adapter")
    if problems := check(directory)["problems"]:
        raise WeightsError(f"{directory}: {problems[0]}")
    options = from_dict(LoRAOptions, manifest["lora"], where=str(directory / MANIFEST))
    targets = adaptable(model, options)
    base_hash = weights_hash(model)
    if base_hash != manifest.get("base"):
        pattern = manifest.get("quantized")
        kind = manifest.get("quantized_kind", "int8")
        same = (pattern, kind) == (_quantize_pattern(model), quantized_kind(model))
        hint = f"; quantised first by quantize(model, '{pattern}', '{kind}')" if pattern and not same else ""
        raise MismatchError(
            f"{directory}: trained on a base of hash {str(manifest.get('base'))[:12]}…, this one is {base_hash[:12]}…; "
            f"load that base, of the same type and quantised only if it was{hint}"
        )
    expected = {
        f"{name}.{part}": shape for name, base in targets.items() for part, shape in shapes(base, options.rank).items()
    }
    return Adapter(options, _read(directory, expected))


def _read(directory: Path, expected: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Reads exactly the expected tensors; shapes are checked against the header before anything is allocated."""
    with tensors_of(directory, FILE) as tensors:
        for name, shape in expected.items():
            if name not in tensors:
                raise WeightsError(f"{directory / FILE}: lacks tensor '{name}'")
            if tensors.shape(name) != shape:
                raise WeightsError(
                    f"{directory / FILE}: tensor '{name}' is {list(tensors.shape(name))}, not {list(shape)}"
                )
        for name in tensors:
            if name not in expected:
                raise unknown(name, expected, str(directory / FILE))
        read = {name: tensors.read(name) for name in expected}
    return {name: converted(t, t.dtype, f"{directory / FILE}: {name}") for name, t in read.items()}
