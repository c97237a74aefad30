# SPDX-License-Identifier: Apache-2.0
"""Model directories: a Hugging Face directory (config.json, model.safetensors, tokenizer.json …) and `foundling.json`,
which records where it comes from and the SHA-256 of every file."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from foundling.adapt.bank import Banked
from foundling.adapt.lora import LoRA, base_tensors
from foundling.adapt.quantize import Int8GroupedLinear, Int8Linear
from foundling.contracts.checkpoint_map import ConfigMap
from foundling.errors import ConfigError, WeightsError
from foundling.models import Family, family_of
from foundling.runtime.distributed import barrier, is_first_rank
from foundling.runtime.files import read_json, sha256, write_directory, write_json
from foundling.weights import keys
from foundling.weights.configs import read_config, write_config
from foundling.weights.tensors import FLOATS, INTEGERS, MAX_SHARD_BYTES, Tensors, tensors_of, write_tensors

FORMAT_VERSION = 1
MANIFEST = "foundling.json"
BASE_MODEL = re.compile("(ForCausalLM|LMHeadModel)$")
"""the end of the name that transformers gives to a model with a head; without it, "Model" stands there"""
SOME_ROWS = 16
"""Of a head and an embedding: where these rows differ, the rest need not be read."""


def persistent_tensors(model: Any) -> dict[str, Tensor]:
    """Parameters and persistent buffers by our names, a tied one once: all that a model directory or a checkpoint
    holds. They share the model's memory."""
    hidden = {id(b) for b in _derived_buffers(model).values()}
    buffers = {name: b for name, b in model.named_buffers() if id(b) not in hidden}
    return {**dict(model.named_parameters()), **buffers}


def _derived_buffers(model: Any) -> dict[str, Tensor]:
    """Buffers that are not persistent: computed from the configuration, so never saved."""
    return {
        f"{path}.{leaf}".lstrip("."): module._buffers[leaf]
        for path, module in model.named_modules()
        for leaf in module._non_persistent_buffers_set
        if module._buffers[leaf] is not None
    }


