# SPDX-License-Identifier: Apache-2.0
"""Whole directories between this house and others: what is imported gets hashes of its own and a note of where it came
from, what is exported is what transformers or diffusers would have saved, or one GGUF file."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

import torch

from foundling.diffusion.schedule import NoiseSchedule
from foundling.errors import ConfigError, OutputError, WeightsError
from foundling.models import count_parameters, family_of
from foundling.runtime.files import read_json, require_free, sha256, write_directory, write_json
from foundling.text import Tokenizer
from foundling.text.tokenizer import NAMES_CODE
from foundling.weights.convert.diffusers import is_pipeline, load_denoiser, tensors_folder, write_denoiser
from foundling.weights.convert.gguf import load_gguf, save_gguf
from foundling.weights.directory import (
    MANIFEST,
    check,
    load,
    opened,
    weights_hash,
    whole_tensors,
    write_manifest,
    write_weights,
)
from foundling.weights.tensors import stored_in

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
STORED = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
COMPANIONS = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "vocab.txt", "merges.txt", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "chat_template.jinja",
    "chat_template.json", "generation_config.json", "preprocessor_config.json", "processor_config.json", "README.md",
    "LICENSE", "LICENSE.txt", "LICENSE.md", "NOTICE", "NOTICE.txt", "USE_POLICY.md",
)  # fmt: skip
"""What goes along with the weights: data that a tokenizer or a reader needs, nothing that runs."""
OURS = ("config.json", "model_index.json", "unet", "scheduler", MANIFEST)
"""written anew"""
MAX_COMPANION_BYTES = 64 << 20
PICKLED = (b"\x80", b"PK")
"""how a pickle begins, and torch's archive of them"""


def import_model(source: str | Path, out: str | Path, *, dtype: str | None = None) -> dict[str, Any]:
    """A directory of transformers or diffusers, or a GGUF file, as a model directory of ours: equal weights, the files
    beside them, and foundling.json with every hash, those of the source too.

    `dtype` is one of DTYPES; None keeps the stored one where all tensors share it, and is float32 elsewhere.
    WeightsError for what is damaged, unknown or no data, before anything is written; OutputError where `out` exists.
    """
    source, out = Path(source), Path(out)
    require_free(out)
    model, schedule = _read(source, dtype)
    kept, left_out = companions(source)
    origin = {"name": source.resolve().name, "files": _hashes(source, kept)}

    def fill(aside: Path) -> None:
        _write(model, schedule, kept, aside)
        write_manifest(aside, {"weights_hash": weights_hash(model), "source": origin})

    write_directory(out, fill)
    return _told(model, out, kept, left_out)


def export_model(directory: str | Path, out: str | Path, *, dtype: str | None = None) -> dict[str, Any]:
    """A model directory as transformers or diffusers would have saved it, without anything of ours. Every file is
    first compared with its hash; else as `import_model`."""
    directory, out = Path(directory), Path(out)
    require_free(out)
    model, schedule = _read(directory, dtype)
    kept, left_out = companions(directory)
    write_directory(out, lambda aside: _write(model, schedule, kept, aside))
    return _told(model, out, kept, left_out)


def export_gguf(directory: str | Path, out: str | Path, *, weights: str | None = None) -> dict[str, Any]:
    """A Llama as one GGUF file; `weights` as in save_gguf, None for the stored type. Its tokenizer goes along where it
    is byte-level BPE, which alone is written; 'kept' says so."""
    directory, out = Path(directory), Path(out)
    if out.exists():
        raise OutputError(f"{out} exists; choose another name")
    model, _ = _read(directory, None)
    tokenizer = _byte_level(directory)
    save_gguf(model, out, weights=weights or _dtype_name(model), tokenizer=tokenizer)
    _, left_out = companions(directory)
    return _told(model, out, [] if tokenizer is None else [directory / "tokenizer.json"], left_out) | {
        "dtype": weights or _dtype_name(model)
    }


def companions(directory: Path) -> tuple[list[Path], list[str]]:
    """Files beside the weights: those of COMPANIONS, and the names of all others, which stay behind. WeightsError for
    one that is too large, leads out of the directory, or is not what its name says."""
    if not directory.is_dir():
        return [], []
    kept, left_out = [], []
    for path in sorted(directory.iterdir()):
        if path.name in COMPANIONS:
            _look_at(path)
            kept.append(path)
        elif not path.name.startswith(".") and path.name not in OURS and ".safetensors" not in path.name:
            left_out.append(path.name + "/" * path.is_dir())
    return kept, left_out


