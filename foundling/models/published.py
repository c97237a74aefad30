# SPDX-License-Identifier: Apache-2.0
"""Values of config.json that several families share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from foundling.errors import ConfigError

# transformers' name -> RopeScaling's
ROPE = {
    "factor": "factor",
    "low_freq_factor": "low_freq_factor",
    "high_freq_factor": "high_freq_factor",
    "original_max_position_embeddings": "original_max_seq_len",
}
ONLY_LINEAR = ("factor",)


def _read(value: dict[str, Any] | None) -> dict[str, Any] | None:
    if value is None:
        return None
    kind = value.get("rope_type", value.get("type"))
    known = ONLY_LINEAR if kind == "linear" else tuple(ROPE)
    if kind not in ("linear", "llama3") or not set(value) - {"rope_type", "type"} <= set(known):
        raise ValueError("only rope_type linear and llama3, with their own fields, are supported")
    return {"kind": kind} | {ROPE[key]: value[key] for key in known if key in value}


def _write(value: dict[str, Any] | None) -> dict[str, Any] | None:
    if value is None:
        return None
    known = ONLY_LINEAR if value["kind"] == "linear" else tuple(ROPE)
    return {"rope_type": value["kind"]} | {key: value[ROPE[key]] for key in known}


ROPE_SCALING = (_read, _write)


def without_dropout(*keys: str) -> dict[str, Callable[[dict[str, Any]], Any]]:
    """Values of published keys that are missing: earlier versions did not write them."""
    return dict.fromkeys(keys, lambda c: 0.0)


def check_dropout(config: Any) -> None:
    """Raises ConfigError unless `dropout` and `attention_dropout` are probabilities below 1."""
    for name in ("dropout", "attention_dropout"):
        if not 0 <= getattr(config, name, 0.0) < 1:
            raise ConfigError(f"{name} is {getattr(config, name)}; expected at least 0 and below 1")
