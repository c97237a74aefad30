# SPDX-License-Identifier: Apache-2.0
"""Reads and writes config.json. Each published key is mapped, checked or preserved as inert; none is dropped
silently."""

from __future__ import annotations

from typing import Any, get_args

from foundling.config import hints, to_dict
from foundling.contracts.checkpoint_map import ConfigMap
from foundling.errors import ConfigError, WeightsError
from foundling.limits import shown
from foundling.models import FAMILIES, Family, configuration, published, recognise
from foundling.weights.quantised import check_config

PARTIAL, LOCAL_THETA = "partial_rotary_factor", "rope_local_base_freq"
FLAT_ROPE = ("rope_theta", PARTIAL)
UNREAD_HEADS = ("ForQuestionAnswering", "ForMultipleChoice", "ForNextSentencePrediction")
"""Endings of classes of transformers with a head that is not read here. Its tensors may have the names and shapes of a
classifier of texts or tokens."""
# Written by transformers; written anew here.
WRITTEN_ANEW = {"model_type", "architectures", "transformers_version", "torch_dtype", "dtype", "_class_name"}


def read_config(values: dict[str, Any], file: str) -> tuple[Family, Any, dict[str, Any]]:
    """config.json -> (family, our frozen config, the inert keys). Raises WeightsError with the unsupported key."""
    family = recognise(values)
    if family is None:
        model_type = values.get("model_type", values.get("_class_name"))
        raise WeightsError(f"{file}: model_type {model_type!r} is not supported; supported: {', '.join(FAMILIES)}")
    table: ConfigMap = family.module.CONFIG
    values = check_config(values, file, table.dequantised)
    _check_head(values.get("architectures"), file)
    try:
        values = _flatten(_to_version_4(dict(values), file), table)
    except RecursionError:
        raise WeightsError(f"{file}: mappings are nested too deeply") from None
    _check_values(values, family, file)
    types = hints(family.config)
    for key, default in table.derived.items():
        if key in values and type(None) in get_args(types.get(table.fields.get(key, ""))):
            continue  # null says "none" of what may be absent, such as a soft cap; elsewhere it is a missing key
        if values.get(key) is None:
            try:
                values[key] = default(values)
            except (KeyError, TypeError, ZeroDivisionError):
                raise WeightsError(f"{file}: lacks the keys that '{key}' is computed from") from None
    published.complete_rope_scaling(values)
    ours = {}
    for theirs, name in table.fields.items():
        if theirs not in values:
            raise WeightsError(f"{file}: lacks '{theirs}'")
        ours[name] = _convert(table, theirs, values[theirs], file)
    known = table.fields.keys() | table.only.keys() | table.implied.keys() | WRITTEN_ANEW
    inert = _nest({k: v for k, v in values.items() if k not in known}, table)
    try:
        config = configuration(family, ours, where=file)
    except ConfigError as error:
        raise WeightsError(str(error) if file in str(error) else f"{file}: {error}") from None
    for key, follows in table.implied.items():
        expected = follows(to_dict(config))
        if values.get(key) not in (None, [], expected):  # absent or empty: implied by the other keys
            raise WeightsError(
                f"{file}: {key} = {shown(values[key])} is not supported by {family.name}; only {shown(expected)} is"
            )
    return family, config, inert


def _check_values(values: dict[str, Any], family: Family, file: str) -> None:
    """Raises WeightsError for a value that would compute something else, and for lists of layers that are none."""
    table: ConfigMap = family.module.CONFIG
    for key in published.PER_LAYER:
        if not isinstance(values.get(key, []), list | None):
            raise WeightsError(f"{file}: {key} is {shown(values[key])}, expected a list with an item for each layer")
    plain = {PARTIAL: 1.0, "rope_scaling": None} if "rope_theta" in table.fields else {}
    shared = plain | published.REFUSED
    for key, expected in ({k: v for k, v in shared.items() if k not in table.implied} | table.only).items():
        if key in table.fields or values.get(key) is None:
            continue
        allowed = expected if isinstance(expected, tuple) else (expected,)
        for item in values[key] if key in published.PER_LAYER else [values[key]]:
            if item not in allowed:
                only = shown(allowed[0] if allowed else None)
                raise WeightsError(f"{file}: {key} = {shown(item)} is not supported by {family.name}; only {only} is")


def _check_head(architectures: Any, file: str) -> None:
    for name in architectures if isinstance(architectures, list) else []:
        if str(name).endswith(UNREAD_HEADS):
            raise WeightsError(f"{file}: {shown(name)} has a head that is not read here; take the base model")


