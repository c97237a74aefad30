# SPDX-License-Identifier: Apache-2.0
"""The files of an adapter's directory, in the layout of peft: adapter_config.json, adapter_model.safetensors. Each kind
of added module writes its part of them and reads it back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from foundling.adapt.added import Added
from foundling.errors import WeightsError
from foundling.limits import shown
from foundling.weights.directory import converted
from foundling.weights.keys import unknown
from foundling.weights.manifest import MANIFEST
from foundling.weights.tensors import Tensors

CONFIG, FILE = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
"""before the published name of a module"""


class Written(NamedTuple):
    """What a kind contributes to a directory."""

    config: dict[str, Any]
    """keys of adapter_config.json"""
    tensors: dict[str, Tensor]
    """by their whole names in the file"""
    about: dict[str, Any]
    """what foundling.json says of this kind"""


@dataclass
class Source:
    """A directory that is being read. Every tensor has to be taken by some kind."""

    directory: Path
    config: dict[str, Any]
    """adapter_config.json"""
    manifest: dict[str, Any] | None
    """foundling.json; None for the directory of another library"""
    tensors: Tensors
    taken: set[str] = field(default_factory=set)

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def about(self, kind: str) -> dict[str, Any] | None:
        """What foundling.json says of a kind; None where it says nothing."""
        about = (self.manifest or {}).get("adapters")
        if about is None or kind not in about:
            return None
        if not isinstance(about[kind], dict):
            raise WeightsError(f"{self.directory / MANIFEST}: damaged, adapters.{kind} is {shown(about[kind])}")
        return about[kind]

    def shape(self, name: str, n_dims: int) -> tuple[int, ...]:
        """From the header. WeightsError if the tensor is missing or has another number of dimensions."""
        if name not in self.tensors:
            raise WeightsError(f"{self.tensors.path}: lacks tensor '{name}'")
        shape = self.tensors.shape(name)
        if len(shape) != n_dims:
            raise WeightsError(f"{self.tensors.path}: tensor '{name}' is {list(shape)}, not of {n_dims} dimensions")
        return shape

    def expect(self, name: str, shape: tuple[int, ...]) -> None:
        """WeightsError unless the header says this shape."""
        if (actual := self.shape(name, len(shape))) != shape:
            raise WeightsError(f"{self.tensors.path}: tensor '{name}' is {list(actual)}, not {list(shape)}")

    def take(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Reads a tensor; its shape is checked against the header before. WeightsError for values that are not finite
        or do not fit into `dtype`."""
        self.expect(name, shape)
        self.taken.add(name)
        return converted(self.tensors.read(name), dtype, f"{self.tensors.path}: {name}")

    def check_all_taken(self) -> None:
        """WeightsError for a tensor that no kind knows: it would have to change what the model computes."""
        for name in self.tensors:
            if name not in self.taken:
                raise unknown(name, self.taken, str(self.tensors.path))


@dataclass(frozen=True)
class Kind:
    """A kind of added modules, and how it is written and read."""

    name: str
    modules: tuple[type[Added], ...]
    applies: Callable[[Source], bool]
    """whether a directory holds one"""
    write: Callable[[Any, dict[str, Added], dict[str, Tensor]], Written]
    """(model, name -> module, '<module>.<own>' -> whole tensor on the CPU)"""
    read: Callable[[Any, Source], Callable[[], list[str]]]
    """Checks and reads everything without a change of the model; what it returns attaches, and returns the names."""
