# SPDX-License-Identifier: Apache-2.0
"""A GGUF file (version 2 or 3, little-endian): its metadata, and its tensors by memory map.

The header is read here, within limits, because the library `gguf` takes seconds for a large vocabulary and trusts every
count in the file. The library, imported late since it is optional, says how blocks of each type are dequantised."""

from __future__ import annotations

import math
import struct
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from foundling.errors import WeightsError
from foundling.limits import HEADER_BYTES, HEADER_TEXTS, MERGES, TOKENS, shown
from foundling.weights.directory import converted

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MAX_DIMS = 4
CHUNK = 1 << 22
"""Numbers that are dequantised at a time."""
STRING, ARRAY = 8, 9
SCALARS = {
    0: ("B", 1), 1: ("b", 1), 2: ("H", 2), 3: ("h", 2), 4: ("I", 4), 5: ("i", 4), 6: ("f", 4), 7: ("?", 1),
    10: ("Q", 8), 11: ("q", 8), 12: ("d", 8),
}  # fmt: skip
"""number of a value's type -> (its code in struct, its bytes)"""
MERGES_KEY = "tokenizer.ggml.merges"
FLOATS = ("F32", "F16", "BF16")
DEQUANTIZED = (
    "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ1_S", "IQ1_M", "IQ2_XXS",
    "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_NL", "IQ4_XS", "TQ1_0", "TQ2_0", "MXFP4",
)  # fmt: skip
"""Types of tensors that are read, beside FLOATS."""


def library() -> Any:
    try:
        import gguf
    except ImportError:
        raise WeightsError("GGUF needs the package gguf; install foundling[export]") from None
    return gguf


class GGUFTensor(NamedTuple):
    kind: str
    """The type's name in llama.cpp, such as Q4_K."""
    shape: tuple[int, ...]
    """As torch has it: GGUF lists the fastest axis first."""
    data: np.ndarray
    """(rows, bytes of a row) uint8, mapped from the file."""


