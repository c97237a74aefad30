# SPDX-License-Identifier: Apache-2.0
"""Frozen dataclasses <-> nested dictionaries <-> YAML, validated by pydantic; values of flags, as YAML reads them.

Unknown and ill-typed keys name the key, the value and what was expected. Importing this module is cheap: pydantic and
yaml are imported when they are used, so that `--help` does not wait for them.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import re
import stat
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

from foundling.errors import ConfigError
from foundling.limits import RECIPE_BYTES, shown

T = TypeVar("T")

# YAML 1.1 takes 1e-05, which is how Python and its own writer put a float, for text. Reader and writer share this rule:
# what the one reads as a number, the other must quote where it is text.
FLOATS = ("tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789"))


MAX_COMPARED = 200
"""characters of a name that is compared with the known ones: of twenty million it would take seconds and a gigabyte"""


def nearest(name: str, known: list[str]) -> str:
    """' — did you mean X?' where a known name is close, else the list of all (if short)."""
    close = difflib.get_close_matches(name, known, n=1) if len(name) <= MAX_COMPARED else []
    if close:
        return f"did you mean '{close[0]}'?"
    return "known: " + ", ".join(sorted(known)) if len(known) <= 40 else "no known name is close"


@functools.cache
def hints(cls: type) -> dict[str, Any]:
    """The types of a dataclass's fields."""
    return get_type_hints(cls)


def nested(hint: Any) -> type | None:
    """The dataclass that a field holds, also where it may be None."""
    return next((h for h in (hint, *get_args(hint)) if isinstance(h, type) and dataclasses.is_dataclass(h)), None)


def from_dict(cls: type[T], values: dict[str, Any], *, where: str = "configuration") -> T:
    """Builds the dataclass `cls` from nested dictionaries; ConfigError for a key or value that does not fit."""
    clean = partial_dict(cls, values, where=where)
    missing = [f.name for f in dataclasses.fields(cls) if f.init and f.name not in clean and _required(f)]  # pyright: ignore[reportArgumentType]
    if missing:
        raise ConfigError(f"{where}: missing key '{missing[0]}'")
    types = hints(cls)
    built = {
        key: from_dict(inner, value, where=f"{where}: {key}")
        if (inner := nested(types[key])) and isinstance(value, dict)
        else value
        for key, value in clean.items()
    }
    try:
        return cls(**built)
    except ConfigError:
        raise
    except (ValueError, TypeError) as error:  # a __post_init__ that refuses
        raise ConfigError(f"{where}: {error}") from error


def partial_dict(cls: type, values: dict[str, Any], *, where: str = "configuration") -> dict[str, Any]:
    """The values with every key known to `cls` and of its type, nested ones too; keys may be missing."""
    types, clean = hints(cls), {}
    names = [f.name for f in dataclasses.fields(cls) if f.init]
    for key, value in values.items():
        if key not in names:
            raise ConfigError(f"{where}: unknown key {shown(key)}; {nearest(str(key), names)}")
        inner = nested(types[key])
        if inner and isinstance(value, dict):
            clean[key] = partial_dict(inner, value, where=f"{where}: {key}")
        elif inner and dataclasses.is_dataclass(value):
            clean[key] = value
        else:
            clean[key] = _value(types[key], value, key, where)
    return clean


def _required(f: dataclasses.Field[Any]) -> bool:
    return f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING


def _value(hint: Any, value: Any, key: str, where: str) -> Any:
    from pydantic import ValidationError

    if isinstance(value, bool) and hint in (int, float):  # Python counts bools as ints; a user does not
        raise ConfigError(f"{where}: '{key}' is {value!r}, expected {_name(hint)}")
    try:
        return _adapter(hint).validate_python(value)
    except ValidationError as error:
        expected = error.errors()[0]["msg"].removeprefix("Input should be ")
        raise ConfigError(f"{where}: '{key}' is {shown(value)}, expected {_name(hint)} ({expected})") from None


