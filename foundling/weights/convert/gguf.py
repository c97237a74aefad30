# SPDX-License-Identifier: Apache-2.0
"""Reads and writes GGUF, the single-file format of llama.cpp, for the families of gguf_families: a tensor at a time."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor

from foundling.blocks.position import RopeScaling
from foundling.config import hints
from foundling.errors import ConfigError, OutputError, WeightsError
from foundling.limits import LAYERS, shown
from foundling.models import configuration, family, family_of
from foundling.runtime.files import fsync_path, output_errors, remove_abandoned, rename_new, temporary
from foundling.weights.convert.gguf_families import ARCHITECTURES, INERT, SCALING, Architecture
from foundling.weights.convert.gguf_file import GGUFFile, library, open_gguf
from foundling.weights.convert.gguf_tokenizer import unwritable, write_tokenizer
from foundling.weights.directory import converted, skeleton, whole_tensors
from foundling.weights.keys import Link, links, unknown

TYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16", "int8": "Q8_0", "int4": "Q4_0"}
FILE_TYPES = {"float32": 0, "float16": 1, "int4": 2, "int8": 7, "bfloat16": 32}
"""general.file_type: what most tensors are"""
BLOCK = 32
"""Numbers of a block of Q8_0 and Q4_0."""
LARGEST = {"BF16": torch.finfo(torch.bfloat16).max, "F16": 65504.0, "Q8_0": 127 * 65504.0, "Q4_0": 8 * 65504.0}
"""of each type but F32: the scale of a block is a float16"""
FREQS = "rope_freqs.weight"
"""By what each rotation is slowed, where it is as in Llama 3."""


def load_gguf(file: str | Path | GGUFFile, *, dtype: torch.dtype = torch.float32) -> Any:
    """Loads a model from a GGUF file, in evaluation mode; quantised weights are converted to `dtype`.

    Raises WeightsError with file and key for an architecture or type that is not read, a missing, unknown or misshapen
    tensor, a key that may change what the model computes, and a file that is truncated or not GGUF.
    """
    opened = file if isinstance(file, GGUFFile) else open_gguf(file)
    architecture, config = _config(opened)
    model = skeleton(family(architecture.family), config, str(opened.path))
    ours = dict(model.named_parameters())
    matched = links(architecture.keys, ours, config)
    shapes = {t: s for link in matched for t, s in zip(link.theirs, link.theirs_shapes(ours), strict=True)}
    for name in opened.tensors:
        if name not in shapes and name != FREQS:
            raise unknown(name, shapes, str(opened.path))
    for name, shape in shapes.items():
        if name not in opened.tensors:
            raise WeightsError(f"{opened.path}: lacks tensor '{name}'")
        if opened.tensors[name].shape != shape:
            raise WeightsError(f"{opened.path}: '{name}' is {list(opened.tensors[name].shape)}, expected {list(shape)}")
    for link in matched:
        parts = link.to_ours([opened.read(name, dtype) for name in link.theirs])
        for name, part in zip(link.ours, parts, strict=True):
            path, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(path), leaf, torch.nn.Parameter(part.contiguous()))
    if config.tie_embeddings:
        model.head.weight = model.embedding.weight
    return model.eval()


def _config(file: GGUFFile) -> tuple[Architecture, Any]:
    architecture = _architecture(file)
    prefix = f"{architecture.name}."
    values = {key.removeprefix(prefix): value for key, value in file.values.items() if key.startswith(prefix)}
    for key in values:
        if key not in {*architecture.fields, *architecture.only, *INERT, *SCALING}:
            raise WeightsError(
                f"{file.path}: {shown(prefix + key)} is not known here, and may change what the model computes"
            )
    _check_types(architecture, values, file)
    required = [key for key in architecture.fields if key not in architecture.optional and key not in values]
    if required or "token_embd.weight" not in file.tensors:
        raise WeightsError(f"{file.path}: lacks '{prefix + required[0] if required else 'token_embd.weight'}'")
    given = {key: value for key, value in architecture.optional.items() if value is not None} | values
    fields = {ours: _decimal(given[key]) for key, ours in architecture.fields.items() if key in given}
    fields |= {architecture.fields[key]: None for key, value in architecture.none.items() if given.get(key) == value}
    try:
        if fields["n_layers"] > min(len(file.tensors), LAYERS.high):
            raise WeightsError(
                f"{file.path}: block_count {fields['n_layers']}, the file holds {len(file.tensors)} tensors"
            )
        fields.setdefault("n_kv_heads", fields["n_heads"])
        if "head_dim" in architecture.fields.values():
            fields.setdefault("head_dim", fields["d_model"] // fields["n_heads"])
        fields["vocab_size"] = file.tensors["token_embd.weight"].shape[0]
        fields["tie_embeddings"] = "output.weight" not in file.tensors
        scaling = _scaling(values, fields, file, architecture)
        if scaling is not None:
            fields["rope_scaling"] = scaling
        config = configuration(family(architecture.family), fields, where=str(file.path))
        if architecture.implied:
            implied = {name: compute(config) for name, compute in architecture.implied.items()}
            config = configuration(family(architecture.family), fields | implied, where=str(file.path))
    except (ConfigError, TypeError, ZeroDivisionError, IndexError) as error:
        raise WeightsError(str(error) if str(file.path) in str(error) else f"{file.path}: {error}") from None
    for key, expected in architecture.only.items():
        right = getattr(config, expected) if isinstance(expected, str) else expected
        if key in values and values[key] != right:
            raise WeightsError(f"{file.path}: '{prefix}{key}' is {shown(values[key])}; only {right!r} can be read")
    return architecture, config


def _check_types(architecture: Architecture, values: dict[str, Any], file: GGUFFile) -> None:
    types = hints(family(architecture.family).config)
    for key, value in values.items():
        if key in INERT:
            continue
        wanted, name = (int, float), "one number"
        if key == "rope.scaling.type":
            wanted, name = str, "a text"
        elif key in architecture.fields and not _is_float(types[architecture.fields[key]]):
            wanted, name = int, "a whole number"
        if not isinstance(value, wanted):
            raise WeightsError(f"{file.path}: '{architecture.name}.{key}' is {shown(value)}; expected {name}")


def _is_float(hint: Any) -> bool:
    """Also of one that may be None."""
    return float in (hint, *get_args(hint))


def _architecture(file: GGUFFile) -> Architecture:
    name, kind = file.values.get("general.architecture"), file.values.get("general.type", "model")
    if not isinstance(kind, str) or kind != "model":
        raise WeightsError(f"{file.path}: its general.type is {shown(kind)}; only a model can be read")
    count = file.values.get("split.count", 0)
    if not isinstance(count, int) or count not in (0, 1):
        raise WeightsError(f"{file.path}: a part of a model in several files; join them by llama-gguf-split --merge")
    count = file.values.get(f"{name}.expert_count", 0)
    has_experts = not isinstance(count, int) or count != 0
    found = [a for a in ARCHITECTURES if isinstance(name, str) and a.name == name]
    if not found:
        known = ", ".join(dict.fromkeys(a.name for a in ARCHITECTURES))
        raise WeightsError(f"{file.path}: architecture is {shown(name)}; {known} can be read")
    return next((a for a in found if ("expert_count" in a.fields) == has_experts), found[0])


def _scaling(
    values: dict[str, Any], fields: dict[str, Any], file: GGUFFile, architecture: Architecture
) -> dict[str, Any] | None:
    """The field rope_scaling, from a factor or from a tensor of frequencies."""
    kind, factor = (
        values.get("rope.scaling.type"),
        values.get("rope.scaling.factor", values.get("rope.scale_linear", 0)),
    )
    factor, freqs = 1.0 if kind == "none" or factor == 0 else _decimal(factor), FREQS in file.tensors
    if kind in (None, "none", "linear") and factor == 1 and not freqs:
        return None
    scaled = "llama3" if freqs else kind or "linear"
    if scaled not in architecture.scalings or not 1 <= factor < math.inf:
        which = f"scaled as {shown(scaled)} by {factor:g}"
        can = " or ".join(architecture.scalings) or "none"
        raise WeightsError(f"{file.path}: rotary positions {which} are not supported for {architecture.name}; {can} is")
    if not freqs:
        return {"kind": "linear", "factor": factor}
    slowed, half = file.read(FREQS, torch.float32), fields["head_dim"] // 2
    if factor == 1 and slowed.shape == (half,):
        scaling = RopeScaling("llama3", max(1.0, _decimal(float(slowed.max()))))
        if torch.allclose(slowed, _slowing(scaling, 2 * half, fields["rope_theta"]), rtol=1e-4):
            return {"kind": "llama3", "factor": scaling.factor}
    raise WeightsError(f"{file.path}: '{FREQS}' scales rotary positions otherwise than Llama 3.1 does")


def _slowing(scaling: RopeScaling, head_dim: int, theta: float) -> Tensor:
    """(head_dim / 2,): by what each rotation is slowed."""
    rates = 1.0 / theta ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    return rates / scaling.slowed(rates, theta, torch.zeros(1, 1))


def _decimal(value: Any) -> Any:
    """The shortest decimal that rounds to the float32 value: 1e-05 for 9.999999747378752e-06."""
    return float(str(np.float32(value))) if isinstance(value, float) else value


def save_gguf(model: Any, file: str | Path, *, weights: str = "float32", tokenizer: Any = None) -> Path:
    """Writes a model as one GGUF file: matrices as `weights` (float32, bfloat16, float16, int8 as Q8_0, or int4 as Q4_0
    with embedding and head as Q8_0), vectors and routers as float32.

    Raises WeightsError for another family, for what llama.cpp computes otherwise, or if a quantised width is not a
    multiple of 32, and OutputError if the file exists."""
    gguf, file = library(), Path(file)
    architecture = _writable(model)
    if weights not in TYPES:
        raise WeightsError(f"weights '{weights}' are not supported; use {', '.join(TYPES)}")
    if file.exists():
        raise OutputError(f"{file} exists; choose another name")
    params, c = whole_tensors(model), model.config
    if tokenizer is not None and (reason := unwritable(tokenizer, c.vocab_size)):
        raise WeightsError(f"llama.cpp cannot have this tokenizer: {reason}; write the file without it")
    planned = _planned(links(architecture.keys, params, c), params, weights)
    with output_errors(file):
        remove_abandoned(file.parent)
        with temporary(file) as aside:
            writer = gguf.GGUFWriter(aside, architecture.name)
            writer.add_file_type(FILE_TYPES[weights])
            slowed = _write_config(writer, architecture, c)
            write_tokenizer(writer, tokenizer, c.vocab_size)
            if slowed is not None:
                writer.add_tensor_info(FREQS, slowed.shape, np.dtype(np.float32), slowed.nbytes)
            for name, (_, shape, kind) in planned.items():
                stored = gguf.quant_shape_to_byte_shape(shape, gguf.GGMLQuantizationType[kind])
                writer.add_tensor_info(
                    name, stored, np.dtype(np.uint8), math.prod(stored), gguf.GGMLQuantizationType[kind]
                )
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            if slowed is not None:
                writer.write_tensor_data(slowed.numpy())
            for link in dict.fromkeys(link for link, _, _ in planned.values()):
                parts = link.to_theirs([params[name].float().cpu() for name in link.ours])
                for name, part in zip(link.theirs, parts, strict=True):
                    kind = planned[name][2]
                    largest = float(converted(part, torch.float32, link.ours[0]).abs().max())
                    if largest > LARGEST.get(kind, math.inf):
                        raise WeightsError(
                            f"'{link.ours[0]}' holds {largest:g}, beyond {kind} ({LARGEST[kind]:g}); use bfloat16"
                        )
                    data = gguf.quants.quantize(part.numpy(), gguf.GGMLQuantizationType[kind])
                    writer.write_tensor_data(np.ascontiguousarray(data).view(np.uint8))
            writer.close()
            fsync_path(aside)
            try:
                rename_new(aside, file)
            except FileExistsError:
                raise OutputError(f"{file} exists; choose another name") from None
            fsync_path(file.parent)
    return file


def _writable(model: Any) -> Architecture:
    """The architecture of the model, which llama.cpp computes as we do; else WeightsError."""
    name, c = family_of(model).name, model.config
    found = next((a for a in ARCHITECTURES if a.family == name), None)
    if found is None:
        raise WeightsError(f"GGUF is supported for {', '.join(a.family for a in ARCHITECTURES)}, not for {name}")
    if model.head is None:
        raise WeightsError("GGUF export needs the head, which this model was saved without: it would be read as tied")
    if found.head != "optional" and c.tie_embeddings != (found.head == "never"):
        raise WeightsError(
            f"llama.cpp's {found.name} has {found.head} a head apart from the embedding; this has the other"
        )
    for field, compute in found.implied.items():
        if (value := compute(c)) != getattr(c, field):
            raise WeightsError(f"llama.cpp's {found.name} computes with {field} {value}; this has {getattr(c, field)}")
    scaling = getattr(c, "rope_scaling", None)
    if scaling is not None and scaling.kind not in found.scalings:
        raise WeightsError(f"llama.cpp's {found.name} does not scale rotary positions as {scaling.kind}")
    for key, field in found.fields.items():
        if getattr(c, field) is None and key not in found.none:
            raise WeightsError(f"llama.cpp's {found.name} always has {field}, which this model has not")
    return found


def unapplied(model: Any) -> list[str]:
    """What llama.cpp leaves out of a model that is written all the same, in words."""
    found, c = _writable(model), model.config
    sizes = [(field, getattr(c, field)) for field in found.unapplied]
    return [
        f"{field} of {size:,} tokens: llama.cpp does not apply it; texts up to that length are computed alike"
        for field, size in sizes
        if size is not None and size < c.max_seq_len
    ]


def _write_config(writer: Any, architecture: Architecture, c: Any) -> Tensor | None:
    """Writes the keys of the configuration; returns the tensor FREQS where there is one."""
    prefix, types = f"{architecture.name}.", hints(type(c))
    for key, ours in architecture.fields.items():
        value = architecture.none[key] if getattr(c, ours) is None else getattr(c, ours)
        if _is_float(types[ours]):  # also where the value is an int: llama.cpp refuses a key of another type
            writer.add_float32(prefix + key, float(value))
        else:
            writer.add_uint32(prefix + key, value)
    for key, ours in architecture.only.items():
        if isinstance(ours, str):
            writer.add_uint32(prefix + key, getattr(c, ours))
    writer.add_uint32(f"{prefix}vocab_size", c.vocab_size)
    scaling = getattr(c, "rope_scaling", None)
    if scaling is not None and scaling.kind == "llama3":
        return _slowing(scaling, c.head_dim, c.rope_theta)
    if scaling is not None:
        writer.add_string(f"{prefix}rope.scaling.type", scaling.kind)
        writer.add_float32(f"{prefix}rope.scaling.factor", scaling.factor)
    return None


def _planned(
    matched: list[Link], params: dict[str, Tensor], weights: str
) -> dict[str, tuple[Link, tuple[int, ...], str]]:
    """Name in the file -> (its link, its shape, its type)."""
    planned: dict[str, tuple[Link, tuple[int, ...], str]] = {}
    for link in matched:
        for name, shape in zip(link.theirs, link.theirs_shapes(params), strict=True):
            kind = "F32" if len(shape) < 2 or "ffn_gate_inp" in name else TYPES[weights]
            if weights == "int4" and link.ours[0] in ("embedding.weight", "head.weight"):
                kind = "Q8_0"
            if kind.startswith("Q") and (width := shape[len(shape) - 1]) % BLOCK:
                raise WeightsError(f"{weights} needs widths that are multiples of {BLOCK}; '{name}' has {width}")
            planned[name] = (link, shape, kind)
    return planned
