# SPDX-License-Identifier: Apache-2.0
"""Soft prompts and prefixes as peft stores them: one tensor, `prompt_embeddings`, beside adapter_config.json.

peft puts a soft prompt before what its model embeds, so the two agree for every family. It puts a prefix into the
cache, as if it had been read: the tokens' positions begin after it. Where positions only rotate queries and keys that
is the same as keys rotated back by n positions, and outputs are equal. Where they do anything else (a table, a bias, a
window, a chunk) peft's model computes another function; such prefixes are written by our names, and peft's refused."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from foundling.adapt.added import Added
from foundling.adapt.prefix import PrefixAttend, prefix_tuning, prefixable
from foundling.adapt.soft import VirtualTokens, prompt_tuning, token_embedding, virtual_ids
from foundling.blocks.attention import Attention
from foundling.blocks.position import PositionTable, RoPE, position_limit, rotate
from foundling.blocks.stack import Decoder
from foundling.errors import WeightsError
from foundling.limits import VIRTUAL_TOKENS
from foundling.weights.adapter_layout import CONFIG, Kind, Source, Written
from foundling.weights.peft_lora import OWN

TENSOR = "prompt_embeddings"
SHIFTS = ("dynamic", "longrope")
"""scalings of rotations that depend on how long a text is, the prefix included"""


def _task(model: Any) -> str:
    can = type(model).capabilities
    return "SEQ_2_SEQ_LM" if can.reads_source else "CAUSAL_LM" if can.generates else "FEATURE_EXTRACTION"


def _n_virtual(source: Source) -> int:
    return VIRTUAL_TOKENS.check(
        source.config.get("num_virtual_tokens"), f"{source.directory / CONFIG}: num_virtual_tokens", WeightsError
    )


# --- soft prompts ----------------------------------------------------------------------------------------------------


def _gain(model: Any, module: VirtualTokens) -> Tensor:
    """What a model multiplies its embeddings by (Gemma: √d_model); peft's rows stand behind that product."""
    embed = getattr(model, "embed_tokens", module)
    before = module.rows.data
    try:
        module.rows.data = torch.ones_like(before)
        with torch.no_grad():
            return embed(torch.tensor([[module.first]], device=before.device))[0, 0, 0].float().cpu()
    finally:
        module.rows.data = before


def write_prompt(model: Any, modules: Mapping[str, Added], tensors: Mapping[str, Tensor]) -> Written:
    ((name, module),) = modules.items()
    assert isinstance(module, VirtualTokens)
    rows = tensors[f"{name}.rows"] * _gain(model, module)
    config = _config("PROMPT_TUNING", model, len(rows), rows.shape[1]) | {"prompt_tuning_init": "RANDOM"}
    return Written(config, {TENSOR: rows.contiguous()}, {"n": len(rows)})


def read_prompt(model: Any, source: Source) -> Callable[[], list[str]]:
    n, (_, base) = _n_virtual(source), token_embedding(model)
    if virtual_ids(model):
        raise WeightsError(f"{source.directory}: the model has virtual tokens already; load the base again")
    if (limit := position_limit(model)) is not None and n >= limit:
        file = source.directory / CONFIG
        raise WeightsError(f"{file}: num_virtual_tokens is {n}; the model reads {limit} tokens, virtual ones included")
    stored, _ = source.shape(TENSOR, 2)
    if stored not in (n, 2 * n):  # peft makes those of a decoder too, and never reads them
        raise WeightsError(f"{source.tensors.path}: '{TENSOR}' has {stored} rows, {CONFIG} says {n}")
    rows = source.take(TENSOR, (stored, base.embedding_dim), torch.float32)[:n]

    def attach() -> list[str]:
        names = prompt_tuning(model, n, torch.Generator())
        module: Any = model.get_submodule(names[0])
        module.rows.data.copy_(rows / _gain(model, module))
        return names

    return attach


# --- prefixes --------------------------------------------------------------------------------------------------------


def shifted_reason(model: Any) -> str | None:
    """Why a prefix in peft's cache computes something else for this model; None where it is only rotated."""
    if not isinstance(model, Decoder) or model.reads_memory:
        return "peft gives a prefix to decoders alone"
    if any(isinstance(m, PositionTable) for m in model.modules()) or model.rope is None:
        return "peft's tokens stand behind the prefix, and its positions are not rotations"
    scaling = model.rope.scaling
    if type(model).attention_bias is not Decoder.attention_bias or (scaling is not None and scaling.kind in SHIFTS):
        return "what it adds by position counts the prefix in peft"
    mixers: list[Any] = [layer.mixer for layer in model.layers]
    if not all(isinstance(m, Attention) and type(m).apply_rope is Attention.apply_rope for m in mixers):
        return "not every layer has attention with rotary positions"
    if any(m.window is not None or m.chunk is not None for m in mixers):
        return "peft's prefix falls out of its windows or chunks"
    return None


