# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of quantised weights: told by config.json, by a file beside it or by the tensors themselves, and refused
by name, except where a family's map says that they are converted to floats."""

from __future__ import annotations

from collections.abc import Container
from pathlib import Path
from typing import Any

from foundling.errors import WeightsError
from foundling.limits import shown
from foundling.runtime.files import read_json
from foundling.weights.mxfp4 import MXFP4, MXFP4Tensors
from foundling.weights.tensors import Tensors

CONFIG_KEYS = ("quantization_config", "compression_config", "quantization")
"""Keys of config.json: that of transformers, that of older compressed-tensors, that of MLX."""
FILES = {
    "quantize_config.json": "GPTQ", "quant_config.json": "AWQ", "hf_quant_config.json": "ModelOpt",
    "quanto_qmap.json": "quanto", "qmodel.pt": "HQQ",
}  # fmt: skip
"""Files that say it beside a config.json that does not -> who writes them."""
SIGNS = {
    "_blocks": "MXFP4", ".g_idx": "GPTQ", ".qweight": "AWQ or GPTQ", ".qzeros": "AWQ or GPTQ",
    ".SCB": "bitsandbytes, 8 bits", ".weight_format": "bitsandbytes, 8 bits", ".absmax": "bitsandbytes, 4 bits",
    ".quant_map": "bitsandbytes, 4 bits", ".bitsandbytes__nf4": "bitsandbytes, 4 bits",
    ".bitsandbytes__fp4": "bitsandbytes, 4 bits",
    "_scale_inv": "8-bit floats in blocks, as DeepSeek's", ".weight_packed": "compressed-tensors",
    ".weight_scale": "8 bits with scales, as of compressed-tensors, fbgemm or ModelOpt", ".weight_scales": "EETQ",
    ".input_scale": "8 bits with scales, as of compressed-tensors, fbgemm or ModelOpt",
    ".W_q": "HQQ", ".weight._data": "quanto", "_weight_qdata": "torchao", ".codebooks": "AQLM",
    ".q_weight": "EXL2", ".trellis": "EXL3",
}  # fmt: skip
"""Endings of tensor names -> what makes such tensors; the first that one has is named."""
PACKED = ("I8", "U16", "U32", "F4", "F6_E2M3", "F6_E3M2", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ")
"""Types, in the names of safetensors, that no unquantised checkpoint has."""


def _refusal(where: object, method: object) -> WeightsError:
    return WeightsError(
        f"{where}: the weights are quantised ({method}), which is not read here; take the unquantised model, or a GGUF "
        "file"
    )


def check_config(values: dict[str, Any], file: str, dequantised: Container[str]) -> dict[str, Any]:
    """The values of a config.json without what says how weights are quantised. Raises WeightsError for a method that is
    not in `dequantised`."""
    for scope in (values, *(part for part in values.values() if isinstance(part, dict))):
        for key in CONFIG_KEYS:
            if scope.get(key) and (method := _method(scope[key]) or key) not in dequantised:
                raise _refusal(file, shown(method))
    return {key: value for key, value in values.items() if key not in CONFIG_KEYS}


def check_files(directory: Path) -> None:
    """WeightsError for a directory with a file that says how its weights are quantised."""
    for name, maker in FILES.items():
        if (directory / name).exists():
            method = _method(read_json(directory / name)) if name.endswith(".json") else None
            raise _refusal(directory / name, shown(method) if method else maker)


def _method(value: Any) -> str | None:
    """How one of CONFIG_KEYS or FILES calls the method."""
    if not isinstance(value, dict):
        return None
    for key in ("quant_method", "quant_algo"):
        if isinstance(value.get(key), str):
            return value[key]
    if value.get("load_in_4bit") or value.get("load_in_8bit"):
        return "bitsandbytes"
    return _method(value.get("quantization"))


def plain_tensors(tensors: Tensors, dequantised: Container[str]) -> Tensors:
    """The tensors with what is `dequantised` as floats. Raises WeightsError for other quantised ones, reading headers
    only."""
    if MXFP4 in dequantised:
        tensors = MXFP4Tensors(tensors)
    named = [name for name in tensors if name.endswith(tuple(SIGNS))]
    for ending, maker in SIGNS.items():
        for name in named:
            if name.endswith(ending):
                raise _refusal(tensors.path, f"'{name}' is of {maker}")
    for name in tensors:
        if (kind := tensors.dtype(name)) in PACKED:
            raise _refusal(tensors.path, f"'{name}' is {kind}")
    return tensors
