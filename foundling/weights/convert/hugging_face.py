# SPDX-License-Identifier: Apache-2.0
"""Imports and exports whole model directories. An import adds our hashes and records its source; an export is the
directory that transformers or diffusers would have saved, or one GGUF file."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

import torch

from foundling.diffusion.schedule import NoiseSchedule
from foundling.errors import ConfigError, OutputError, WeightsError
from foundling.limits import COMPANION_BYTES
from foundling.models import count_parameters, family_of
from foundling.runtime.files import read_json, require_free, require_space, sha256, write_directory, write_json
from foundling.runtime.hub import is_hub, local_directory, resolve
from foundling.text import Tokenizer
from foundling.text.tokenizer import NAMES_CODE
from foundling.weights.convert.diffusers import is_pipeline, load_denoiser, tensors_folder, write_denoiser
from foundling.weights.convert.gguf import load_gguf, save_gguf, unapplied
from foundling.weights.convert.gguf_file import GGUFFile, open_gguf
from foundling.weights.convert.gguf_tokenizer import read_tokenizer, unapplied_steps, unwritable
from foundling.weights.directory import load, opened, tensor_bytes, weights_hash, whole_tensors, write_weights
from foundling.weights.manifest import MANIFEST, check, write_manifest
from foundling.weights.tensors import stored_in

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
STORED_DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16", "MXFP4": "bfloat16"}
COMPANIONS = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "vocab.txt", "merges.txt", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "chat_template.jinja",
    "chat_template.json", "generation_config.json", "preprocessor_config.json", "processor_config.json", "README.md",
    "LICENSE", "LICENSE.txt", "LICENSE.md", "NOTICE", "NOTICE.txt", "USE_POLICY.md",
)  # fmt: skip
"""Files copied along with the weights: data for a tokenizer or a reader, never code."""
GGUF_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "int8": 34 / 32, "int4": 18 / 32}
"""of a weight, with its share of a group's scale"""
REWRITTEN = ("config.json", "model_index.json", "unet", "scheduler", MANIFEST)
"""Files and folders that are written anew."""
PICKLED = (b"\x80", b"PK")
"""First bytes of a pickle and of torch's archive of pickles."""


def import_model(source: str | Path, out: str | Path, *, dtype: str | None = None) -> dict[str, Any]:
    """Converts a directory of transformers or diffusers, or a GGUF file, to our model directory: equal weights, the
    files of COMPANIONS, and foundling.json with the hashes of all files and of the source.

    `dtype` is one of DTYPES; None keeps the stored type if all tensors share one, and otherwise means float32. Raises
    WeightsError for damaged, unknown or executable content before anything is written, OutputError if `out` exists.
    """
    out = Path(out)
    require_free(out)
    snapshot = resolve(source) if is_hub(source) else None
    source = snapshot.directory if snapshot else Path(source)
    gguf = open_gguf(source) if source.is_file() and source.suffix == ".gguf" else None
    model, schedule = _read(source if gguf is None else gguf, dtype)
    companion_files, skipped = companions(source)
    require_space(out, _size(model, companion_files))
    origin = {"name": source.resolve().name, "files": _hashes(source, companion_files)}
    if snapshot:
        origin |= {"name": snapshot.place, "revision": snapshot.revision, "commit": snapshot.commit}

    found = None if gguf is None else read_tokenizer(gguf)
    if isinstance(found, str):
        skipped.append(found)

    def fill(temporary: Path) -> None:
        _write(model, schedule, companion_files, temporary)
        if isinstance(found, tuple):
            found[0].save(temporary)
            write_json(temporary / "generation_config.json", found[1])
        write_manifest(temporary, {"weights_hash": weights_hash(model), "source": origin})

    write_directory(out, fill)
    written = ["tokenizer.json", "generation_config.json"] if isinstance(found, tuple) else []
    said: dict[str, Any] = {"kept": [*(f.name for f in companion_files), *written]}
    if gguf is not None:
        said["dequantized"] = gguf.dequantized
    return _summary(model, out, companion_files, skipped) | said


