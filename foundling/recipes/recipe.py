# SPDX-License-Identifier: Apache-2.0
"""A raising as data: what was asked for, and the recipe it resolves to, from which the same weights come again."""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass, field, fields
from importlib import resources
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Literal, get_type_hints

from foundling.config import from_dict, nearest, to_dict
from foundling.errors import ConfigError
from foundling.models import FAMILIES, family
from foundling.plan.budget import Budget, Unit
from foundling.runtime.device import Precision
from foundling.text.tokenizer import MULTIPLE, SMALLEST
from foundling.train.options import OptimOptions
from foundling.train.schedule import Schedule


@dataclass(frozen=True)
class Recipe:
    """Every figure that the weights depend on; nothing here is looked up, probed or timed again."""

    data: str
    """a path, or 'builtin:NAME'"""
    total_steps: int
    vocab_size: int
    d_model: int
    n_layers: int
    seq_len: int
    batch_size: int
    """rows of seq_len tokens in a step"""
    micro_batch_size: int
    threads: int
    precision: Precision
    compile: bool
    device: str
    data_share: float = 1.0
    """of the training documents that are read, chosen by their hash; below 1 where the budget cannot use all"""
    fim_rate: float = 0.0
    """of the training documents that are rearranged to learn to fill in the middle (data/fim.py)"""
    family: str = "llama"
    field: str = "text"
    seed: int = 0
    optimizer: Literal["muon", "adamw"] = "muon"
    learning_rate: float = 0.02
    matrix_learning_rate: float = 0.02
    weight_decay: float = 0.01
    schedule: Literal["wsd", "cosine"] = "wsd"
    warmup_steps: int = 0
    decay_share: float = 0.8
    clip: float = 1.0
    checkpoint_every: int = 100
    checkpoint_activations: bool = False
    """computes layers twice instead of keeping their insides, where memory asks for it"""

    def __post_init__(self) -> None:
        for name in (
            "total_steps",
            "d_model",
            "n_layers",
            "seq_len",
            "batch_size",
            "micro_batch_size",
            "checkpoint_every",
        ):
            if getattr(self, name) < 1:
                raise ConfigError(f"'{name}' is {getattr(self, name)}, expected at least 1")
        if self.vocab_size % MULTIPLE or self.vocab_size < SMALLEST:
            raise ConfigError(
                f"'vocab_size' is {self.vocab_size}, expected a multiple of {MULTIPLE} from {SMALLEST} up"
            )
        if not 0 < self.data_share <= 1:
            raise ConfigError(f"'data_share' is {self.data_share}, expected above 0, at most 1")
        if not 0 <= self.fim_rate <= 1:
            raise ConfigError(f"'fim_rate' is {self.fim_rate}, expected 0 to 1")
        for name in ("learning_rate", "matrix_learning_rate", "clip"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ConfigError(f"'{name}' is {getattr(self, name)}, expected a positive number")
        if family(self.family).kind != "decoder":
            readers = ", ".join(name for name, entry in FAMILIES.items() if entry.kind == "decoder")
            raise ConfigError(
                f"'family' is {self.family}, which does not read from left to right; use one of {readers}"
            )
        if self.d_model % 32:
            raise ConfigError(f"'d_model' is {self.d_model}, expected a multiple of 32 (the width of a head)")

    @property
    def tokens(self) -> int:
        return self.total_steps * self.batch_size * self.seq_len

    def optim(self) -> OptimOptions:
        return OptimOptions(
            optimizer=self.optimizer,
            learning_rate=self.learning_rate,
            matrix_learning_rate=self.matrix_learning_rate,
            weight_decay=self.weight_decay,
        )

    def make_schedule(self) -> Schedule:
        return Schedule(self.total_steps, self.schedule, self.warmup_steps, self.decay_share)


@dataclass(frozen=True)
class Request:
    """What the user asked for: the data, a budget, and any fields of the recipe to be held fixed."""

    data: str
    unit: Unit = "seconds"
    value: float = 180.0
    licence: str | None = None
    given: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        hints = get_type_hints(Recipe)
        free = [f.name for f in fields(Recipe) if f.name != "data"]
        for key, value in self.given.items():
            if key not in free:
                raise ConfigError(f"unknown key '{key}'; {nearest(key, free)}")
            checked = from_dict(dataclasses.make_dataclass("One", [(key, hints[key])]), {key: value}, where="recipe")
            self.given[key] = getattr(checked, key)
        needed = {f.name: 1 for f in fields(Recipe) if f.default is dataclasses.MISSING}
        placeholder: dict[str, Any] = needed | {"data": "", "precision": "float32", "compile": False, "device": "cpu"}
        placeholder |= {"vocab_size": SMALLEST, "d_model": 32}
        Recipe(**(placeholder | self.given))  # ranges, before any work is done

    @property
    def budget(self) -> Budget:
        return Budget(self.unit, self.value)


def code_version() -> dict[str, str]:
    """The release, and a SHA-256 over every source file: two versions that could compute differently differ here."""
    digest = hashlib.sha256()
    root = resources.files("foundling")
    stack, files = [("", root)], {}
    while stack:
        prefix, folder = stack.pop()
        for entry in folder.iterdir():
            path = f"{prefix}{entry.name}"
            if entry.is_dir() and entry.name != "__pycache__":
                stack.append((f"{path}/", entry))
            elif entry.name.endswith((".py", ".json")) and path != "models/matrix.json":  # which computes nothing
                files[path] = entry
    for path in sorted(files):
        digest.update(f"{path}\n".encode() + files[path].read_bytes())
    try:
        release = version("foundling")
    except PackageNotFoundError:  # run from a source tree
        release = "unreleased"
    return {"version": release, "sha256": digest.hexdigest()}


def recipe_dict(recipe: Recipe) -> dict[str, Any]:
    return to_dict(recipe)