class GGUFFile(NamedTuple):
    path: Path
    values: dict[str, Any]
    """The metadata: numbers and texts, lists of texts, and arrays of numbers, which stay in the file's map."""
    tensors: dict[str, GGUFTensor]

    @property
    def kinds(self) -> dict[str, int]:
        """Type -> how many tensors have it."""
        return dict(Counter(tensor.kind for tensor in self.tensors.values()).most_common())

    @property
    def dequantized(self) -> dict[str, int]:
        """Those of `kinds` that are not floating-point numbers."""
        return {kind: count for kind, count in self.kinds.items() if kind not in FLOATS}

    def read(self, name: str, dtype: torch.dtype) -> Tensor:
        """The tensor as `dtype`, dequantised a part at a time; WeightsError where a number is beyond `dtype`."""
        kind, shape, data = self.tensors[name]
        quants, known = library().quants, library().GGMLQuantizationType[kind]
        out = torch.empty((data.shape[0], shape[-1]), dtype=dtype)
        step = max(1, CHUNK // shape[-1])
        for start in range(0, len(data), step):
            part = torch.tensor(quants.dequantize(data[start : start + step], known))
            out[start : start + step] = converted(part, dtype, f"{self.path}: {name}")
        return out.reshape(shape)


class _Cursor:
    """Reads on in the header; struct.error where it ends first, WeightsError where Python would make too much of it."""

    def __init__(self, path: Path, data: memoryview) -> None:
        self.path, self.data, self.at, self.texts = path, data[: HEADER_BYTES.high], 0, 0

    def numbers(self, code: str, size: int, count: int = 1) -> tuple[Any, ...]:
        if count > (len(self.data) - self.at) // size:
            raise struct.error("ends early")
        found = struct.unpack_from(f"<{count}{code}", self.data, self.at)
        self.at += size * count
        return found

    def array(self, code: str, size: int, count: int) -> np.ndarray:
        if count > (len(self.data) - self.at) // size:
            raise struct.error("ends early")
        self.at += size * count
        return np.frombuffer(self.data, f"<{code}", count, self.at - size * count)

    def string(self) -> str:
        self.texts += 1
        if self.texts > HEADER_TEXTS.high:
            raise WeightsError(f"{self.path}: its header has over {HEADER_TEXTS.high:,} {HEADER_TEXTS.unit}")
        (length,) = self.numbers("Q", 8)
        if length > len(self.data) - self.at:
            raise struct.error("ends early")
        self.at += length
        return str(self.data[self.at - length : self.at], "utf-8")

    def value(self, key: str, kind: int) -> Any:
        if kind in SCALARS:
            return self.numbers(*SCALARS[kind])[0]
        if kind == STRING:
            return self.string()
        if kind != ARRAY:
            raise ValueError(f"a value of unknown type {kind}")
        ((kind,), (count,)) = self.numbers("I", 4), self.numbers("Q", 8)
        if kind in SCALARS:
            return self.array(*SCALARS[kind], count)
        if kind != STRING:
            raise ValueError(f"an array of type {kind}")
        limit = MERGES if key == MERGES_KEY else TOKENS
        if count > limit.high:
            raise WeightsError(f"{self.path}: {shown(key)} lists {count:,} texts; at most {limit.high:,} are read")
        return [self.string() for _ in range(count)]


def open_gguf(file: str | Path) -> GGUFFile:
    """Reads the header and maps the tensors. WeightsError for a file that is truncated, of another version, not GGUF,
    or holds tensors of a type that is not read."""
    path = Path(file)
    if not path.is_file():
        raise WeightsError(f"{path}: no such file")
    try:
        data = np.memmap(path, mode="r")
        cursor = _Cursor(path, data.data)
        if bytes(data[:4]) != MAGIC:
            raise ValueError("it does not begin with GGUF")
        cursor.at = 4
        (version,) = cursor.numbers("I", 4)
        if version not in VERSIONS:
            raise ValueError(f"version {version}; {' and '.join(map(str, VERSIONS))} are read, little-endian")
        n_tensors, n_values = cursor.numbers("Q", 8, 2)
        values: dict[str, Any] = {}
        for _ in range(n_values):
            key = cursor.string()
            if key in values:
                raise ValueError(f"{shown(key)} stands twice")
            values[key] = cursor.value(key, cursor.numbers("I", 4)[0])
        entries = [_entry(cursor) for _ in range(n_tensors)]
        return GGUFFile(path, values, _tensors(path, data, cursor.at, values, entries))
    except struct.error:
        limit = (
            f", or a header of over {HEADER_BYTES.high >> 20} MiB" if path.stat().st_size > HEADER_BYTES.high else ""
        )
        raise WeightsError(f"{path}: not a whole GGUF file (it ends early{limit})") from None
    except WeightsError:
        raise
    except (ValueError, OSError) as error:
        raise WeightsError(f"{path}: not a whole GGUF file ({(str(error).splitlines() or ['damaged'])[0]})") from None


def _entry(cursor: _Cursor) -> tuple[str, tuple[int, ...], int, int]:
    """(name, shape, type, offset) of the next tensor."""
    name, (dims,) = cursor.string(), cursor.numbers("I", 4)
    if not 1 <= dims <= MAX_DIMS:
        raise ValueError(f"tensor '{name[:80]}' has {dims} dimensions")
    shape = tuple(reversed(cursor.numbers("Q", 8, dims)))
    return name, shape, cursor.numbers("I", 4)[0], cursor.numbers("Q", 8)[0]


def _tensors(
    path: Path, data: np.ndarray, end: int, values: dict[str, Any], entries: list[tuple[str, tuple[int, ...], int, int]]
) -> dict[str, GGUFTensor]:
    """`end`: where the header ends; the tensors follow at the next multiple of the alignment."""
    gguf = library()
    alignment = values.get("general.alignment", gguf.GGUF_DEFAULT_ALIGNMENT)
    if not isinstance(alignment, int) or not 8 <= alignment <= 1 << 16 or alignment & (alignment - 1):
        raise ValueError(f"general.alignment is {alignment!r}")
    kinds = {int(kind): kind for kind in gguf.GGML_QUANT_SIZES}
    begin, tensors = -(-end // alignment) * alignment, {}
    for name, shape, number, offset in entries:
        kind = kinds[number].name if number in kinds else f"number {number}"
        if kind not in (*FLOATS, *DEQUANTIZED):
            raise WeightsError(
                f"{path}: tensor '{name}' is of type {kind}; {', '.join((*FLOATS, *DEQUANTIZED))} are read"
            )
        block, size = gguf.GGML_QUANT_SIZES[kinds[number]]
        rows, row = math.prod(shape[:-1]), shape[-1] // block * size
        if name in tensors or not rows or not row or shape[-1] % block:
            reason = "stands twice" if name in tensors else f"is {list(shape)}, which {kind} does not hold"
            raise ValueError(f"tensor '{name}' {reason}")
        if begin + offset + rows * row > len(data):
            raise ValueError(f"tensor '{name}' reaches beyond its end")
        tensors[name] = GGUFTensor(kind, shape, data[begin + offset :][: rows * row].reshape(rows, row))
    return tensors
