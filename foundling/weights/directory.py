# SPDX-License-Identifier: Apache-2.0
"""Model directories: a Hugging Face directory (config.json, model.safetensors, tokenizer.json …) plus `foundling.json`,
which records the model's origin and the SHA-256 of every file."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from foundling.adapt.added import Added
from foundling.adapt.bank import Banked
from foundling.adapt.digest import base_digest, derived_buffers, hash_of, whole
from foundling.adapt.frozen import FROZEN, Rounded
from foundling.adapt.heads import Head
from foundling.adapt.quantised import QuantisedWeight
from foundling.blocks.characters import CharacterCNN
from foundling.contracts.checkpoint_map import ConfigMap
from foundling.errors import ConfigError, WeightsError
from foundling.limits import SHARD_BYTES, shown
from foundling.models import Family, family_of
from foundling.runtime.distributed import barrier, is_first_rank
from foundling.runtime.files import read_json, require_space, write_directory, write_json
from foundling.runtime.hub import local_directory
from foundling.weights import heads, keys
from foundling.weights.configs import read_config, write_config
from foundling.weights.generation import default_generation_config
from foundling.weights.manifest import write_manifest
from foundling.weights.quantised import check_files, plain_tensors
from foundling.weights.tensors import FLOATS, INTEGERS, MAX_SHARD_BYTES, Tensors, tensors_of, write_tensors

BASE_MODEL = re.compile("(ForCausalLM|LMHeadModel)$")
"""The class name suffix of models with a head in transformers. Without a head, the suffix is "Model"."""
SOME_ROWS = 16
"""Compared first between head and embedding: if they differ, the weights are not tied and the rest is not read."""


def persistent_tensors(model: Any) -> dict[str, Tensor]:
    """Parameters and persistent buffers by our names, tied ones once: the contents of a model directory or a
    checkpoint. They share the model's memory."""
    hidden = {id(b) for b in derived_buffers(model).values()}
    buffers = {name: b for name, b in model.named_buffers() if id(b) not in hidden}
    return {**dict(model.named_parameters()), **buffers}


def tensor_bytes(model: Any) -> int:
    """Bytes of all parameters and persistent buffers, whole."""
    return sum(t.numel() * t.element_size() for t in persistent_tensors(model).values())


def weights_hash(model: Any, *, headless: bool = False) -> str:
    """SHA-256 over names, shapes and bytes of parameters and persistent buffers, sorted by name; a tied weight counts
    once. An adapted model has the hash of its base, also where that is stored rounded (`store_frozen`) and was not
    changed since; a head counts once it is a part of the model (adapt.heads.absorb), unless `headless`."""
    digest = base_digest(model, headless=headless)
    rounded: Rounded | None = getattr(model, "rounded", None)
    return rounded.base_hash if rounded is not None and rounded.digest == digest else digest


NOT_PUBLISHED = (Added, Banked, QuantisedWeight, *FROZEN)
"""Modules that have no tensors in the published layout, or rounded ones."""


def whole_tensors(model: Any) -> dict[str, Tensor]:
    """Full parameters and persistent buffers by our names, tied ones once. If they are sharded, every process must
    call. Raises WeightsError for a model with adapters or quantised weights."""
    apart = [m for m in model.modules() if isinstance(m, NOT_PUBLISHED) and not isinstance(m, Head)]
    if kinds := {type(m).__name__ for m in apart}:
        raise WeightsError(
            f"the model has {', '.join(sorted(kinds))} modules; merge or dequantize it first, or save the adapter "
            "alone with save_adapter"
        )
    return {name: whole(t.detach()) for name, t in persistent_tensors(model).items()}


def write_weights(model: Any, ours: dict[str, Tensor], directory: Path, max_shard_bytes: int = MAX_SHARD_BYTES) -> None:
    """Writes config.json and the tensors `ours`, in the published layout, to an existing directory."""
    family = family_of(model)
    tensors, has_head = {}, heads.head_of(model) is not None
    for link in keys.links(family.module.KEYS, heads.without_head(ours) if has_head else ours, model.config):
        parts = link.to_theirs([ours[name] for name in link.ours])
        # safetensors refuses views that share memory
        tensors |= {name: part.clone() for name, part in zip(link.theirs, parts, strict=True)}
    if has_head:
        tensors = heads.with_head(model, family, tensors, ours)
    write_config_file(model, next(iter(ours.values())).dtype, directory)
    write_tensors(tensors, directory, family.module.CONFIG.weights, max_shard_bytes)