def whole(tensor: Tensor) -> Tensor:
    """The tensor itself, or all of one that is sharded over processes (every one of which must call)."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def weights_hash(model: Any) -> str:
    """SHA-256 over names, shapes and bytes of parameters and persistent buffers, in the order of names; a tied weight
    counts once. For an adapted model: of its base, which the adapters are bound to."""
    digest, derived = hashlib.sha256(), {id(b) for b in _derived_buffers(model).values()}
    for name, tensor in sorted(base_tensors(model).items()):
        if id(tensor) in derived:
            continue
        data = whole(tensor.detach()).cpu().contiguous()
        digest.update(f"{name} {data.dtype} {tuple(data.shape)}\n".encode())
        digest.update(
            data.view(torch.uint8).numpy().tobytes()
            if data.ndim
            else data.reshape(1).view(torch.uint8).numpy().tobytes()
        )
    return digest.hexdigest()


NOT_PUBLISHED = (LoRA, Banked, Int8Linear, Int8GroupedLinear)
"""modules that the published layout has no tensors for"""


def whole_tensors(model: Any) -> dict[str, Tensor]:
    """Parameters and persistent buffers by our names, a tied one once; a collective where they are sharded.
    WeightsError for a model with adapters or quantised weights."""
    if kinds := {type(m).__name__ for m in model.modules() if isinstance(m, NOT_PUBLISHED)}:
        raise WeightsError(
            f"the model has {', '.join(sorted(kinds))} in it; merge or dequantize it first, or save the adapter alone "
            "with save_adapter"
        )
    return {name: whole(t.detach()) for name, t in persistent_tensors(model).items()}


def write_weights(model: Any, ours: dict[str, Tensor], directory: Path, max_shard_bytes: int = MAX_SHARD_BYTES) -> None:
    """config.json and the tensors `ours` in the published layout, into an existing directory."""
    found = family_of(model)
    tensors = {}
    for link in keys.links(found.module.KEYS, ours, model.config):
        parts = link.to_theirs([ours[name] for name in link.ours])
        # safetensors refuses views that share memory
        tensors |= {name: part.clone() for name, part in zip(link.theirs, parts, strict=True)}
    dtype = str(next(iter(ours.values())).dtype).removeprefix("torch.")
    config = write_config(found, model.config, getattr(model, "inert", {}), dtype)
    if found.kind == "decoder" and model.head is None and "architectures" in config:
        config["architectures"] = [BASE_MODEL.sub("Model", name) for name in config["architectures"]]
    (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    write_tensors(tensors, directory, found.module.CONFIG.weights, max_shard_bytes)


def save(
    model: Any,
    directory: str | Path,
    *,
    tokenizer: Any = None,
    about: dict[str, Any] | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> Path:
    """Writes a model directory; OutputError if `directory` holds anything already. Tensors larger than
    `max_shard_bytes` together go to several files with an index. Where a model is sharded over processes, all call and
    the first one writes."""
    directory, tensors, digest = Path(directory), whole_tensors(model), weights_hash(model)

    def fill(temporary: Path) -> None:
        write_weights(model, tensors, temporary, max_shard_bytes)
        if tokenizer is not None:
            tokenizer.save(temporary)
        write_manifest(temporary, {"weights_hash": digest, **(about or {})})

    if is_first_rank():
        write_directory(directory, fill)
    barrier()
    return directory


def write_manifest(directory: Path, about: dict[str, Any]) -> None:
    """Writes foundling.json: the format version, `about`, and the SHA-256 of every other file."""
    files = sorted(p for p in directory.rglob("*") if p.is_file() and p.name != MANIFEST)
    hashes = {str(p.relative_to(directory)): sha256(p) for p in files}
    write_json(directory / MANIFEST, {"format_version": FORMAT_VERSION, **about, "files": hashes})


def read_manifest(directory: Path) -> dict[str, Any]:
    """foundling.json; WeightsError for one that is damaged or of a newer format."""
    manifest = read_json(directory / MANIFEST)
    version = manifest.get("format_version")
    if not isinstance(version, int) or version < 1:
        raise WeightsError(f"{directory / MANIFEST}: damaged, no format_version")
    if version > FORMAT_VERSION:
        raise WeightsError(f"{directory}: format_version {version} is newer than {FORMAT_VERSION}; upgrade foundling")
    return manifest


def check(directory: str | Path) -> dict[str, Any]:
    """Hashes every file against foundling.json. Returns {'ok', 'checked', 'problems'}; problems name the file."""
    directory = Path(directory)
    if not (directory / MANIFEST).exists():
        raise WeightsError(f"{directory}: no {MANIFEST}, so nothing to check against (is this a model directory?)")
    files = read_manifest(directory).get("files")
    if not isinstance(files, dict) or not files:
        raise WeightsError(f"{directory / MANIFEST}: damaged, no list of files")
    problems = []
    for name, wanted in files.items():
        path = directory / name
        if ".." in Path(name).parts or Path(name).is_absolute():
            problems.append(f"{name}: points outside the directory")
        elif not path.is_file():
            problems.append(f"{name}: missing")
        elif (found := sha256(path)) != wanted:
            problems.append(f"{name}: damaged (sha256 {found[:12]}…, expected {str(wanted)[:12]}…)")
    return {"ok": not problems, "checked": len(files), "problems": problems}


def load(directory: str | Path, *, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Any:
    """A model of a known family from our directory or one that transformers or diffusers saved, in evaluation mode.
    `dtype` is that of its floating-point tensors.

    Raises WeightsError naming file and key for what is missing, extra, ill-shaped or not safetensors. Sizes are bounded
    by what the headers hold, and shapes compared with them, before anything is allocated.
    """
    with opened(Path(directory), device) as (found, config, inert, tensors):
        model = skeleton(found, config, str(Path(directory) / "config.json"), tensors)
        model.inert = inert
        for name, tensor in _read(tensors, found, model, dtype).items():
            _assign(model, name, tensor)
        _rebuild_buffers(model, device)
    if getattr(config, "tie_embeddings", False) and model.head is not None:
        model.head.weight = model.embedding.weight
    return model.eval()


@contextmanager
def opened(directory: Path, device: str = "cpu") -> Iterator[tuple[Family, Any, dict[str, Any], Tensors]]:
    """What a model directory states: the family, our configuration, the inert keys, and the tensors by their
    headers."""
    if not directory.is_dir():
        raise WeightsError(f"{directory}: no such model directory")
    file = directory / "config.json"
    found, config, inert = read_config(read_json(file), str(file))
    with tensors_of(directory, found.module.CONFIG.weights, device) as tensors:
        _check_counts(config, len(tensors), found.module.CONFIG, str(file))
        changes = _parts(tensors, found.module.CONFIG)
        if getattr(config, "tie_embeddings", False) and _has_head(tensors, found):
            changes["tie_embeddings"] = False
        yield found, _changed(config, changes, str(file)), inert, tensors


def _check_counts(config: Any, n_tensors: int, table: ConfigMap, file: str) -> None:
    """Every repeated part has tensors of its own, so a configuration with more parts than the directory has tensors is
    refused before anything is built."""
    fields = [field.name for field in dataclasses.fields(config)]
    repeated = [name for name in fields if name.endswith(("_layers", "_blocks", "_experts"))]
    for name in repeated if table.counted is None else table.counted:
        if (count := getattr(config, name)) > n_tensors:
            raise WeightsError(f"{file}: {name} = {count}, the directory holds {n_tensors} tensors")


def skeleton(found: Family, config: Any, file: str, tensors: Tensors | None = None) -> Any:
    """The model on the meta device, a decoder without head where `tensors` have none; WeightsError for sizes that no
    model can have."""
    try:
        with torch.device("meta"):
            model = found.model(config)
    except (RuntimeError, OverflowError, TypeError, ZeroDivisionError) as error:
        raise WeightsError(f"{file}: no model can have these sizes ({str(error).splitlines()[0]})") from None
    if tensors is not None and found.kind == "decoder" and not config.tie_embeddings:
        theirs = next(key.theirs for key in found.module.KEYS if key.targets[0] == "head.weight")
        if theirs not in tensors:  # saved without it: the model embeds and predicts nothing
            model.head = None
    return model


def _published(tensors: Tensors, table: ConfigMap) -> dict[str, str]:
    """The name of each tensor as directories have it today -> its name in this one."""
    endings = {old: new for old, new in table.renamed}
    found = {}
    for name in tensors:
        old = next((ending for ending in endings if name.endswith(ending)), "")
        today = name.removesuffix(old) + endings.get(old, "")
        if today in found:
            raise WeightsError(f"{tensors.path}: '{name}' and '{found[today]}' are the same tensor; take one away")
        found[today] = name
    return found


def _parts(tensors: Tensors, table: ConfigMap) -> dict[str, Any]:
    """The fields that follow from what tensors there are."""
    fields: dict[str, Any] = {}
    here = _published(tensors, table)
    for field, names in table.parts.items():
        there = [n for n in names for n in (n, n.removeprefix(table.base_prefix)) if n in here]
        counted = field.startswith("n_")
        if counted and there and not tensors.shape(here[there[0]]):
            raise WeightsError(f"{tensors.path}: tensor '{there[0]}' has no rows to count")
        fields[field] = (tensors.shape(here[there[0]])[0] if there else 0) if counted else bool(there)
    return fields


def _changed(config: Any, changes: dict[str, Any], file: str) -> Any:
    try:
        return dataclasses.replace(config, **changes)
    except ConfigError as error:
        raise WeightsError(f"{file}: {error}") from None


def _has_head(tensors: Tensors, found: Family) -> bool:
    """Whether there is a head that is not the embedding, whatever the configuration says (transformers 5 calls every T5
    tied)."""
    theirs = {key.targets[0]: key.theirs for key in found.module.KEYS}
    head, embedding = theirs["head.weight"], theirs["embedding.weight"]
    if head not in tensors or embedding not in tensors or tensors.shape(head) != tensors.shape(embedding):
        return False
    if not torch.equal(tensors.first_rows(head, SOME_ROWS), tensors.first_rows(embedding, SOME_ROWS)):
        return True
    return not torch.equal(tensors.read(head), tensors.read(embedding))


def _read(tensors: Tensors, found: Family, model: Any, dtype: torch.dtype) -> dict[str, Tensor]:
    ours, targets = {}, persistent_tensors(model)
    for link, names in compared(tensors, found, model):
        parts = link.to_ours([tensors.read(name) for name in names])
        for name, part in zip(link.ours, parts, strict=True):
            ours[name] = part.to(dtype if part.is_floating_point() else targets[name].dtype).contiguous()
    return ours


def compared(tensors: Tensors, found: Family, model: Any) -> list[tuple[keys.Link, list[str]]]:
    """Which tensors of the file become which of ours; WeightsError unless exactly the expected tensors are there, each
    of the right shape and kind of number. Reads headers alone."""
    ours = persistent_tensors(model)
    links, prefix = keys.links(found.module.KEYS, ours, model.config), found.module.CONFIG.base_prefix
    wanted = {name for link in links for name in link.theirs}
    here = _published(tensors, found.module.CONFIG)
    present: dict[str, str] = {}
    for n, name in here.items():
        today = n if n in wanted or prefix + n not in wanted else prefix + n
        if today in present:
            raise WeightsError(f"{tensors.path}: '{name}' and '{present[today]}' are the same tensor; take one away")
        present[today] = name
    _compare(tensors, present, links, ours, found.module.CONFIG)
    return [(link, [present[name] for name in link.theirs]) for link in links]


def _compare(
    tensors: Tensors, present: dict[str, str], links: list[keys.Link], ours: dict[str, Tensor], table: ConfigMap
) -> None:
    wanted, kinds = {}, {}
    for link in links:
        wanted |= dict(zip(link.theirs, link.theirs_shapes(ours), strict=True))
        kinds |= dict.fromkeys(link.theirs, FLOATS if ours[link.ours[0]].is_floating_point() else INTEGERS)
    for name in wanted:
        if name not in present:
            raise WeightsError(f"{tensors.path}: lacks tensor '{name}'")
    for name in present:
        if name not in wanted and name.endswith(table.zero) and tensors.read(name).any():
            raise WeightsError(f"{tensors.path}: '{name}' is not zero, which is not supported")
        if name not in wanted and not name.endswith(table.ignored + table.zero):
            raise keys.unknown(name, wanted, str(tensors.path))
    for name, shape in wanted.items():
        found = tensors.shape(present[name], kinds[name])
        if found != shape:
            raise WeightsError(f"{tensors.path}: '{name}' is {list(found)}, the configuration asks for {list(shape)}")


def _assign(model: Any, name: str, tensor: Tensor) -> None:
    path, _, leaf = name.rpartition(".")
    module = model.get_submodule(path)
    setattr(module, leaf, tensor if leaf in module._buffers else torch.nn.Parameter(tensor))


def _rebuild_buffers(model: Any, device: str) -> None:
    """Buffers that are not persistent were made on the meta device: a module that has any computes them again by
    `derived_buffers() -> {name: tensor}`, as its constructor does."""
    for name, buffer in _derived_buffers(model).items():
        if buffer.is_meta:
            path, _, leaf = name.rpartition(".")
            module = model.get_submodule(path)
            with torch.device(device):
                module._buffers[leaf] = module.derived_buffers()[leaf]
