# SPDX-License-Identifier: Apache-2.0
"""Saves and loads adapters in a directory of their own, in the layout of peft, bound by hash to their base model."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from foundling.adapt.added import adapter_tensors, added, base_tensors
from foundling.adapt.bank import AdapterBank, LowRank
from foundling.adapt.frozen import FROZEN
from foundling.adapt.lora import GROUPED, LINEAR, check_unadapted
from foundling.adapt.quantised import QuantisedWeight
from foundling.adapt.quantize import quantized_kind
from foundling.adapt.rewrite import pattern_of
from foundling.errors import AdaptError, MismatchError, WeightsError
from foundling.limits import shown
from foundling.models import family_of
from foundling.runtime.distributed import barrier, is_first_rank
from foundling.runtime.files import read_json, write_directory, write_json
from foundling.runtime.hub import is_hub, local_directory, parse
from foundling.weights import adapter_head, adapter_tokens, peft_lora, peft_soft
from foundling.weights.adapter_layout import CONFIG, FILE, PREFIX, Kind, Source
from foundling.weights.directory import weights_hash, whole
from foundling.weights.generation import default_generation_config
from foundling.weights.manifest import MANIFEST, check, read_manifest, write_manifest
from foundling.weights.tensors import tensors_of

KINDS: tuple[Kind, ...] = (
    adapter_head.KIND, peft_lora.KIND, adapter_tokens.KIND, peft_soft.PROMPT, peft_soft.PREFIX,
)  # fmt: skip
OLD_FILE = "adapter.safetensors"
"""of directories before the layout of peft"""


def save_adapter(
    model: Any,
    directory: str | Path,
    *,
    base: str | Path | None = None,
    tokenizer: Any = None,
    generation: dict[str, Any] | None = None,
    about: dict[str, Any] | None = None,
) -> Path:
    """Writes what adaptations added to the model, without the base: adapter_config.json and adapter_model.safetensors
    as peft reads them, and foundling.json with the hash of the base and of every file.

    `base` is where the base is, a directory or hf://ORG/NAME (by default the place that the model was loaded from); it
    is found again from there. With `tokenizer` the directory has that too, and `generation`, the contents of
    generation_config.json. Raises OutputError if `directory` is not empty, AdaptError where nothing was added. For a
    model that is sharded over processes, every process must call; the first one writes."""
    directory, written, config, bound = Path(directory), *adapter_contents(model, directory, base)

    def fill(temporary: Path) -> None:
        write_contents(temporary, written, config)
        if tokenizer is not None:
            tokenizer.save(temporary)
        if generation is None and tokenizer is not None and model.capabilities.generates:
            write_json(temporary / "generation_config.json", default_generation_config(model, tokenizer))
        elif generation is not None:
            write_json(temporary / "generation_config.json", generation)
        write_manifest(temporary, {"kind": "adapter", **(about or {}), **bound})

    if is_first_rank():
        write_directory(directory, fill)
    barrier()
    return directory


def adapter_contents(
    model: Any, directory: str | Path, base: str | Path | None = None
) -> tuple[dict[str, Tensor], dict[str, Any], dict[str, Any]]:
    """(tensors, adapter_config.json, keys of foundling.json) of what adaptations added to the model, for an adapter
    that is going to be in `directory`. AdaptError where nothing was added."""
    modules = {name: m for name, m in added(model).items() if m.own}
    tensors = {name: whole(p.detach()).cpu().contiguous() for name, p in adapter_tensors(model).items()}
    if not tensors:
        raise AdaptError("the model has no adapters to save; add some with lora(…)")
    config, written, kinds = dict[str, Any](), dict[str, Tensor](), dict[str, Any]()
    for kind in KINDS:
        if mine := {name: m for name, m in modules.items() if isinstance(m, kind.modules)}:
            part = kind.write(model, mine, tensors)
            if "peft_type" in config and "peft_type" in part.config:
                both = f"{config['peft_type']} and {part.config['peft_type']}"
                raise AdaptError(f"{both} cannot share a directory, which has one peft_type; merge LoRA first")
            config, written, kinds[kind.name] = config | part.config, written | part.tensors, part.about
            modules = {name: m for name, m in modules.items() if name not in mine}
    if modules:
        raise AdaptError(f"'{next(iter(modules))}' is of a kind that is not saved as an adapter; save the model whole")
    base = getattr(model, "loaded_from", None) if base is None else base
    bound = {
        "adapter": True,
        "base": weights_hash(model, headless=adapter_head.KIND.name in kinds),
        "base_dtype": _base_dtype(model),
        "base_path": None if base is None or is_hub(base) else os.path.relpath(base, directory),
        "quantized": _quantize_pattern(model),
        "quantized_kind": quantized_kind(model) or "",
        "adapters": kinds,
    }
    return written, {**_common(model, base), **config}, bound


def write_contents(directory: Path, tensors: dict[str, Tensor], config: dict[str, Any]) -> None:
    """adapter_model.safetensors and adapter_config.json, into an existing directory."""
    save_file(tensors, directory / FILE, metadata={"format": "pt"})
    write_json(directory / CONFIG, config)


def _common(model: Any, base: str | Path | None) -> dict[str, Any]:
    """The keys of adapter_config.json that say what it is for. peft calls a place of the hub ORG/NAME."""
    name, revision = (None if base is None else str(base)), None
    if base is not None and is_hub(base):
        name, revision = parse(base)
    can = type(model).capabilities
    task = "SEQ_2_SEQ_LM" if can.reads_source else "CAUSAL_LM" if can.generates else None
    return {"base_model_name_or_path": name, "revision": revision, "task_type": task, "inference_mode": True}


def _base_dtype(model: nn.Module) -> str:
    """The type that the base was loaded in, whatever type its weights are stored in later."""
    before = {id(m.weight): m.dtype for m in model.modules() if isinstance(m, (*FROZEN, QuantisedWeight))}
    sizes = Counter[torch.dtype]()
    for tensor in base_tensors(model).values():
        sizes[before.get(id(tensor), tensor.dtype)] += tensor.numel()
    return str(max((dtype for dtype in sizes if dtype.is_floating_point), key=lambda d: sizes[d])).removeprefix(
        "torch."
    )


def _quantize_pattern(model: nn.Module) -> str:
    """The pattern with which `quantize` produces this base; '' if it has no quantised weights."""
    projections = {
        name.removesuffix(".base"): m for name, m in model.named_modules() if isinstance(m, LINEAR + GROUPED)
    }
    return pattern_of([name for name, m in projections.items() if isinstance(m, QuantisedWeight)], projections)


def load_adapter(model: nn.Module, directory: str | Path) -> list[str]:
    """Adds saved adapters to their base, in place, and returns the names of the modules. `directory` may be one that
    peft wrote; that says nothing of its base but the shapes, so it is not compared with this one.

    Raises MismatchError for another base, WeightsError with file and key for damaged files, for missing, unknown or
    misshapen tensors and for kinds of adapters that are not computed here, and then leaves the model unchanged."""
    names = list[str]()
    with source_of(directory, model) as source:
        kinds = [kind for kind in KINDS if kind.applies(source)]
        if not kinds:
            kind = shown(source.config.get("peft_type"))
            known = ", ".join(kind.name for kind in KINDS)
            raise WeightsError(f"{source.directory / CONFIG}: peft_type {kind} is not supported; supported: {known}")
        steps = [kind.read(model, source) for kind in kinds]
        _take_unchanged(model, source)
        source.check_all_taken()
    for step in steps:
        names += step()
    return names


def load_adapters(model: nn.Module, directories: Mapping[str, str | Path]) -> AdapterBank:
    """Loads several named LoRA adapters at once, for an engine whose requests choose one each, or for `switch`; see
    `AdapterBank`."""
    return AdapterBank(model, {name: read_adapter(model, directory) for name, directory in directories.items()})


def read_adapter(model: nn.Module, directory: str | Path) -> dict[str, LowRank]:
    """Projection -> its update, of a LoRA adapter. Raises the errors of `load_adapter`."""
    with source_of(directory, model) as source:
        if source.config.get("peft_type") != "LORA":
            kind = shown(source.config.get("peft_type"))
            raise WeightsError(
                f"{source.directory / CONFIG}: peft_type {kind}; only LORA can share a batch with others"
            )
        updates = peft_lora.read_updates(model, source)
        _take_unchanged(model, source)
        source.check_all_taken()
    return updates


@contextmanager
def source_of(directory: str | Path, model: nn.Module) -> Iterator[Source]:
    """An adapter's directory, its hashes checked, and compared with the base. Raises the errors of `load_adapter`."""
    directory = local_directory(directory)
    if hasattr(model, "adapter_bank"):
        check_unadapted(model)
    if not (directory / CONFIG).is_file():
        if (directory / OLD_FILE).is_file():
            raise WeightsError(
                f"{directory}: {OLD_FILE} is of an earlier layout, which is not read; save the adapter again"
            )
        raise WeightsError(f"{directory}: no {CONFIG}; is this an adapter's directory?")
    manifest = None
    if (directory / MANIFEST).is_file():
        manifest = read_manifest(directory)
        if manifest.get("adapter") is not True or not isinstance(manifest.get("adapters"), dict):
            raise WeightsError(f"{directory / MANIFEST}: not the manifest of an adapter")
        if problems := check(directory)["problems"]:
            raise WeightsError(f"{directory}: {problems[0]}")
        _check_base(model, directory, manifest)
    config = read_json(directory / CONFIG)
    with tensors_of(directory, FILE) as tensors:
        yield Source(directory, config, manifest, tensors)