def _look_at(path: Path) -> None:
    here, there = path.parent.resolve(), path.resolve()
    # a snapshot of the hub's cache is links into the folder `blobs` beside `snapshots`
    if there.parent != here and there.parent != here.parent.parent / "blobs":
        raise WeightsError(f"{path}: leads out of the directory, so it is not taken along; put the file itself there")
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise WeightsError(f"{path}: not a file")
        if found.st_size > MAX_COMPANION_BYTES:
            raise WeightsError(f"{path}: over {MAX_COMPANION_BYTES >> 20} MiB, too large to go along; take it away")
        if path.suffix == ".json":
            read_json(path, MAX_COMPANION_BYTES)
        elif path.suffix == ".model":
            with open(path, "rb") as file:
                if file.read(2).startswith(PICKLED):
                    raise WeightsError(f"{path}: is a pickle, which can execute code and is never taken along")
        else:
            path.read_text(encoding="utf-8")
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise WeightsError(f"{path}: damaged, not UTF-8 text") from None


def _read(source: Path, dtype: str | None) -> tuple[Any, NoiseSchedule | None]:
    """The model, of the stored type where `dtype` is None, and the schedule of a denoiser that has one."""
    if dtype is not None and dtype not in DTYPES:
        raise ConfigError(f"dtype '{dtype}' is not known; use {', '.join(DTYPES)}")
    if source.is_file() and source.suffix == ".gguf":
        return load_gguf(source, dtype=DTYPES[dtype or "float32"]), None
    if not source.is_dir():
        raise WeightsError(f"{source}: no such model directory")
    if (source / MANIFEST).exists() and (problems := check(source)["problems"]):
        raise WeightsError(f"{source}: {'; '.join(problems)}")
    if dtype is None:
        with opened(tensors_folder(source)) as (_, _, _, tensors):
            kinds = {tensors.dtype(name) for name in tensors}
        dtype = STORED.get(kinds.pop(), "float32") if len(kinds) == 1 else "float32"
    if is_pipeline(source):
        return load_denoiser(source, dtype=DTYPES[dtype])
    return load(source, dtype=DTYPES[dtype]), None


def _write(model: Any, schedule: NoiseSchedule | None, kept: list[Path], aside: Path) -> None:
    getattr(model, "inert", {}).pop(NAMES_CODE, None)
    params = whole_tensors(model)
    if schedule is None:
        write_weights(model, params, aside)
    else:
        write_denoiser(model, params, schedule, aside)
    for path in kept:
        values = read_json(path, MAX_COMPANION_BYTES) if path.suffix == ".json" else {}
        if values.pop(NAMES_CODE, None) is None:
            (aside / path.name).write_bytes(path.read_bytes())
        else:
            write_json(aside / path.name, values)


def _hashes(source: Path, kept: list[Path]) -> dict[str, str]:
    """Of all that was read: the published hashes of a release can be compared with these."""
    if source.is_file():
        return {source.name: sha256(source)}
    folder = tensors_folder(source)
    with opened(folder) as (found, _, _, _):
        read = [*kept, folder / "config.json", *stored_in(folder, found.module.CONFIG.weights)]
    if is_pipeline(source):
        read += [source / "model_index.json", source / "scheduler" / "scheduler_config.json"]
    return {str(path.relative_to(source)): sha256(path) for path in sorted(read)}


def _byte_level(directory: Path) -> Tokenizer | None:
    file = directory / "tokenizer.json"
    if not file.is_file():
        return None
    table = read_json(file, MAX_COMPANION_BYTES)
    kinds = [(table.get(part) or {}).get("type") for part in ("model", "decoder")]
    if kinds != ["BPE", "ByteLevel"]:
        return None
    try:
        return Tokenizer.load(directory)
    except ConfigError:  # none that ends a document as ours do
        return None


def _dtype_name(model: Any) -> str:
    return str(next(model.parameters()).dtype).removeprefix("torch.")


def _told(model: Any, out: Path, kept: list[Path], left_out: list[str]) -> dict[str, Any]:
    return {
        "out": str(out),
        "family": family_of(model).name,
        "parameters": count_parameters(model)["total"],
        "dtype": _dtype_name(model),
        "kept": [path.name for path in kept],
        "left_out": left_out,
    }
