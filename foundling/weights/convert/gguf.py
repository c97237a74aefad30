# SPDX-License-Identifier: Apache-2.0
"""Reads and writes GGUF, the single-file format of llama.cpp, for Llama. Reads all weight types and writes five.

The library `gguf` reads and writes the file; this module maps its names and values to ours.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from foundling.errors import ConfigError, OutputError, WeightsError
from foundling.limits import LAYERS
from foundling.models import configuration, family, family_of
from foundling.runtime.files import fsync_path, output_errors
from foundling.weights.convert.gguf_file import library, open_gguf
from foundling.weights.convert.gguf_tokenizer import write_tokenizer
from foundling.weights.directory import converted, skeleton, whole_tensors

KEYS = {
    "token_embd.weight": "embedding.weight",
    "blk.{i}.attn_norm.weight": "layers.{i}.mixer_norm.weight",
    "blk.{i}.attn_q.weight": "layers.{i}.mixer.q.weight",
    "blk.{i}.attn_k.weight": "layers.{i}.mixer.k.weight",
    "blk.{i}.attn_v.weight": "layers.{i}.mixer.v.weight",
    "blk.{i}.attn_output.weight": "layers.{i}.mixer.o.weight",
    "blk.{i}.ffn_norm.weight": "layers.{i}.ffn_norm.weight",
    "blk.{i}.ffn_gate.weight": "layers.{i}.ffn.gate.weight",
    "blk.{i}.ffn_up.weight": "layers.{i}.ffn.up.weight",
    "blk.{i}.ffn_down.weight": "layers.{i}.ffn.down.weight",
    "output_norm.weight": "norm.weight",
    "output.weight": "head.weight",
}
FIELDS = {
    "llama.embedding_length": "d_model",
    "llama.block_count": "n_layers",
    "llama.attention.head_count": "n_heads",
    "llama.attention.head_count_kv": "n_kv_heads",
    "llama.attention.key_length": "head_dim",
    "llama.feed_forward_length": "d_ff",
    "llama.context_length": "max_seq_len",
    "llama.rope.freq_base": "rope_theta",
    "llama.attention.layer_norm_rms_epsilon": "norm_eps",
}
TYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16", "int8": "Q8_0", "int4": "Q4_0"}
INERT = {
    "llama.vocab_size", "llama.rope.scaling.type", "llama.rope.scaling.factor", "llama.rope.scaling.finetuned",
    "llama.rope.scaling.original_context_length", "llama.tensor_data_layout",
}  # fmt: skip
"""keys that the tensors say as well, or that scaling, which is refused, would read"""
CHECKED = {
    "llama.rope.dimension_count": "head_dim", "llama.attention.value_length": "head_dim",
    "llama.attention.causal": True, "llama.expert_count": 0, "llama.expert_used_count": 0,
}  # fmt: skip
"""key -> the only value that computes what is computed here, or our field that it must equal"""
LARGEST = {"F16": 65504.0, "Q8_0": 127 * 65504.0, "Q4_0": 8 * 65504.0}
"""of each type: the scale of a group is a float16"""


def _pairs(weight: Tensor, heads: int, *, ours: bool) -> Tensor:
    """Reorders the rows of q or k: RoPE rotates neighbouring rows in GGUF, rows half a head apart in ours."""
    shape = (heads, -1, 2) if ours else (heads, 2, -1)
    return weight.unflatten(0, shape).transpose(1, 2).flatten(0, 2)


def _reorder(name: str, tensor: Tensor, config: Any, *, ours: bool) -> Tensor:
    if name.endswith(("mixer.q.weight", "mixer.k.weight")):
        return _pairs(tensor, config.n_heads if ".q." in name else config.n_kv_heads, ours=ours)
    return tensor


def _names(n_layers: int) -> dict[str, str]:
    return {
        theirs.replace("{i}", str(i)): ours.replace("{i}", str(i))
        for theirs, ours in KEYS.items()
        for i in range(n_layers if "{i}" in theirs else 1)
    }


def load_gguf(file: str | Path, *, dtype: torch.dtype = torch.float32) -> Any:
    """Loads a Llama from a GGUF file, in evaluation mode; quantised weights are converted to `dtype`.

    Raises WeightsError with file and key for another architecture, a missing, unknown or misshapen tensor, scaled
    rotary positions, and a file that is truncated or not GGUF.
    """
    gguf, file = library(), Path(file)
    reader, values = open_gguf(file, ("general.", "llama."))
    config, present = _config(values, {t.name: t for t in reader.tensors}, file)
    model = skeleton(family("llama"), config, str(file))
    expected = _names(config.n_layers)
    if config.tie_embeddings:
        del expected["output.weight"]
    params = dict(model.named_parameters())
    for name in sorted(expected.keys() ^ {n for n in present if not n.startswith("rope_freqs")}):
        raise WeightsError(f"{file}: {'lacks' if name in expected else 'has an unknown'} tensor '{name}'")
    for theirs, ours in expected.items():
        tensor, shape = present[theirs], tuple(params[ours].shape)
        if tuple(reversed([int(n) for n in tensor.shape])) != shape:
            raise WeightsError(
                f"{file}: '{theirs}' is {[int(n) for n in tensor.shape]}, expected {list(reversed(shape))}"
            )
        try:
            read = torch.tensor(gguf.quants.dequantize(tensor.data, tensor.tensor_type)).reshape(shape)
        except (NotImplementedError, ValueError, RuntimeError, TypeError) as error:
            raise WeightsError(
                f"{file}: '{theirs}' of type {tensor.tensor_type.name} cannot be read ({error})"
            ) from None
        path, _, leaf = ours.rpartition(".")
        reordered = _reorder(ours, converted(read, dtype, f"{file}: {theirs}"), config, ours=True).contiguous()
        setattr(model.get_submodule(path), leaf, torch.nn.Parameter(reordered))
    if config.tie_embeddings:
        model.head.weight = model.embedding.weight
    return model.eval()


def _config(values: dict[str, Any], present: dict[str, Any], file: Path) -> tuple[Any, dict[str, Any]]:
    if values.get("general.architecture") != "llama":
        raise WeightsError(f"{file}: architecture is {values.get('general.architecture')!r}; only llama can be read")
    kind = values.get("llama.rope.scaling.type", "linear" if "llama.rope.scaling.factor" in values else "none")
    if kind != "none" or any(n.startswith("rope_freqs") for n in present):
        raise WeightsError(f"{file}: scaled rotary positions are not supported")
    for key in values:
        if key.startswith("llama.") and key not in {*FIELDS, *INERT, *CHECKED}:
            raise WeightsError(f"{file}: '{key}' is not known here, and may change what the model computes")
    fields: dict[str, Any] = {ours: _decimal(values[theirs]) for theirs, ours in FIELDS.items() if theirs in values}
    missing = [
        t for t, ours in FIELDS.items() if ours in ("d_model", "n_layers", "n_heads", "d_ff") and t not in values
    ]
    if missing or "token_embd.weight" not in present:
        raise WeightsError(f"{file}: lacks '{(missing or ['token_embd.weight'])[0]}'")
    fields.setdefault("n_kv_heads", fields["n_heads"])
    try:
        fields.setdefault("head_dim", fields["d_model"] // fields["n_heads"])
        fields["vocab_size"] = int(present["token_embd.weight"].shape[1])
        fields["tie_embeddings"] = "output.weight" not in present
        for key, expected in CHECKED.items():
            right = fields[expected] if isinstance(expected, str) else expected
            if key in values and values[key] != right:
                raise WeightsError(f"{file}: '{key}' is {values[key]!r}; only {right!r} can be read")
        if fields["n_layers"] > min(len(present), LAYERS.high):
            raise WeightsError(f"{file}: block_count {fields['n_layers']}, the file holds {len(present)} tensors")
        return configuration(family("llama"), fields, where=str(file)), present
    except (ConfigError, TypeError, ZeroDivisionError, IndexError) as error:
        raise WeightsError(str(error) if str(file) in str(error) else f"{file}: {error}") from None


def _decimal(value: Any) -> Any:
    """The shortest decimal that rounds to the float32 value: 1e-05 for 9.999999747378752e-06."""
    return float(str(np.float32(value))) if isinstance(value, float) else value


def save_gguf(model: Any, file: str | Path, *, weights: str = "float32", tokenizer: Any = None) -> Path:
    """Writes a Llama as one GGUF file: matrices as `weights` (float32, bfloat16, float16, int8 as Q8_0, or int4 as Q4_0
    with embedding and head as Q8_0), vectors as float32.

    Raises WeightsError for another family, or if a quantised width is not a multiple of 32, and OutputError if the file
    exists."""
    gguf, file, family = library(), Path(file), family_of(model)
    if family.module.CONFIG.model_type != "llama":
        raise WeightsError(f"GGUF is supported for llama, not for {family.module.CONFIG.model_type}")
    if model.head is None:
        raise WeightsError("GGUF export needs the head, which this model was saved without: it would be read as tied")
    if model.config.rope_scaling is not None:
        raise WeightsError("GGUF export does not support scaled rotary positions, which this model has")
    if weights not in TYPES:
        raise WeightsError(f"weights '{weights}' are not supported; use {', '.join(TYPES)}")
    if file.exists():
        raise OutputError(f"{file} exists; choose another name")
    params, c = whole_tensors(model), model.config
    if weights in ("int8", "int4") and (c.d_model % 32 or c.d_ff % 32 or c.n_heads * c.head_dim % 32):
        raise WeightsError(f"{weights} needs widths that are multiples of 32; d_model is {c.d_model}, d_ff {c.d_ff}")
    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    try:
        with output_errors(file):
            writer = gguf.GGUFWriter(temporary, "llama")
            for theirs, ours in FIELDS.items():
                value = getattr(c, ours)
                (writer.add_float32 if isinstance(value, float) else writer.add_uint32)(theirs, value)
            writer.add_uint32("llama.attention.value_length", c.head_dim)
            writer.add_uint32("llama.rope.dimension_count", c.head_dim)
            writer.add_uint32("llama.vocab_size", c.vocab_size)
            write_tokenizer(writer, tokenizer, c.vocab_size)
            for theirs, ours in _names(c.n_layers).items():
                if ours in params:
                    tensor = _reorder(ours, params[ours].float(), c, ours=False).cpu().contiguous()
                    kind = "F32" if tensor.ndim < 2 else TYPES[weights]
                    if weights == "int4" and ours in ("embedding.weight", "head.weight"):
                        kind = "Q8_0"
                    largest = float(tensor.abs().max())
                    if largest > LARGEST.get(kind, math.inf):
                        raise WeightsError(
                            f"'{ours}' holds {largest:g}, beyond {kind} ({LARGEST[kind]:g}); use bfloat16"
                        )
                    kind = gguf.GGMLQuantizationType[kind]
                    writer.add_tensor(theirs, gguf.quants.quantize(tensor.numpy(), kind), raw_dtype=kind)
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
            writer.close()
            fsync_path(temporary)
            os.replace(temporary, file)
            fsync_path(file.parent)
    finally:
        temporary.unlink(missing_ok=True)
    return file