def _take_unchanged(model: Any, source: Source) -> None:
    """peft writes embedding and head along with an adapter of one of them. WeightsError unless they are those of the
    base, bit by bit."""
    rest = {name.removeprefix(PREFIX).replace(".base_layer.", "."): name for name in source if name not in source.taken}
    if not rest:
        return
    base = base_tensors(model)
    tied = {"head.weight": "embedding.weight"} if getattr(model.config, "tie_embeddings", False) else {}
    for key in family_of(model).module.KEYS:
        ours = tied.get(key.targets[0], key.targets[0])
        if key.theirs in rest and ours in base and not key.transforms:
            name = rest[key.theirs]
            stored = source.take(name, tuple(base[ours].shape), base[ours].dtype)
            if not torch.equal(stored, base[ours].detach().cpu()):
                raise WeightsError(f"{source.tensors.path}: '{name}' is not that of this base; only adapters are read")


def _check_base(model: nn.Module, directory: Path, manifest: dict[str, Any]) -> None:
    headless = adapter_head.KIND.name in manifest["adapters"]  # it takes the place of one that the base has
    base_hash = weights_hash(model, headless=headless)
    if base_hash == manifest.get("base"):
        return
    pattern, kind = manifest.get("quantized"), manifest.get("quantized_kind") or "int8"
    same = (pattern, kind) == (_quantize_pattern(model), quantized_kind(model))
    hint = f"; quantised first by quantize(model, '{pattern}', '{kind}')" if pattern and not same else ""
    raise MismatchError(
        f"{directory}: trained on a base of hash {str(manifest.get('base'))[:12]}…, this one is {base_hash[:12]}…; "
        f"load that base, of the same type and quantised only if it was{hint}"
    )


def base_dtype(manifest: dict[str, Any], file: Path) -> torch.dtype | None:
    """The type that the base had when the adapter was trained, None where the manifest does not say it."""
    name = manifest.get("base_dtype")
    dtype = getattr(torch, name, None) if isinstance(name, str) else None
    if name is not None and (not isinstance(dtype, torch.dtype) or not dtype.is_floating_point):
        raise WeightsError(f"{file}: damaged, base_dtype is {shown(name)}")
    return dtype
