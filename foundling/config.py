# SPDX-License-Identifier: Apache-2.0
"""Frozen dataclasses <-> plain dictionaries <-> YAML <-> `key=value` overrides, validated by pydantic.

Unknown and ill-typed keys name the key, the value and what was expected.
"""

from __future__ import annotations

import dataclasses
import difflib
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import yaml
from pydantic import ConfigDict, TypeAdapter, ValidationError

from foundling.errors import ConfigError

T = TypeVar("T")
MAX_YAML_BYTES = 1 << 20


def nearest(name: str, known: list[str]) -> str:
    """' — did you mean X?' where a known name is close, else the list of all (if short)."""
    close = difflib.get_close_matches(name, known, n=1)
    if close:
        return f"did you mean '{close[0]}'?"
    return "known: " + ", ".join(sorted(known)) if len(known) <= 40 else "no known name is close"


def from_dict(cls: type[T], values: dict[str, Any], *, where: str = "configuration") -> T:
    """Builds the dataclass `cls`; raises ConfigError on a key or value that does not fit, naming it."""
    hints = get_type_hints(cls)
    names = [f.name for f in dataclasses.fields(cls) if f.init]  # pyright: ignore[reportArgumentType]
    clean = {}
    for key, value in values.items():
        if key not in names:
            raise ConfigError(f"{where}: unknown key '{key}'; {nearest(key, names)}")
        clean[key] = _value(hints[key], value, key, where)
    missing = [
        f.name
        for f in dataclasses.fields(cls)  # pyright: ignore[reportArgumentType]
        if f.init and f.name not in clean and _needed(f)
    ]
    if missing:
        raise ConfigError(f"{where}: missing key '{missing[0]}'")
    try:
        return cls(**clean)
    except ConfigError:
        raise
    except (ValueError, TypeError) as error:  # a __post_init__ that refuses
        raise ConfigError(f"{where}: {error}") from error


def _needed(f: dataclasses.Field[Any]) -> bool:
    return f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING


def _value(hint: Any, value: Any, key: str, where: str) -> Any:
    if isinstance(value, bool) and hint in (int, float):  # Python counts bools as ints; a user does not
        raise ConfigError(f"{where}: '{key}' is {value!r}, expected {_name(hint)}")
    try:
        config = None if dataclasses.is_dataclass(hint) else ConfigDict(arbitrary_types_allowed=True)
        return TypeAdapter(hint, config=config).validate_python(value)  # pyright: ignore[reportArgumentType]
    except ValidationError as error:
        expected = error.errors()[0]["msg"].removeprefix("Input should be ")
        raise ConfigError(f"{where}: '{key}' is {value!r}, expected {_name(hint)} ({expected})") from None


def _name(hint: Any) -> str:
    return getattr(hint, "__name__", None) or str(hint).replace("typing.", "")


def to_dict(config: Any) -> dict[str, Any]:
    """Plain values, in field order, fit for YAML and JSON."""
    return dataclasses.asdict(config)


def parse_overrides(pairs: list[str]) -> dict[str, Any]:
    """['n_layers=4', 'tie=false'] -> {'n_layers': 4, 'tie': False}; values are YAML scalars."""
    values = {}
    for pair in pairs:
        key, sign, text = pair.partition("=")
        if not sign or not key:
            raise ConfigError(f"override '{pair}' is not KEY=VALUE")
        values[key.strip()] = _scalar(text)
    return values


def _scalar(text: str) -> Any:
    """YAML 1.1 reads '3e-3' as a string; a number is what was meant."""
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        return text
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def load_yaml(path: str | Path) -> dict[str, Any]:
    """One mapping from a file of at most 1 MiB."""
    path = Path(path)
    try:
        if path.stat().st_size > MAX_YAML_BYTES:
            raise ConfigError(f"{path}: over {MAX_YAML_BYTES} bytes, too large for a recipe")
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        line = getattr(getattr(error, "problem_mark", None), "line", None)
        at = f", line {line + 1}" if line is not None else ""
        raise ConfigError(f"{path}: not YAML{at}") from None
    if not isinstance(values, dict) or not all(isinstance(k, str) for k in values):
        raise ConfigError(f"{path}: expected a mapping of names to values")
    return values


def dump_yaml(config: Any) -> str:
    values = to_dict(config) if dataclasses.is_dataclass(config) else config
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=120)
