# SPDX-License-Identifier: Apache-2.0
"""How a published checkpoint reads here, as data: tensor names, layouts, configuration keys."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Key:
    """One entry of a family's KEYS: a tensor of the published layout and what it becomes here.

    `{i}`, `{j}` stand for numbers that both names have; `{e}`, in `theirs` alone, for each index of our first axis.
    `transforms` are names of weights/keys.TRANSFORMS, applied in order on loading and inverted in reverse order on
    saving, so that the two directions cannot disagree.
    """

    theirs: str
    ours: str | tuple[str, ...]
    transforms: tuple[str, ...] = ()
    given: str = ""
    """a tensor of ours beside which alone this entry holds"""
    unless: str = ""
    """a tensor of ours beside which it does not"""
    heads: str = "n_heads"
    """the field of the configuration that says how many heads it holds, for transforms that ask"""

    @property
    def targets(self) -> tuple[str, ...]:
        return (self.ours,) if isinstance(self.ours, str) else self.ours


@dataclass(frozen=True)
class HeadMap:
    """The published form of a head for a task."""

    ending: str
    """what a class of transformers ends with, after the name of the model, such as ForSequenceClassification"""
    names: dict[str, str]
    """parameter of adapt.heads.Head -> published tensor"""
    prefix: str = ""
    """before the names of all other tensors of that class, where it is another than that of the model"""


CLASSIFY = HeadMap("ForSequenceClassification", {"weight": "score.weight"})
TAG = HeadMap("ForTokenClassification", {"weight": "score.weight", "bias": "score.bias"})
"""of the decoders in transformers"""


def dense(weight: str, bias: str = "") -> dict[str, str]:
    """Of a dense layer in a head; without `bias`, it has none."""
    return {"dense": weight} | ({"dense_bias": bias} if bias else {})


def projection(name: str) -> dict[str, str]:
    return {part: f"{name}.{part}" for part in ("weight", "bias")}


TAG_CLASSIFIER = HeadMap("ForTokenClassification", projection("classifier"))


@dataclass(frozen=True)
class ConfigMap:
    """How a family's config.json reads. A foreign key is mapped (`fields`), demanded (`only`: another value is refused,
    since it would compute something else), or kept as inert and written back. `a.b` is key b of the mapping a."""

    model_type: str
    architecture: str
    """the class of transformers; "" where a config.json names none: what is not of transformers"""
    fields: dict[str, str]
    """published name -> ours"""
    derived: dict[str, Callable[[dict[str, Any]], Any]] = field(default_factory=dict)
    """the published default of a key that a file may leave out, from the others"""
    only: dict[str, Any] = field(default_factory=dict)
    """published name -> the value, or a tuple of values that mean the same, of which the first is written"""
    base_prefix: str = ""
    """what a model without head leaves out of its tensor names"""
    ignored: tuple[str, ...] = ()
    """endings of tensor names that hold nothing learnt"""
    zero: tuple[str, ...] = ()
    """endings of tensor names that are left out while they are zero; others are refused"""
    convert: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = field(default_factory=dict)
    """published name -> (to ours, to theirs), where the values differ too"""
    implied: dict[str, Callable[[dict[str, Any]], Any]] = field(default_factory=dict)
    """published names whose value follows from our fields: another one is refused"""
    architectures: dict[str, dict[str, Any]] = field(default_factory=dict)
    """name -> what our fields must be; the first that fits is written in place of `architecture`"""
    parts: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """our field -> published tensors of which a directory may have one: a bool says whether it has, a number is how
    many rows that one has. What stands on a model differs between directories of one model_type."""
    filled: dict[str, Callable[[dict[str, Any]], Any]] = field(default_factory=dict)
    """published names that are written from our fields (not where that gives None), unless kept as inert"""
    counted: tuple[str, ...] | None = None
    """our fields of which each one has tensors of its own; by default those that count layers, blocks and experts"""
    renamed: tuple[tuple[str, str], ...] = ()
    """(ending of tensor names in older directories, what it is today)"""
    dequantised: tuple[str, ...] = ()
    """quantisation methods, in the names of config.json's quant_method, whose tensors are converted to floats on
    reading; others are refused"""
    heads: dict[str, HeadMap] = field(default_factory=dict)
    """task ("classify", "tag") -> the published head, where transformers has one; one of whole texts also regresses"""
    type_key: str = "model_type"
    """the key that holds `model_type`"""
    weights: str = "model.safetensors"
    """the file that holds the tensors"""