def write_config(family: Family, config: Any, inert: dict[str, Any], dtype: str = "float32") -> dict[str, Any]:
    """Our config -> the contents of config.json, for transformers 4 and 5."""
    table: ConfigMap = family.module.CONFIG
    ours = to_dict(config)
    values: dict[str, Any] = {table.type_key: table.model_type}
    matching = [name for name, required in table.architectures.items() if required.items() <= ours.items()]
    if architecture := (*matching, table.architecture)[0]:
        values["architectures"] = [architecture]
    identity = (lambda v: v, lambda v: v)
    values |= {theirs: table.convert.get(theirs, identity)[1](ours[name]) for theirs, name in table.fields.items()}
    values |= {key: follows(ours) for key, follows in table.implied.items()}
    values |= {key: v[0] if isinstance(v, tuple) else v for key, v in table.only.items() if v is not None}
    if "rope_theta" in values:  # version 5 reads the nested keys, version 4 the flat ones
        values["rope_parameters"] = _rope_parameters(values)
    if table.type_key == "model_type":
        values["dtype"] = dtype
    filled = {key: value for key, makes in table.filled.items() if (value := makes(ours)) is not None}
    return _nest(values | filled | _flatten(inert, table), table)


def _to_version_4(values: dict[str, Any], file: str) -> dict[str, Any]:
    """Converts from transformers 5, which nests RoPE's parameters and writes infinity as text, to the form of version
    4. As there, `rope_scaling` has precedence over `rope_parameters`, and what is nested over what is not."""
    values = _parse_floats(values)
    new, old = values.pop("rope_parameters", None), values.pop("rope_scaling", None)
    name, nested = ("rope_scaling", old) if old else ("rope_parameters", new)
    if nested is None:
        return values
    if isinstance(nested, dict) and isinstance(nested.get("full_attention"), dict):
        local, nested = nested.get("sliding_attention", {}), nested["full_attention"]
        if not isinstance(local, dict) or local.get("rope_type", "default") != "default":
            raise WeightsError(f"{file}: {name} of sliding_attention {shown(local)}: only 'default' is supported")
        values |= {LOCAL_THETA: local["rope_theta"]} if "rope_theta" in local else {}
    if not isinstance(nested, dict):
        raise WeightsError(f"{file}: {name} is {shown(nested)}, expected a mapping")
    values |= {key: nested[key] for key in FLAT_ROPE if key in nested}
    scaling = {key: value for key, value in nested.items() if key not in FLAT_ROPE}
    return values | {"rope_scaling": None if published.is_default_rope(scaling) else scaling}


def _rope_parameters(values: dict[str, Any]) -> dict[str, Any]:
    scaling = values.get("rope_scaling") or {"rope_type": "default"}
    nested = {key: values[key] for key in FLAT_ROPE if key in values} | scaling
    if LOCAL_THETA not in values:
        return nested
    local = {"rope_type": "default", "rope_theta": values[LOCAL_THETA]}
    return {"full_attention": nested, "sliding_attention": local}


def _convert(table: ConfigMap, key: str, value: Any, file: str) -> Any:
    if key not in table.convert:
        return value
    try:
        return table.convert[key][0](value)
    except (TypeError, ValueError, KeyError, AttributeError, ArithmeticError) as error:
        raise WeightsError(f"{file}: {key} = {shown(value)} cannot be read ({error})") from None


def _parse_floats(value: Any) -> Any:
    if isinstance(value, dict):
        number = value.get("__float__")
        if value.keys() == {"__float__"} and number in ("Infinity", "-Infinity", "NaN"):
            return float(number)
        return {key: _parse_floats(inner) for key, inner in value.items()}
    return [_parse_floats(inner) for inner in value] if isinstance(value, list) else value


def _flatten(values: dict[str, Any], table: ConfigMap) -> dict[str, Any]:
    """{'text_config': {'hidden_size': 4}} -> {'text_config.hidden_size': 4}, for the mappings in the table."""
    inside = _mapping_names(table)
    flat = {}
    for key, value in values.items():
        if key in inside and isinstance(value, dict):
            flat |= {f"{key}.{name}": inner for name, inner in value.items()}
        else:
            flat[key] = value
    return flat


def _mapping_names(table: ConfigMap) -> set[str]:
    return {name.partition(".")[0] for name in [*table.fields, *table.only] if "." in name}


def _nest(values: dict[str, Any], table: ConfigMap) -> dict[str, Any]:
    """The inverse of _flat."""
    inside, nested = _mapping_names(table), dict[str, Any]()
    for key, value in values.items():
        outer, dot, inner = key.partition(".")
        if dot and outer in inside and isinstance(nested.setdefault(outer, {}), dict):
            nested[outer][inner] = value
        else:
            nested[key] = value
    return nested
