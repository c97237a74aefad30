# SPDX-License-Identifier: Apache-2.0
"""Adapters in a directory of their own, bound by hash to the base that they were trained on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from foundling.adapt.bank import Adapter, AdapterBank
from foundling.adapt.lora import GROUPED, LINEAR, LoRAOptions, adaptable, adapter_tensors, lora, shapes
from foundling.adapt.quantize import INT8
from foundling.adapt.rewrite import pattern_of
from foundling.config import from_dict, to_dict
from foundling.errors import AdaptError, MismatchError, WeightsError
from foundling.runtime.distributed import barrier, is_first_rank
from foundling.runtime.files import write_directory
from foundling.weights.directory import MANIFEST, check, read_manifest, weights_hash, whole, write_manifest
from foundling.weights.keys import unknown
from foundling.weights.tensors import tensors_of

FILE = "adapter.safetensors"


def save_adapter(model: Any, directory: str | Path, *, about: dict[str, Any] | None = None) -> Path:
    """Writes the adapters alone, and what they belong to; OutputError if `directory` holds anything already. Of a model
    that is sharded over processes all call, and the first one writes."""
    tensors = {name: whole(p.detach()).cpu().contiguous() for name, p in adapter_tensors(model).items()}
    if not tensors:
        raise AdaptError("the model has no adapters to save; put some on with lora(…)")
    directory = Path(directory)
    bound = {
        "kind": "lora",
        "base": weights_hash(model),
        "lora": to_dict(model.lora_options),
        "targets": sorted({name.rpartition(".")[0] for name in tensors}),
        "quantized": _quantized(model),
    }

    def fill(aside: Path) -> None:
        save_file(tensors, aside / FILE, metadata={"format": "pt"})
        write_manifest(aside, {**(about or {}), **bound})

    if is_first_rank():
        write_directory(directory, fill)
    barrier()
    return directory


def _quantized(model: nn.Module) -> str:
    """The pattern by which `quantize` makes of the base what it is; '' without int8 in it."""
    known = {name.removesuffix(".base"): m for name, m in model.named_modules() if isinstance(m, LINEAR + GROUPED)}
    return pattern_of([name for name, m in known.items() if isinstance(m, INT8)], known)


def load_adapter(model: nn.Module, directory: str | Path) -> list[str]:
    """Puts saved adapters on the base they were trained on, in place; the names of the projections. Raises as
    `read_adapter` does; the model is then as it was."""
    options, tensors = read_adapter(model, directory)
    names = lora(model, options, torch.Generator())
    for name, p in adapter_tensors(model).items():
        p.data.copy_(tensors[name])
    return names


def load_adapters(model: nn.Module, directories: Mapping[str, str | Path]) -> AdapterBank:
    """Several of them at once, by name, for an engine whose requests choose one each; see `AdapterBank`."""
    return AdapterBank(model, {name: read_adapter(model, directory) for name, directory in directories.items()})


def read_adapter(model: nn.Module, directory: str | Path) -> Adapter:
    """What a directory holds, checked against the base.

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
    options = from_dict(LoRAOptions, manifest["lora"], where=str(directory / MANIFEST))
    places = adaptable(model, options)
    here = weights_hash(model)
    if here != manifest.get("base"):
        pattern = manifest.get("quantized")
        way = f"; quantised first by quantize(model, '{pattern}')" if pattern and pattern != _quantized(model) else ""
        raise MismatchError(
            f"{directory}: trained on a base of hash {str(manifest.get('base'))[:12]}…, this one is {here[:12]}…; "
            f"load that base, of the same type and quantised only if it was{way}"
        )
    wanted = {
        f"{name}.{part}": shape for name, base in places.items() for part, shape in shapes(base, options.rank).items()
    }
    return Adapter(options, _read(directory, wanted))


def _read(directory: Path, wanted: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Exactly the tensors that are wanted; shapes are compared by the header, before anything is allocated."""
    with tensors_of(directory, FILE) as tensors:
        for name, shape in wanted.items():
            if name not in tensors:
                raise WeightsError(f"{directory / FILE}: lacks tensor '{name}'")
            if tensors.shape(name) != shape:
                raise WeightsError(
                    f"{directory / FILE}: tensor '{name}' is {list(tensors.shape(name))}, not {list(shape)}"
                )
        for name in tensors:
            if name not in wanted:
                raise unknown(name, wanted, str(directory / FILE))
        return {name: tensors.read(name) for name in wanted}