def write_config_file(model: Any, dtype: torch.dtype, directory: Path) -> None:
    """Writes config.json; `dtype` is that of the weights beside it."""
    kind = str(dtype).removeprefix("torch.")
    family = family_of(model)
    config = write_config(family, model.config, getattr(model, "inert", {}), kind)
    if type(model).capabilities.generates and model.head is None and "architectures" in config:
        config["architectures"] = [BASE_MODEL.sub("Model", name) for name in config["architectures"]]
    if heads.head_of(model) is not None:
        config = heads.head_config(model, family, config)
    (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def save(
    model: Any,
    directory: str | Path,
    *,
    tokenizer: Any = None,
    about: dict[str, Any] | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> Path:
    """Writes a model directory. Raises OutputError if `directory` is not empty.

    Tensors of more than `max_shard_bytes` in total are split over several files with an index. For a model that is
    sharded over processes, every process must call; the first one writes."""
    SHARD_BYTES.check(max_shard_bytes, "max_shard_bytes")
    directory, tensors = Path(directory), whole_tensors(model)
    digest = hash_of(sorted(tensors.items()))

    def fill(temporary: Path) -> None:
        write_weights(model, tensors, temporary, max_shard_bytes)
        if tokenizer is not None:
            tokenizer.save(temporary)
            if model.capabilities.generates:
                write_json(temporary / "generation_config.json", default_generation_config(model, tokenizer))
        write_manifest(temporary, {"weights_hash": digest, **(about or {})})

    if is_first_rank():
        require_space(directory, sum(t.nbytes for t in tensors.values()))
        write_directory(directory, fill)
    barrier()
    return directory


def load(directory: str | Path, *, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Any:
    """Loads a model of a known family, in evaluation mode, from our directory or one of transformers or diffusers.
    `dtype` is the type of its floating-point tensors.

    Raises WeightsError with file and key if a tensor is missing, unknown or of the wrong shape, or a file is not
    safetensors; ConfigError for another `dtype` or `device`. Sizes and shapes are checked against the headers before
    anything is allocated.
    """
    _check_place(dtype, device)
    directory = local_directory(directory)
    with opened(directory, device) as (family, config, inert, tensors, head):
        model = skeleton(family, config, str(directory / "config.json"), tensors, scores=head is not None)
        model.inert = inert
        for name, tensor in _read(tensors, family, model, dtype).items():
            _assign(model, name, tensor)
        _rebuild_buffers(model, device)
        if any(isinstance(m, CharacterCNN) and not m.has_characters() for m in model.modules()):
            raise WeightsError(f"{directory}: 'embedding.spelling' holds numbers that are no characters")
        if head is not None:
            heads.restore_head(model, *head, lambda tensor, name: converted(tensor, dtype, name).contiguous())
    if getattr(config, "tie_embeddings", False) and model.head is not None:
        model.head.weight = model.embedding.weight
    return model.eval()


def _check_place(dtype: Any, device: Any) -> None:
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise ConfigError(f"dtype is {shown(dtype)}; expected a floating-point type, such as torch.bfloat16")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, TypeError, AssertionError) as error:  # AssertionError: a torch without CUDA
        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise ConfigError(f"device is {shown(device)}, which is not available here ({why[:200]}); use cpu") from None


class Opened(NamedTuple):
    """A directory whose headers have been read."""

    family: Family
    config: Any
    """ours"""
    inert: dict[str, Any]
    """keys of config.json that change nothing"""
    tensors: Tensors
    """those of the model without a head of its own"""
    head: tuple[heads.StoredHead, Tensors] | None
    """its head for texts or tokens, and all tensors of the directory"""


@contextmanager
def opened(directory: Path, device: str = "cpu") -> Iterator[Opened]:
    """What is in a directory, by its headers."""
    if not directory.is_dir():
        raise WeightsError(f"{directory}: no such model directory")
    file = directory / "config.json"
    if not file.exists():
        raise WeightsError(f"{directory}: no config.json, so this is not a model directory")
    values = read_json(file)
    family, config, inert = read_config(values, str(file))
    check_files(directory)
    with tensors_of(directory, family.module.CONFIG.weights, device) as stored:
        tensors = plain_tensors(stored, family.module.CONFIG.dequantised)
        head = heads.stored_head(values, family, tensors, str(file))
        both = None if head is None else (head, tensors)
        tensors = tensors if head is None else heads.trunk(tensors, head)
        _check_counts(config, len(tensors), family.module.CONFIG, str(file))
        changes = _present_fields(tensors, family.module.CONFIG)
        if getattr(config, "tie_embeddings", False) and _has_head(tensors, family):
            changes["tie_embeddings"] = False
        yield Opened(family, _with_fields(config, changes, str(file)), inert, tensors, both)


def _check_counts(config: Any, n_tensors: int, table: ConfigMap, file: str) -> None:
    """Rejects a configuration with more layers, blocks or experts than the directory has tensors, before the model is
    built: each of them has tensors of its own."""
    fields = [field.name for field in dataclasses.fields(config)]
    repeated = [name for name in fields if name.endswith(("_layers", "_blocks", "_experts"))]
    for name in repeated if table.counted is None else table.counted:
        if (count := getattr(config, name)) > n_tensors:
            raise WeightsError(f"{file}: {name} = {count}, the directory has {n_tensors} tensors")


def skeleton(family: Family, config: Any, file: str, tensors: Tensors | None = None, *, scores: bool = False) -> Any:
    """The model on the meta device; a decoder has no head over the vocabulary if `tensors` have none, nor an
    encoder-decoder that `scores`. Raises WeightsError for impossible sizes."""
    try:
        with torch.device("meta"):
            model = family.model(config)
    except ConfigError as error:
        raise WeightsError(f"{file}: {error}") from None
    except (RuntimeError, OverflowError, TypeError, ZeroDivisionError) as error:
        raise WeightsError(f"{file}: no model can have these sizes ({str(error).splitlines()[0]})") from None
    can = model.capabilities
    if tensors is not None and can.generates and (scores or not can.reads_source) and not config.tie_embeddings:
        theirs = next(key.theirs for key in family.module.KEYS if key.targets[0] == "head.weight")
        if theirs not in tensors:  # saved without a head: the model embeds only
            model.head, model.capabilities = None, can._replace(generates=False)
    return model


def _published(tensors: Tensors, table: ConfigMap) -> dict[str, str]:
    """Current published name of each tensor -> its name in this directory."""
    endings = {old: new for old, new in table.renamed}
    names = {}
    for name in tensors:
        old = next((ending for ending in endings if name.endswith(ending)), "")
        current = name.removesuffix(old) + endings.get(old, "")
        if current in names:
            raise WeightsError(f"{tensors.path}: '{name}' and '{names[current]}' are the same tensor; remove one")
        names[current] = name
    return names


def _present_fields(tensors: Tensors, table: ConfigMap) -> dict[str, Any]:
    """The configuration fields that follow from which tensors are present."""
    fields: dict[str, Any] = {}
    published = _published(tensors, table)
    for field, names in table.parts.items():
        present = [n for n in names for n in (n, n.removeprefix(table.base_prefix)) if n in published]
        counted = field.startswith("n_")
        if counted and present and not tensors.shape(published[present[0]]):
            raise WeightsError(f"{tensors.path}: tensor '{present[0]}' has no rows to count")
        fields[field] = (tensors.shape(published[present[0]])[0] if present else 0) if counted else bool(present)
    return fields


def _with_fields(config: Any, changes: dict[str, Any], file: str) -> Any:
    try:
        return dataclasses.replace(config, **changes)
    except ConfigError as error:
        raise WeightsError(f"{file}: {error}") from None


def _has_head(tensors: Tensors, family: Family) -> bool:
    """Whether the head differs from the embedding, whatever the configuration says (transformers 5 marks every T5 as
    tied)."""
    theirs = {key.targets[0]: key.theirs for key in family.module.KEYS}
    head, embedding = theirs["head.weight"], theirs["embedding.weight"]
    if head not in tensors or embedding not in tensors or tensors.shape(head) != tensors.shape(embedding):
        return False
    if not torch.equal(tensors.first_rows(head, SOME_ROWS), tensors.first_rows(embedding, SOME_ROWS)):
        return True
    return not torch.equal(tensors.read(head), tensors.read(embedding))


def _read(tensors: Tensors, family: Family, model: Any, dtype: torch.dtype) -> dict[str, Tensor]:
    ours, targets = {}, persistent_tensors(model)
    for link, names in compared(tensors, family, model):
        parts = link.to_ours([tensors.read(name) for name in names])
        for name, part in zip(link.ours, parts, strict=True):
            kind = dtype if part.is_floating_point() else targets[name].dtype
            try:
                ours[name] = converted(part, kind, name).contiguous()
            except WeightsError as error:
                raise WeightsError(f"{tensors.path}: {error}") from None
    return ours


def compared(tensors: Tensors, family: Family, model: Any) -> list[tuple[keys.Link, list[str]]]:
    """Matches the file's tensors to ours, reading headers only. Raises WeightsError unless exactly the expected tensors
    are present, each of the right shape and kind of number."""
    ours = persistent_tensors(model)
    links, prefix = keys.links(family.module.KEYS, ours, model.config), family.module.CONFIG.base_prefix
    expected = {name for link in links for name in link.theirs}
    present: dict[str, str] = {}
    for n, name in _published(tensors, family.module.CONFIG).items():
        current = n if n in expected or prefix + n not in expected else prefix + n
        if current in present:
            raise WeightsError(f"{tensors.path}: '{name}' and '{present[current]}' are the same tensor; remove one")
        present[current] = name
    _compare(tensors, present, links, ours, family.module.CONFIG)
    return [(link, [present[name] for name in link.theirs]) for link in links]


def _compare(
    tensors: Tensors, present: dict[str, str], links: list[keys.Link], ours: dict[str, Tensor], table: ConfigMap
) -> None:
    expected, kinds = {}, {}
    for link in links:
        expected |= dict(zip(link.theirs, link.theirs_shapes(ours), strict=True))
        kinds |= dict.fromkeys(link.theirs, FLOATS if ours[link.ours[0]].is_floating_point() else INTEGERS)
    for name in expected:
        if name not in present:
            raise WeightsError(f"{tensors.path}: lacks tensor '{name}'")
    for name in present:
        if name not in expected and name.endswith(table.zero) and tensors.read(name).any():
            raise WeightsError(f"{tensors.path}: '{name}' is not zero, which is not supported")
        if name not in expected and not name.endswith(table.ignored + table.zero):
            raise keys.unknown(name, expected, str(tensors.path))
    for name, shape in expected.items():
        actual = tensors.shape(present[name], kinds[name])
        if actual != shape:
            raise WeightsError(f"{tensors.path}: '{name}' is {list(actual)}, the configuration asks for {list(shape)}")


def converted(tensor: Tensor, dtype: torch.dtype, name: str) -> Tensor:
    """`tensor` as `dtype`. WeightsError for a value that is NaN or infinite, or becomes so (float16 ends at 65,504):
    a model with one computes nothing else."""
    found = tensor.to(dtype)
    if not found.is_floating_point() or not found.numel():
        return found
    low, high = found.aminmax()  # one pass, a tenth of isfinite's time; both are NaN where any value is
    if low.isfinite() and high.isfinite():
        return found
    finite = tensor[tensor.isfinite()]
    if wrong := tensor.numel() - finite.numel():
        raise WeightsError(
            f"'{name}' holds {wrong:,} NaN or infinite values of {tensor.numel():,}: the training diverged, or "
            "the file is damaged; take an earlier checkpoint or another copy"
        )
    kind, largest = str(dtype).removeprefix("torch."), float(finite.abs().max())
    raise WeightsError(f"'{name}' holds {largest:g}, beyond {kind} ({torch.finfo(dtype).max:g}); use bfloat16")


def _assign(model: Any, name: str, tensor: Tensor) -> None:
    path, _, leaf = name.rpartition(".")
    module = model.get_submodule(path)
    setattr(module, leaf, tensor if leaf in module._buffers else torch.nn.Parameter(tensor))


def _rebuild_buffers(model: Any, device: str) -> None:
    """Recomputes non-persistent buffers, which were built on the meta device, with the module's
    `derived_buffers() -> {name: tensor}`."""
    for name, buffer in derived_buffers(model).items():
        if buffer.is_meta:
            path, _, leaf = name.rpartition(".")
            module = model.get_submodule(path)
            with torch.device(device):
                module._buffers[leaf] = module.derived_buffers()[leaf]