@functools.cache
def _adapter(hint: Any) -> Any:
    from pydantic import ConfigDict, TypeAdapter

    return TypeAdapter(hint, config=None if nested(hint) else ConfigDict(arbitrary_types_allowed=True))


def _name(hint: Any) -> str:
    return getattr(hint, "__name__", None) or str(hint).replace("typing.", "")


def merged(*layers: dict[str, Any]) -> dict[str, Any]:
    """Nested dictionaries laid over each other, the later one first in force."""
    out: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            both = isinstance(value, dict) and isinstance(out.get(key), dict)
            out[key] = merged(out[key], value) if both else value
    return out


def flattened(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{'optim': {'learning_rate': 1}} -> {'optim.learning_rate': 1}; an empty mapping stays a value."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict) and value:
            flat |= flattened(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def to_dict(config: Any) -> dict[str, Any]:
    """Plain values, in field order, fit for YAML and JSON."""
    return dataclasses.asdict(config)


def parse_scalar(text: str) -> Any:
    """A value as YAML reads it. YAML 1.1 reads '3e-3' as a string; a number is what was meant."""
    import yaml

    try:
        value = _read_yaml(text)
    except (yaml.YAMLError, ValueError, RecursionError):  # ValueError: a date that is none
        return text
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value if isinstance(value, bool | int | float | list | dict) or value is None else text


def load_yaml(path: str | Path) -> dict[str, Any]:
    """One mapping from a file of at most 1 MiB, without aliases, and with every key once."""
    import yaml

    path = Path(path)
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):  # a pipe or a device has no end
            raise ConfigError(f"{path}: not a file")
        if found.st_size > RECIPE_BYTES.high:
            raise ConfigError(f"{path}: over {RECIPE_BYTES.high} bytes, too large for a recipe")
        values = _read_yaml(path.read_text(encoding="utf-8"))
    except ConfigError:
        raise
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: not UTF-8, or a date that is none
        if isinstance(error, _Refused):
            raise ConfigError(f"{path}: {error}") from None
        line = getattr(getattr(error, "problem_mark", None), "line", None)
        at = f", line {line + 1}" if line is not None else ""
        raise ConfigError(f"{path}: not YAML{at}") from None
    if not isinstance(values, dict) or not all(isinstance(k, str) for k in values):
        raise ConfigError(f"{path}: expected a mapping of names to values")
    return values


class _Refused(ValueError):
    """YAML that a recipe does not need, and that hides what it says."""


@functools.cache
def _strict_loader() -> Any:
    """The safe loader of YAML, less two things: aliases, by which a page describes gigabytes, and keys that are there
    twice, of which YAML forgets one."""
    import yaml

    class Loader(yaml.SafeLoader):
        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.AliasEvent):
                event = self.peek_event()
                line = event.start_mark.line + 1
                raise _Refused(f"line {line} has the alias *{event.anchor}; write the value out")
            return super().compose_node(parent, index)

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            names = set()
            for key, _ in node.value:
                if isinstance(key, yaml.ScalarNode) and key.value in names:
                    line = key.start_mark.line + 1
                    raise _Refused(f"line {line} has the key {shown(key.value)} a second time; remove one")
                names.add(key.value if isinstance(key, yaml.ScalarNode) else None)
            return super().construct_mapping(node, deep)

    Loader.add_implicit_resolver(*FLOATS)
    return Loader


def _read_yaml(text: str) -> Any:
    loader = _strict_loader()(text)
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()


def dump_yaml(config: Any) -> str:
    import yaml

    values = to_dict(config) if dataclasses.is_dataclass(config) else config

    class Dumper(yaml.SafeDumper):
        def ignore_aliases(self, data: Any) -> bool:  # `load_yaml` reads none
            return True

    Dumper.add_implicit_resolver(*FLOATS)
    return yaml.dump(values, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=120)