def export_model(directory: str | Path, out: str | Path, *, dtype: str | None = None) -> dict[str, Any]:
    """Writes a model directory as transformers or diffusers would have saved it, without our own files. First compares
    every file with its hash. Arguments and errors as in `import_model`."""
    directory, out = local_directory(directory), Path(out)
    require_free(out)
    model, schedule = _read(directory, dtype)
    companion_files, skipped = companions(directory)
    require_space(out, _size(model, companion_files))
    write_directory(out, lambda temporary: _write(model, schedule, companion_files, temporary))
    return _summary(model, out, companion_files, skipped)


def read_model(directory: str | Path) -> Any:
    """A model in the type that is stored, float32 where there are several, after its files were compared with their
    hashes. WeightsError for a pipeline of diffusers, of which a denoiser is a part."""
    directory = local_directory(directory)
    if is_pipeline(directory):
        raise WeightsError(f"{directory}: a pipeline; name the folder of its model, such as {directory / 'unet'}")
    return _read(directory, None)[0]


def save_changed(
    model: Any, source: str | Path, out: str | Path, about: dict[str, Any], *, files: list[Path] | None = None
) -> dict[str, Any]:
    """Writes a model that was changed after it was read from the directory `source`, with `files` beside it, by default
    those of COMPANIONS from there but its README, and `about` in foundling.json. OutputError if `out` is not empty."""
    source, out = local_directory(source), Path(out)
    require_free(out)
    companion_files, skipped = companions(source)
    companion_files = [path for path in companion_files if path.name != "README.md"] if files is None else files
    require_space(out, _size(model, companion_files))

    def fill(temporary: Path) -> None:
        _write(model, None, companion_files, temporary)
        write_manifest(temporary, {"weights_hash": weights_hash(model), **about})

    write_directory(out, fill)
    return _summary(model, out, companion_files, skipped)


def export_gguf(directory: str | Path, out: str | Path, *, weights: str | None = None) -> dict[str, Any]:
    """Writes a model as one GGUF file. `weights` as in save_gguf, None for the stored type. 'kept' in the result lists
    the tokenizer where llama.cpp can have it; 'left_out' says why it is not written otherwise, and what of the model or
    the tokenizer llama.cpp does not apply."""
    directory, out = local_directory(directory), Path(out)
    if out.exists():
        raise OutputError(f"{out} exists; choose another name")
    model, _ = _read(directory, None)
    kind = weights or _dtype_name(model)
    width = next(model.parameters()).element_size()
    require_space(out, int(tensor_bytes(model) / width * GGUF_BYTES.get(kind, 4)))
    _, skipped = companions(directory)
    tokenizer, reason = _writable_tokenizer(directory, model.config)
    if reason is not None:
        skipped.append(f"tokenizer.json ({reason}; give llama.cpp ids, or export without --gguf)")
    skipped += unapplied(model) + ([] if tokenizer is None else unapplied_steps(tokenizer))
    save_gguf(model, out, weights=weights or _dtype_name(model), tokenizer=tokenizer)
    return _summary(model, out, [] if tokenizer is None else [directory / "tokenizer.json"], skipped) | {
        "dtype": weights or _dtype_name(model)
    }


def _size(model: Any, companion_files: list[Path]) -> int:
    """Bytes of the weights and of the files beside them."""
    return tensor_bytes(model) + sum(path.stat().st_size for path in companion_files)


def companions(directory: Path) -> tuple[list[Path], list[str]]:
    """(the files of COMPANIONS that are present, the names of all other files, which are skipped). Raises WeightsError
    for a companion that is too large, links out of the directory, or does not match its suffix."""
    if not directory.is_dir():
        return [], []
    companion_files, skipped = [], []
    for path in sorted(directory.iterdir()):
        if path.name in COMPANIONS:
            _check_companion(path)
            companion_files.append(path)
        elif not path.name.startswith(".") and path.name not in REWRITTEN and ".safetensors" not in path.name:
            skipped.append(path.name + "/" * path.is_dir())
    return companion_files, skipped


