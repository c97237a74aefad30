# SPDX-License-Identifier: Apache-2.0
"""Values of config.json that several families share."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from foundling.errors import ConfigError

ORIGINAL = "original_max_position_embeddings"
ROPE = {
    "linear": {"factor": "factor"},
    "dynamic": {"factor": "factor"},
    "llama3": {
        "factor": "factor", "low_freq_factor": "low_freq_factor", "high_freq_factor": "high_freq_factor",
        ORIGINAL: "original_max_seq_len",
    },
    "yarn": {
        "factor": "factor", ORIGINAL: "original_max_seq_len", "attention_factor": "attention_factor",
        "beta_fast": "beta_fast", "beta_slow": "beta_slow", "truncate": "truncate",
    },
    "longrope": {
        "factor": "factor", ORIGINAL: "original_max_seq_len", "attention_factor": "attention_factor",
        "short_factor": "short_factor", "long_factor": "long_factor",
    },
}  # fmt: skip
"""rope_type -> transformers' name -> RopeScaling's, of the parameters that this type reads"""
UNREAD = {name for fields in ROPE.values() for name in fields} | {"mscale", "mscale_all_dim", "finetuned"}
"""Parameters of other types, which transformers ignores."""
OPTIONAL = {"attention_factor", "beta_fast", "beta_slow", "truncate"}


def _read(value: dict[str, Any] | None) -> dict[str, Any] | None:
    """rope_scaling of a config.json, completed by `complete_rope_scaling` -> RopeScaling's fields; None for no
    scaling."""
    if value is None:
        return None
    value = dict(value)
    kind, longest = _rope_type(value), value.pop("max_position_embeddings", None)
    if kind is None:
        raise ValueError("it names no rope_type")
    if kind not in ROPE:
        raise ValueError(f"rope_type '{kind}' is not supported; supported: default, {', '.join(ROPE)}")
    known = ROPE[kind]
    if kind in ("longrope", "yarn") and value.get("factor") is None and longest is not None:
        value["factor"] = max(1.0, longest / value[ORIGINAL])
    if kind == "yarn" and value.get("attention_factor") is None and value.get("mscale") and value.get("mscale_all_dim"):
        gains = [0.1 * value[name] * math.log(value["factor"]) + 1.0 for name in ("mscale", "mscale_all_dim")]
        value["attention_factor"] = gains[0] / gains[1]
    for name in value:
        if name not in known and name not in UNREAD:
            raise ValueError(f"'{name}' of rope_type '{kind}' is not supported")
    for name in known.keys() - OPTIONAL:
        if value.get(name) is None:
            raise ValueError(f"rope_type '{kind}' needs '{name}'")
    given = {ours: value[theirs] for theirs, ours in known.items() if value.get(theirs) is not None}
    return {"kind": kind} | {name: tuple(v) if isinstance(v, list) else v for name, v in given.items()}


def _write(value: dict[str, Any] | None) -> dict[str, Any] | None:
    if value is None:
        return None
    written = {theirs: value[ours] for theirs, ours in ROPE[value["kind"]].items() if value[ours] is not None}
    return {"rope_type": value["kind"]} | {k: list(v) if isinstance(v, tuple) else v for k, v in written.items()}


def _rope_type(value: dict[str, Any]) -> Any:
    """Removes `rope_type`, or `type` as older versions called it; None where there is neither."""
    new, old = value.pop("rope_type", None), value.pop("type", None)
    return new or old


def is_default_rope(value: dict[str, Any]) -> bool:
    """Whether rope_scaling changes nothing: without a type it holds nothing, and with the type `default` nothing but
    parameters of other types."""
    kind = _rope_type(rest := dict(value))
    return not rest if kind is None else kind == "default" and rest.keys() <= UNREAD


def complete_rope_scaling(values: dict[str, Any]) -> None:
    """Adds to `rope_scaling` of a whole config.json, in place, what transformers takes from outside it: the length that
    the model was first trained at, and the one that it is scaled to."""
    if isinstance(scaling := values.get("rope_scaling"), dict):
        longest = values.get("max_position_embeddings")
        original = values.get(ORIGINAL) or scaling.get(ORIGINAL) or longest
        values["rope_scaling"] = scaling | {ORIGINAL: original, "max_position_embeddings": longest}


ROPE_SCALING = (_read, _write)

REFUSED: dict[str, tuple[Any, ...]] = {
    "embedding_multiplier": (1.0,), "residual_multiplier": (1.0,), "attention_multiplier": (), "logits_scaling": (1.0,),
    "logit_scale": (1.0,), "scale_emb": (1.0,), "final_logit_softcapping": (), "attn_logit_softcapping": (),
    "clip_qkv": (), "use_qk_norm": (False,), "qk_layernorm": (False,), "attn_temperature_tuning": (False,),
    "use_bidirectional_attention": (False,), "use_mrope": (False,), "dual_chunk_attention_config": (),
    "layer_types": ("full_attention",), "no_rope_layers": (1,), "pruned_heads": ({},),
}  # fmt: skip
"""Keys that change what a model computes -> the values beside null that change nothing. A family that neither maps nor
implies a key refuses other values, also where transformers would ignore them."""
PER_LAYER = ("layer_types", "no_rope_layers")
"""those whose value is a list of one item a layer"""


def without_dropout(*keys: str) -> dict[str, Callable[[dict[str, Any]], Any]]:
    """Values of published keys that are missing: earlier versions did not write them."""
    return dict.fromkeys(keys, lambda c: 0.0)


def padding(default: int) -> dict[str, Callable[[dict[str, Any]], Any]]:
    """`pad_token_id` for a file that would name none, where transformers assumes `default` and asks that it is a row of
    the embedding."""
    return {"pad_token_id": lambda c: default if default < c["vocab_size"] else 0}


def key_value_heads(default: int) -> dict[str, Callable[[dict[str, Any]], Any]]:
    """`num_key_value_heads`, for a file without it; a null says that there are as many as heads."""
    return {"num_key_value_heads": lambda c: c["num_attention_heads"] if "num_key_value_heads" in c else default}


def check_heads(config: Any, n_rotated: int = 0) -> None:
    """Raises ConfigError unless the key/value heads are shared evenly, heads without a `head_dim` divide d_model, and
    the `n_rotated` channels of each are pairs."""
    if config.n_heads % config.n_kv_heads:
        raise ConfigError(f"n_heads {config.n_heads} is not a multiple of n_kv_heads {config.n_kv_heads}")
    if "head_dim" not in type(config).__dataclass_fields__ and config.d_model % config.n_heads:
        raise ConfigError(f"d_model {config.d_model} is not a multiple of n_heads {config.n_heads}")
    if n_rotated % 2:
        raise ConfigError(f"{n_rotated} channels of each head are rotated; rotary positions need pairs")


def check_dropout(config: Any) -> None:
    """Raises ConfigError unless its rates of dropout are probabilities below 1."""
    for name in (name for name in type(config).__dataclass_fields__ if name.endswith("dropout")):
        if not 0 <= getattr(config, name) < 1:
            raise ConfigError(f"{name} is {getattr(config, name)}; expected at least 0 and below 1")
