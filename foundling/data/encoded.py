# SPDX-License-Identifier: Apache-2.0
"""Encoded examples on disk, memory-mapped: the raw numbers of each column, and an index with their hashes."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from foundling.config import from_dict
from foundling.data.encode import Arrays, Encoder, check_template, nothing_left
from foundling.data.examples import Examples
from foundling.data.kinds import PREFERENCE, PROMPT, Example, Kind
from foundling.data.tokens import tokenizer_hash
from foundling.errors import ConfigError, DataError, MismatchError, WeightsError
from foundling.limits import SEQ_LEN
from foundling.runtime.files import read_json, sha256, write_directory
from foundling.text.framing import Framing

INDEX = "index.json"
VERSION = 1
DTYPES = {"tokens": "<i4", "mask": "|b1", "targets": "<i4", "types": "|u1", "source": "<i4"}
"""of the columns that have a number for each token; `source` has its own lengths"""


@dataclass(frozen=True)
class Column:
    name: str
    dtype: str
    sha256: str
    length: int


@dataclass(frozen=True)
class SplitIndex:
    """The content of index.json. `made_from` states what the tokens were made from."""

    columns: list[Column]
    packed: bool
    eos: int
    skipped: dict[str, int]
    cut: int
    made_from: dict[str, Any]


class EncodedSplit:
    """Encoded examples. `columns`: the names in DTYPES by offsets, `labels` (n,), `places` (n,): where an example is
    in its list, `offsets` (n + 1,) and, of an encoder–decoder, `source_offsets` (n + 1,).

    With `verify` the SHA-256 of every file is compared. DataError for a damaged index, and for a file that is missing,
    of another length or damaged."""

    def __init__(self, directory: Path, *, verify: bool = False) -> None:
        again = f"remove the directory {directory} and start again"
        try:
            index = from_dict(SplitIndex, read_json(directory / INDEX), where=str(directory / INDEX))
        except (WeightsError, ConfigError) as error:
            raise DataError(f"{error}; {again}") from error
        self.packed, self.eos, self.made_from = index.packed, index.eos, index.made_from
        self.reference: np.ndarray | None = None
        """(n,) log-probabilities of the examples by another model, once somebody has computed them"""
        self.skipped, self.cut = Counter(index.skipped), index.cut
        self.columns: dict[str, np.ndarray] = {}
        for column in index.columns:
            path = directory / f"{column.name}.bin"
            try:
                if verify and sha256(path) != column.sha256:
                    raise DataError(f"{path}: damaged, its SHA-256 is not the one in the index; {again}")
                self.columns[column.name] = np.memmap(path, dtype=column.dtype, mode="r")
            except (OSError, ValueError, TypeError) as error:
                raise DataError(f"{path}: damaged ({getattr(error, 'strerror', None) or error}); {again}") from error
            if len(self.columns[column.name]) != column.length:
                raise DataError(f"{path}: damaged, it does not have {column.length:,} numbers; {again}")
        self.hash = hashlib.sha256("".join(c.sha256 for c in index.columns).encode()).hexdigest()
        self.places = np.asarray(self.columns["places"])
        self._offsets = {
            name: np.asarray(self.columns[name]) for name in ("offsets", "source_offsets") if name in self.columns
        }

    def __len__(self) -> int:
        return len(self.places)

    @cached_property
    def lengths(self) -> np.ndarray:
        """(n,) positions of each example in a row of a batch."""
        lengths = np.diff(self._offsets["offsets"]) - self.packed
        return np.maximum(lengths, np.diff(self._offsets["source_offsets"])) if "source" in self.columns else lengths

    @property
    def n_tokens(self) -> int:
        """Positions in all, without padding."""
        return int(self.lengths.sum())

    def example(self, i: int) -> dict[str, np.ndarray]:
        """Its columns: (L,) each, `labels` ()."""
        out = {}
        for name, column in self.columns.items():
            if name in DTYPES:
                offsets = self._offsets["source_offsets" if name == "source" else "offsets"]
                out[name] = column[offsets[i] : offsets[i + 1]]
        return out | ({"labels": self.columns["labels"][i]} if "labels" in self.columns else {})


@dataclass(frozen=True)
class EncodedExamples:
    kind: Kind
    seq_len: int
    train: EncodedSplit
    held_out: EncodedSplit

    @property
    def packed(self) -> bool:
        """Whether examples share rows (a causal model); else a row is one example."""
        return self.train.packed

    @property
    def skipped(self) -> Counter[str]:
        return self.train.skipped + self.held_out.skipped

    @property
    def cut(self) -> int:
        """examples that were cut on the right"""
        return self.train.cut + self.held_out.cut

    @property
    def hash(self) -> str:
        return hashlib.sha256(f"{self.train.hash} {self.held_out.hash}".encode()).hexdigest()


def encode_examples(directory: Path, examples: Examples, framing: Framing, *, seq_len: int) -> EncodedExamples:
    """Write directory/train and directory/held_out, each complete or absent; what exists is verified and used.

    DataError where nothing is left of a split, or the chat template does not say where answers are; MismatchError where
    the existing tokens were made from other data, by another tokenizer or template, or for another seq_len.
    """
    SEQ_LEN.check(seq_len, "seq_len")
    template = framing.tokenizer.chat_template if examples.kind in ("chat", PREFERENCE, PROMPT) else None
    made_from = {
        "version": VERSION,
        "data_hash": examples.data_hash,
        "tokenizer": tokenizer_hash(framing.tokenizer),
        "chat_template": hashlib.sha256((template or "").encode()).hexdigest(),
        "kind": examples.kind,
        "reads_source": framing.spec.reads_source,
        "reads_types": framing.spec.reads_types,
        "seq_len": seq_len,
    }
    parts = {"train": examples.train, "held_out": examples.held_out}
    splits = {name: _split(directory / name, part, examples, framing, made_from) for name, part in parts.items()}
    return EncodedExamples(examples.kind, seq_len, splits["train"], splits["held_out"])


def _split(
    directory: Path, part: Sequence[Example], examples: Examples, framing: Framing, made_from: dict[str, Any]
) -> EncodedSplit:
    if directory.exists():
        split = EncodedSplit(directory, verify=True)
        for name, value in made_from.items():
            if split.made_from.get(name) != value:
                raise MismatchError(
                    f"{directory}: these tokens were made with {name} {str(split.made_from.get(name))[:12]}, "
                    f"not {str(value)[:12]}; remove the directory and start again"
                )
        return split
    encoder = Encoder(examples.kind, framing, made_from["seq_len"], examples.labels)

    def fill(aside: Path) -> None:
        columns = _write(aside, encoder(part), encoder)
        check_template(encoder, len(part))
        if len(columns) == 2:  # places and offsets
            raise DataError(nothing_left(encoder))
        index = SplitIndex(
            columns, encoder.packed, framing.tokenizer.eos, dict(encoder.skipped), encoder.cut, made_from
        )
        (aside / INDEX).write_text(json.dumps(asdict(index)), encoding="utf-8")

    write_directory(directory, fill)
    return EncodedSplit(directory)


def _write(directory: Path, encoded: Iterable[tuple[int, Arrays]], encoder: Encoder) -> list[Column]:
    """Columns of numbers for each token are written as they come; those for each example are small."""
    small: dict[str, list[Any]] = {"places": [], "offsets": [0]}
    dtypes = {
        "places": "<i8",
        "offsets": "<i8",
        "source_offsets": "<i8",
        "labels": "<f4" if encoder.kind == "regress" else "<i8",
    }
    large = dict[str, Any]()
    with ExitStack() as stack:
        for place, arrays in encoded:
            small["places"].append(place)
            small["offsets"].append(small["offsets"][-1] + len(arrays["tokens"]))
            if "source" in arrays:
                offsets = small.setdefault("source_offsets", [0])
                offsets.append(offsets[-1] + len(arrays["source"]))
            if "labels" in arrays:
                small.setdefault("labels", []).append(arrays["labels"])
            for name in DTYPES.keys() & arrays.keys():
                if name not in large:
                    large[name] = stack.enter_context(open(directory / f"{name}.bin", "wb"))
                large[name].write(np.array(arrays[name], dtype=DTYPES[name]).tobytes())
    for name, values in small.items():
        np.array(values, dtype=dtypes[name]).tofile(directory / f"{name}.bin")
    columns = list[Column]()
    for name in sorted([*small, *large]):
        path, dtype = directory / f"{name}.bin", dtypes.get(name) or DTYPES[name]
        columns.append(Column(name, dtype, sha256(path), path.stat().st_size // np.dtype(dtype).itemsize))
    return columns