def _check_companion(path: Path) -> None:
    folder, target = path.parent.resolve(), path.resolve()
    # the hub's cache links the files of a snapshot to the folder `blobs` beside `snapshots`
    if target.parent != folder and target.parent != folder.parent.parent / "blobs":
        raise WeightsError(f"{path}: links out of the directory, so it is not copied; replace the link by the file")
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise WeightsError(f"{path}: not a file")
        if status.st_size > COMPANION_BYTES.high:
            raise WeightsError(f"{path}: over {COMPANION_BYTES.high >> 20} MiB, too large to copy; remove it")
        if path.suffix == ".json":
            read_json(path, COMPANION_BYTES.high)
        elif path.suffix == ".model":
            with open(path, "rb") as file:
                if file.read(2).startswith(PICKLED):
                    raise WeightsError(f"{path}: is a pickle, which can execute code and is never copied")
        else:
            path.read_text(encoding="utf-8")
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise WeightsError(f"{path}: damaged, not UTF-8 text") from None


def _read(source: Path | GGUFFile, dtype: str | None) -> tuple[Any, NoiseSchedule | None]:
    """(the model, in the stored type if `dtype` is None; the schedule of a diffusers pipeline, else None)."""
    if dtype is not None and dtype not in DTYPES:
        raise ConfigError(f"dtype '{dtype}' is not supported; use {', '.join(DTYPES)}")
    if isinstance(source, GGUFFile):
        return load_gguf(source, dtype=DTYPES[dtype or "float32"]), None
    if not source.is_dir():
        raise WeightsError(f"{source}: no such model directory")
    if (source / MANIFEST).exists() and (problems := check(source)["problems"]):
        raise WeightsError(f"{source}: {'; '.join(problems)}")
    if dtype is None:
        dtype = stored_dtype(source)
    if is_pipeline(source):
        return load_denoiser(source, dtype=DTYPES[dtype])
    return load(source, dtype=DTYPES[dtype]), None


def stored_dtype(source: Path) -> str:
    """The type of a directory's tensors, as DTYPES calls it; float32 where there are several."""
    with opened(tensors_folder(source)) as (_, _, _, tensors, _):
        kinds = {STORED_DTYPES.get(tensors.dtype(name), "float32") for name in tensors}
    return kinds.pop() if len(kinds) == 1 else "float32"


def _write(model: Any, schedule: NoiseSchedule | None, companion_files: list[Path], temporary: Path) -> None:
    getattr(model, "inert", {}).pop(NAMES_CODE, None)
    params = whole_tensors(model)
    if schedule is None:
        write_weights(model, params, temporary)
    else:
        write_denoiser(model, params, schedule, temporary)
    for path in companion_files:
        values = read_json(path, COMPANION_BYTES.high) if path.suffix == ".json" else {}
        if values.pop(NAMES_CODE, None) is None:
            (temporary / path.name).write_bytes(path.read_bytes())
        else:
            write_json(temporary / path.name, values)


def _hashes(source: Path, companion_files: list[Path]) -> dict[str, str]:
    """Hashes of all files that were read, to compare with the published hashes of a release."""
    if source.is_file():
        return {source.name: sha256(source)}
    folder = tensors_folder(source)
    with opened(folder) as (family, *_):
        read = [*companion_files, folder / "config.json", *stored_in(folder, family.module.CONFIG.weights)]
    if is_pipeline(source):
        read += [source / "model_index.json", source / "scheduler" / "scheduler_config.json"]
    return {str(path.relative_to(source)): sha256(path) for path in sorted(read)}


def _writable_tokenizer(directory: Path, config: Any) -> tuple[Tokenizer | None, str | None]:
    """(the tokenizer where a GGUF file can hold it, why not where there is one)."""
    if not (directory / "tokenizer.json").is_file():
        return None, None
    try:
        tokenizer = Tokenizer.load(directory)
    except ConfigError:
        return None, "it has no end-of-text token"
    reason = unwritable(tokenizer, getattr(config, "vocab_size", 0))
    return (tokenizer, None) if reason is None else (None, reason)


def _dtype_name(model: Any) -> str:
    return str(next(model.parameters()).dtype).removeprefix("torch.")


def _summary(model: Any, out: Path, companion_files: list[Path], skipped: list[str]) -> dict[str, Any]:
    return {
        "out": str(out),
        "family": family_of(model).name,
        "parameters": count_parameters(model)["total"],
        "dtype": _dtype_name(model),
        "kept": [path.name for path in companion_files],
        "left_out": skipped,
    }