def turned(k: Tensor, rope: RoPE, by: int) -> Tensor:
    """k (K, n, P), rotated by so many positions, in float64 and rounded once"""
    cos, sin = (part.double() for part in rope(torch.tensor([[abs(by)]], device=k.device)))
    length = (cos.square() + sin.square()).sqrt()  # scaled positions lengthen queries and keys; a rotation does not
    cos, sin = cos / length, sin / length
    return rotate(k.double()[None], (cos, sin if by >= 0 else -sin))[0].to(k.dtype)


def write_prefix(model: Any, modules: Mapping[str, Added], tensors: Mapping[str, Tensor]) -> Written:
    n = next(m.n for m in modules.values() if isinstance(m, PrefixAttend))
    if reason := shifted_reason(model):
        own = {f"{OWN}{name}.{part}": tensors[f"{name}.{part}"] for name in modules for part in "kv"}
        return Written({}, own, {"n": n, "not_peft": reason})
    parts = []
    for name in modules:
        k, v = tensors[f"{name}.k"], tensors[f"{name}.v"]
        parts += [turned(k, model.rope, n).transpose(0, 1), v.transpose(0, 1)]
    table = torch.stack(parts, dim=1)  # (n, 2 · layers, K, P)
    heads, width = table.shape[2:]
    config = _config("PREFIX_TUNING", model, n, heads * width) | {
        "num_layers": len(modules), "num_attention_heads": heads, "encoder_hidden_size": heads * width,
        "prefix_projection": False,
    }  # fmt: skip
    return Written(config, {TENSOR: table.flatten(1).contiguous()}, {"n": n})


def read_prefix(model: Any, source: Source) -> Callable[[], list[str]]:
    names = list(prefixable(model))
    mixers: list[Any] = [model.get_submodule(name.rpartition(".")[0]) for name in names]
    about = source.about("prefix")
    if source.config.get("peft_type") != "PREFIX_TUNING":
        read = _read_own(source, about or {}, names, mixers)
    elif reason := shifted_reason(model):
        raise WeightsError(
            f"{source.directory}: a prefix by peft, which {type(model).__name__} cannot compute exactly: {reason}"
        )
    else:
        read = _read_peft(source, model.rope, names, mixers)

    def attach() -> list[str]:
        prefix_tuning(model, next(iter(read.values()))[0].shape[1], torch.Generator())
        for name, (k, v) in read.items():
            module: Any = model.get_submodule(name)
            module.k.data.copy_(k)
            module.v.data.copy_(v)
        return names

    return attach


def _read_own(
    source: Source, about: Mapping[str, Any], names: list[str], mixers: list[Any]
) -> dict[str, tuple[Tensor, Tensor]]:
    n = VIRTUAL_TOKENS.check(about.get("n"), f"{source.directory}: the number of virtual tokens", WeightsError)
    read = {}
    for name, m in zip(names, mixers, strict=True):
        shape = m.n_kv_heads, n, m.head_dim
        read[name] = tuple(source.take(f"{OWN}{name}.{part}", shape, torch.float32) for part in "kv")
    return read


def _read_peft(source: Source, rope: RoPE, names: list[str], mixers: list[Any]) -> dict[str, tuple[Tensor, Tensor]]:
    n, heads, width = _n_virtual(source), mixers[0].n_kv_heads, mixers[0].head_dim
    table = source.take(TENSOR, (n, 2 * len(names) * heads * width), torch.float32)
    parts = table.view(n, len(names), 2, heads, width).permute(1, 2, 3, 0, 4)  # (layers, 2, K, n, P)
    return {name: (turned(k, rope, -n), v) for name, (k, v) in zip(names, parts, strict=True)}


def _config(peft_type: str, model: Any, n: int, width: int) -> dict[str, Any]:
    """Whole, so that peft asks the base's config for nothing."""
    c = model.config
    return {
        "peft_type": peft_type, "task_type": _task(model), "num_virtual_tokens": n, "token_dim": width,
        "num_transformer_submodules": 1, "num_layers": getattr(c, "n_layers", 1),
        "num_attention_heads": getattr(c, "n_heads", 1),
    }  # fmt: skip


PROMPT = Kind(
    "prompt", (VirtualTokens,), lambda source: source.config.get("peft_type") == "PROMPT_TUNING", write_prompt,
    read_prompt,
)  # fmt: skip
PREFIX = Kind(
    "prefix",
    (PrefixAttend,),
    lambda source: source.config.get("peft_type") == "PREFIX_TUNING" or source.about("prefix") is not None,
    write_prefix,
    read_prefix,
)
