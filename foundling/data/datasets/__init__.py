# SPDX-License-Identifier: Apache-2.0
"""Data sets that need no download: one registry, and `open_data`, which opens one of them or the user's own data."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

from foundling.data.formats import DEFAULT_FIELD
from foundling.data.sources import Document, Source
from foundling.errors import DataError

BUILTIN = "builtin:"


@dataclass(frozen=True)
class Dataset:
    """What is known of a data set before it is loaded."""

    kind: Literal["text", "images", "image-text"]
    licence: str  # SPDX expression
    origin: str  # how it is obtained
    loader: str  # module:function; takes the name of a split where there are splits
    splits: tuple[str, ...] = ()  # empty: foundling/data/split.py holds some documents out
    language: str | None = None  # of text that can be checked by a parser, such as "python"


DATASETS = {
    "stdlib": Dataset(
        kind="text",
        licence="PSF-2.0",
        origin="the source files of the standard library of the running Python",
        loader="foundling.data.datasets.stdlib:load",
        language="python",
    ),
    "digits": Dataset(
        kind="images",
        licence="CC-BY-4.0",
        origin="the installed package scikit-learn",
        loader="foundling.data.datasets.digits:load",
        splits=("train", "test"),
    ),
    "glyphs": Dataset(
        kind="image-text",
        licence="Bitstream-Vera AND public domain (DejaVu fonts), Unicode-3.0 (names)",
        origin="drawn from the fonts of the installed package matplotlib",
        loader="foundling.data.datasets.glyphs:load",
        splits=("train", "test"),
    ),
}


def dataset(name: str) -> Dataset:
    """Return the entry of the registry. Raises DataError for an unknown name."""
    if name not in DATASETS:
        raise DataError(f"there is no data set {name[:60]!r}: expected one of {', '.join(DATASETS)}")
    return DATASETS[name]


def load_dataset(name: str, split: str | None = None) -> Any:
    """Load a data set: documents for text, else what the loader returns. `split` is needed where there are splits.

    Raises DataError for an unknown name or split, and where the package that contains it is not installed.
    """
    entry = dataset(name)
    if split not in (entry.splits or (None,)):
        allowed = f"expected one of {', '.join(entry.splits)}" if entry.splits else "it has no splits"
        raise DataError(f"data set {name!r} has no split {split!r}: {allowed}")
    module, _, function = entry.loader.partition(":")
    load = getattr(import_module(module), function)
    return load(split) if split else load()


def open_data(data: str, field: str = DEFAULT_FIELD, exclude: Path | None = None) -> Iterable[Document]:
    """Open text to read: `builtin:NAME`, or the path of a file or folder (see Source).

    The directory `exclude` is not read, for the output of a run may lie inside its data. The result is re-iterable.
    Raises DataError for an unknown or textless data set and a path that cannot be read.
    """
    if not data.startswith(BUILTIN):
        return Source(data, field, exclude)
    name = data.removeprefix(BUILTIN)
    if field != DEFAULT_FIELD:
        raise DataError(f"the data set {name!r} has no field {field!r}: leave out --field")
    if dataset(name).kind != "text":
        text = ", ".join(name for name, entry in DATASETS.items() if entry.kind == "text")
        raise DataError(f"the data set {name!r} is not text but {DATASETS[name].kind}: expected one of {text}")
    return load_dataset(name)


def describe_data(data: str) -> Dataset | None:
    """The entry of the registry for `builtin:NAME`; None for a path."""
    return dataset(data.removeprefix(BUILTIN)) if data.startswith(BUILTIN) else None
