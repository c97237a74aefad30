# SPDX-License-Identifier: Apache-2.0
"""Model directories: a Hugging Face directory (config.json, model.safetensors, tokenizer.json …) and `foundling.json`,
which says how it came to be and what every file must hash to."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.tensor import DTensor

from foundling.adapt.lora import LoRA, base_tensors
from foundling.adapt.quantize import Int8GroupedLinear, Int8Linear
from foundling.contracts import ConfigMap
from foundling.errors import WeightsError
from foundling.models import Family, family_of
from foundling.weights import keys
from foundling.weights.configs import read_config, write_config
from foundling.weights.files import read_json, sha256, write_directory, write_json

FORMAT_VERSION = 1
MANIFEST = "foundling.json"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def whole(tensor: Tensor) -> Tensor:
    """The tensor itself, or all of one that is sharded over processes (every one of which must call)."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def weights_hash(model: Any) -> str:
    """SHA-256 over our names, shapes and bytes, in name order; a tied weight counts once. Of an adapted model: of its
    base, which adapters are bound to."""
    digest = hashlib.sha256()
    for name, tensor in sorted(base_tensors(model).items()):
        data = whole(tensor.detach()).cpu().contiguous()
        digest.update(f"{name} {data.dtype} {tuple(data.shape)}\n".encode())
        digest.update(
            data.view(torch.uint8).numpy().tobytes()
            if data.ndim
            else data.reshape(1).view(torch.uint8).numpy().tobytes()
        )
    return digest.hexdigest()


def write_weights(model: Any, directory: Path) -> None:
    """config.json and model.safetensors in the published layout, into an existing directory."""
    found = family_of(model)
    if kinds := {type(m).__name__ for m in model.modules() if isinstance(m, LoRA | Int8Linear | Int8GroupedLinear)}:
        raise WeightsError(
            f"{directory.name}: the model has {', '.join(sorted(kinds))} in it; merge or dequantize it first, or save "
            "the adapter alone with save_adapter"
        )
    params = {name: whole(p.detach()) for name, p in model.named_parameters()}  # a tied head is not listed twice
    tensors = {}
    for link in keys.links(found.module.KEYS, params):
        parts = link.to_theirs([params[name] for name in link.ours])
        # safetensors refuses views that share memory
        tensors |= {name: part.clone() for name, part in zip(link.theirs, parts, strict=True)}
    dtype = str(next(iter(params.values())).dtype).removeprefix("torch.")
    config = write_config(found, model.config, getattr(model, "inert", {}), dtype)
    (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    save_file(tensors, directory / found.module.CONFIG.weights, metadata={"format": "pt"})


def save(model: Any, directory: str | Path, *, tokenizer: Any = None, about: dict[str, Any] | None = None) -> Path:
    """Writes a model directory; OutputError if `directory` holds anything already."""
    directory = Path(directory)

    def fill(aside: Path) -> None:
        write_weights(model, aside)
        if tokenizer is not None:
            tokenizer.save(aside)
        write_manifest(aside, {"weights_hash": weights_hash(model), **(about or {})})

    write_directory(directory, fill)
    return directory


def write_manifest(directory: Path, about: dict[str, Any]) -> None:
    """foundling.json: the format, what the caller tells, and the SHA-256 of every other file."""
    files = sorted(p for p in directory.rglob("*") if p.is_file() and p.name != MANIFEST)
    hashes = {str(p.relative_to(directory)): sha256(p) for p in files}
    write_json(directory / MANIFEST, {"format_version": FORMAT_VERSION, **about, "files": hashes})


def read_manifest(directory: Path) -> dict[str, Any]:
    """foundling.json, of this format or an older one."""
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
    """A model of a known family from our directory or one that transformers saved, in evaluation mode.

    Raises WeightsError naming file and key for what is missing, extra, ill-shaped or not safetensors. Shapes are
    compared with the file's header before anything is allocated.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise WeightsError(f"{directory}: no such model directory")
    found, config, inert = read_config(read_json(directory / "config.json"), str(directory / "config.json"))
    file = directory / found.module.CONFIG.weights
    if not file.is_file():
        pickles = [p.name for p in directory.iterdir() if p.suffix in PICKLES]
        why = f" ({pickles[0]} is a pickle, which can execute code and is never opened)" if pickles else ""
        raise WeightsError(f"{directory}: no {file.name}{why}")
    if getattr(config, "tie_embeddings", False) and _has_head(file, found):
        config = dataclasses.replace(config, tie_embeddings=False)
    with torch.device("meta"):
        model = found.model(config)
    model.inert = inert
    tensors = _read(file, found, dict(model.named_parameters()), dtype, device)
    for name, tensor in tensors.items():
        _assign(model, name, tensor)
    if getattr(config, "tie_embeddings", False):
        model.head.weight = model.embedding.weight
    return model.eval()


def _has_head(file: Path, found: Family) -> bool:
    """Whether the file holds a head that is not the embedding, whatever its configuration says (transformers 5 calls
    every T5 tied)."""
    theirs = {key.targets[0]: key.theirs for key in found.module.KEYS}
    names = [theirs["head.weight"], theirs["embedding.weight"]]
    with opening(file) as opened:
        if not set(names) <= set(opened.keys()):
            return False
        head, embedding = (opened.get_slice(name) for name in names)
        if head.get_shape() != embedding.get_shape():
            return False
        return not torch.equal(*(opened.get_tensor(name) for name in names))


@contextmanager
def opening(file: Path, device: str = "cpu") -> Iterator[Any]:
    """A safetensors file, or one line that says what is wrong with it."""
    try:
        with safe_open(file, framework="pt", device=device) as opened:
            yield opened
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{file}: damaged, not safetensors ({str(error).splitlines()[0]})") from None


def _read(file: Path, found: Family, params: dict[str, Tensor], dtype: torch.dtype, device: str) -> dict[str, Tensor]:
    links, prefix = keys.links(found.module.KEYS, params), found.module.CONFIG.base_prefix
    wanted = {name for link in links for name in link.theirs}
    with opening(file, device) as opened:
        present = {n if n in wanted or prefix + n not in wanted else prefix + n: n for n in opened.keys()}  # noqa: SIM118
        _compare(file, opened, present, links, params, found.module.CONFIG)
        ours = {}
        for link in links:
            parts = link.to_ours([opened.get_tensor(present[name]) for name in link.theirs])
            ours |= {name: part.to(dtype).contiguous() for name, part in zip(link.ours, parts, strict=True)}
    return ours


def _compare(
    file: Path,
    opened: Any,
    present: dict[str, str],
    links: list[keys.Link],
    params: dict[str, Tensor],
    table: ConfigMap,
) -> None:
    """Every tensor there, none more, each of the right shape — by the header alone."""
    wanted = {
        name: shape for link in links for name, shape in zip(link.theirs, link.theirs_shapes(params), strict=True)
    }
    for name in wanted:
        if name not in present:
            raise WeightsError(f"{file}: lacks tensor '{name}'")
    for name in present:
        if name not in wanted and not name.endswith(table.ignored):
            raise keys.unknown(name, wanted, str(file))
    for name, shape in wanted.items():
        found = tuple(opened.get_slice(present[name]).get_shape())
        if found != shape:
            raise WeightsError(f"{file}: tensor '{name}' is {list(found)}, the configuration asks for {list(shape)}")


def _assign(model: Any, name: str, tensor: Tensor) -> None:
    path, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(path), leaf, torch.nn.Parameter(tensor))
