# SPDX-License-Identifier: Apache-2.0
"""Which subject a model directory is, by what its family declares that it can do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from foundling.errors import ConfigError
from foundling.evaluate.classifier import ClassifierSubject
from foundling.evaluate.encoder import EncoderSubject
from foundling.evaluate.local import LocalModel, load_parts
from foundling.limits import shown

LocalSubject = LocalModel | ClassifierSubject | EncoderSubject


def load_subject(
    directory: str | Path,
    *,
    base: str | Path | None = None,
    dtype: str = "float32",
    device: str = "cpu",
    name: str | None = None,
    truncate: bool = False,
    positions: int | None = None,
    **generation: Any,
) -> LocalSubject:
    """A model with a head that classifies is a ClassifierSubject, one that generates a LocalModel, one that fills gaps
    or embeds an EncoderSubject. `generation`: options of LocalModel alone.

    WeightsError for what is no model directory, ConfigError for an option that is not for this kind of model."""
    loaded = load_parts(directory, base=base, dtype=dtype, device=device, name=name)
    can = loaded.model.capabilities
    generates = can.generates and not can.task
    if not generates:
        for option, value in generation.items():
            if value:
                raise ConfigError(f"{loaded.name} generates no text; leave out {option} ({shown(value)})")
    if positions is not None and (generates or can.task):
        raise ConfigError(f"{loaded.name} masks no tokens; leave out positions")
    if can.task:
        return ClassifierSubject.of(loaded, truncate=truncate)
    if generates:
        return LocalModel.of(loaded, truncate=truncate, **generation)
    return EncoderSubject.of(loaded, truncate=truncate, positions=positions)
