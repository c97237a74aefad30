# SPDX-License-Identifier: Apache-2.0
"""The tensors of a model directory, in one safetensors file or in several with an index. Headers are read first."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from foundling.errors import WeightsError
from foundling.limits import HEADER_BYTES, SHARDS
from foundling.runtime.files import parse_json, read_json, write_json

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
FLOATS = ("F64", "F32", "F16", "BF16")
INTEGERS = ("I64", "I32", "U8", "BOOL")
"""Types of buffers that count."""
TORCH_TYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
"""Names of safetensors -> types of torch."""
MAX_SHARD_BYTES = 5 << 30


@contextmanager
def open_safetensors(file: Path, device: str = "cpu") -> Iterator[Any]:
    """Opens a safetensors file. Raises WeightsError if it is damaged, and if it has two tensors of one name, of which
    the library would take one."""
    try:
        with open(file, "rb") as start:
            header = int.from_bytes(start.read(8), "little")
            if header > HEADER_BYTES.high:
                raise WeightsError(f"{file}: damaged, a header of {header} bytes; the limit is {HEADER_BYTES.high}")
            text = start.read(header)
        library = safe_open(file, framework="pt", device=device)
        parse_json(text, file)
    except WeightsError:
        raise
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise _damaged(file, error) from None
    with library as opened:
        try:
            yield opened
        except SafetensorError as error:
            raise _damaged(file, error) from None


def _damaged(file: Path, error: Exception) -> WeightsError:
    return WeightsError(f"{file}: damaged, not safetensors ({str(error).splitlines()[0]})")


class Tensors:
    """Name -> tensor over the open files of a directory."""

    def __init__(self, files: dict[str, Any], path: Path) -> None:
        """`files`: tensor name -> the open file with it; `path`: the path for error messages."""
        self.files, self.path = files, path

    def __contains__(self, name: str) -> bool:
        return name in self.files

    def __iter__(self) -> Iterator[str]:
        return iter(self.files)

    def __len__(self) -> int:
        return len(self.files)

    def shape(self, name: str, dtypes: tuple[str, ...] = FLOATS) -> tuple[int, ...]:
        """Shape from the header. Raises WeightsError if the type is not in `dtypes`."""
        part = self.files[name].get_slice(name)
        if part.get_dtype() not in dtypes:
            raise WeightsError(
                f"{self.path}: tensor '{name}' is {part.get_dtype()}, expected one of {', '.join(dtypes)}"
            )
        return tuple(part.get_shape())

    def dtype(self, name: str) -> str:
        """Type from the header, in the names of safetensors: F32, BF16 …"""
        return self.files[name].get_slice(name).get_dtype()

    def first_rows(self, name: str, n: int) -> Tensor:
        """The first `n` rows of a matrix; the rest is not read."""
        return self.files[name].get_slice(name)[:n]

    def read(self, name: str) -> Tensor:
        return self.files[name].get_tensor(name)


def stored_in(directory: Path, name: str) -> list[Path]:
    """The files that `tensors_of` reads: `name`, or its index and the shards in it."""
    if (directory / name).is_file():
        return [directory / name]
    index = directory / f"{name}.index.json"
    return [index, *sorted({directory / shard_name for shard_name in read_json(index)["weight_map"].values()})]


@contextmanager
def tensors_of(directory: Path, name: str, device: str = "cpu") -> Iterator[Tensors]:
    """The tensors of the file `name` in the directory, or of the shards in `name`.index.json. Raises WeightsError with
    file and key for a shard that is missing or outside the directory, and for a tensor that is not in the shard that
    the index names."""
    file, index = directory / name, directory / f"{name}.index.json"
    if file.is_file():
        with open_safetensors(file, device) as opened:
            yield Tensors({key: opened for key in opened.keys()}, file)  # noqa: SIM118
        return
    if not index.is_file():
        pickles = sorted(p.name for p in directory.iterdir() if p.suffix in PICKLES)
        reason = f" ({pickles[0]} is a pickle, which can execute code and is never opened)" if pickles else ""
        raise WeightsError(f"{directory}: no {name}{reason}")
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise WeightsError(f"{index}: damaged, no weight_map")
    shards = sorted({str(shard_name) for shard_name in weight_map.values()})
    if len(shards) > SHARDS.high:
        raise WeightsError(f"{index}: {len(shards)} shards; the limit is {SHARDS.high}")
    for key, shard_name in weight_map.items():
        if (
            not isinstance(shard_name, str)
            or Path(shard_name).name != shard_name
            or not shard_name.endswith(".safetensors")
        ):
            raise WeightsError(f"{index}: '{key}' is mapped to {shard_name!r}, which is not a file of this directory")
    with ExitStack() as stack:
        files: dict[str, Any] = {}
        for shard in shards:
            if not (directory / shard).is_file():
                raise WeightsError(f"{index}: lacks the shard {shard}")
            opened = stack.enter_context(open_safetensors(directory / shard, device))
            for key in opened.keys():  # noqa: SIM118
                if weight_map.get(key) != shard:
                    raise WeightsError(
                        f"{directory / shard}: has tensor '{key}', the index says {weight_map.get(key)!r}"
                    )
                files[key] = opened
        for key, shard_name in weight_map.items():
            if key not in files:
                raise WeightsError(f"{directory / str(shard_name)}: lacks tensor '{key}', which the index lists")
        yield Tensors(files, index)


def write_tensors(tensors: dict[str, Tensor], directory: Path, name: str, max_shard_bytes: int) -> None:
    """Writes one file, or several with an index if the tensors exceed max_shard_bytes."""
    shards: list[dict[str, Tensor]] = [{}]
    size = 0
    for key, tensor in tensors.items():
        if size and size + tensor.nbytes > max_shard_bytes:
            shards.append({})
            size = 0
        shards[-1][key] = tensor
        size += tensor.nbytes
    names = _shard_names(name, len(shards))
    for shard, file in zip(shards, names, strict=True):
        save_file(shard, directory / file, metadata={"format": "pt"})
    if len(shards) > 1:
        weight_map = {key: file for shard, file in zip(shards, names, strict=True) for key in shard}
        _write_index(directory, name, weight_map, sum(t.nbytes for t in tensors.values()))


class Header(NamedTuple):
    """What the header of a safetensors file says of a tensor."""

    dtype: str
    """one of TORCH_TYPES"""
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * TORCH_TYPES[self.dtype].itemsize


def stream_tensors(
    headers: Mapping[str, Header], compute: Callable[[str], Tensor], directory: Path, name: str, max_shard_bytes: int
) -> None:
    """As `write_tensors`, with each tensor computed when it is written, so that one is in memory at a time."""
    shards: list[list[str]] = [[]]
    size = 0
    # larger numbers first: each then starts at a multiple of its size, as readers expect
    for key in sorted(headers, key=lambda key: -TORCH_TYPES[headers[key].dtype].itemsize):
        if size and size + headers[key].nbytes > max_shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(key)
        size += headers[key].nbytes
    names = _shard_names(name, len(shards))
    for keys, file in zip(shards, names, strict=True):
        _stream_file(directory / file, {key: headers[key] for key in keys}, compute)
    if len(shards) > 1:
        weight_map = {key: file for keys, file in zip(shards, names, strict=True) for key in keys}
        _write_index(directory, name, weight_map, sum(header.nbytes for header in headers.values()))


def _stream_file(file: Path, headers: dict[str, Header], compute: Callable[[str], Tensor]) -> None:
    """The format: 8 bytes of length, a JSON header with offsets, the tensors' bytes in that order."""
    table: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for key, header in headers.items():
        offsets = [end, end := end + header.nbytes]
        table[key] = {"dtype": header.dtype, "shape": list(header.shape), "data_offsets": offsets}
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(file, "wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        for key, header in headers.items():
            tensor = compute(key).contiguous()
            assert tensor.dtype == TORCH_TYPES[header.dtype] and tensor.shape == header.shape, key
            out.write(tensor.reshape(-1).view(torch.uint8).numpy().data)


def _shard_names(name: str, count: int) -> list[str]:
    stem = name.removesuffix(".safetensors")
    return [name] if count == 1 else [f"{stem}-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)]


def _write_index(directory: Path, name: str, weight_map: dict[str, str], n_bytes: int) -> None:
    write_json(directory / f"{name}.index.json", {"metadata": {"total_size": n_bytes}, "weight_map": weight_map})
