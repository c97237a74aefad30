# SPDX-License-Identifier: Apache-2.0
"""Foundling: raise your own foundation model. Names below are handed on lazily, so importing this imports no torch."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from foundling.adapt.added import merge, unmerge
    from foundling.adapt.bank import switch
    from foundling.adapt.lora import LoRAOptions, lora
    from foundling.adapt.quantize import dequantize, quantize
    from foundling.decode.denoise import denoise
    from foundling.decode.engine.engine import Engine, EngineOptions
    from foundling.decode.fill import fill
    from foundling.decode.generate import generate
    from foundling.decode.native.encoder import native_encoder
    from foundling.decode.sampling import Sampling
    from foundling.models import build
    from foundling.recipes.kinds import raise_model, reproduce
    from foundling.text import Tokenizer
    from foundling.train.loop import train
    from foundling.weights.adapters import load_adapter, load_adapters, save_adapter
    from foundling.weights.convert.diffusers import load_denoiser, save_denoiser
    from foundling.weights.directory import save
    from foundling.weights.loading import load
    from foundling.weights.manifest import check

_WHERE = {
    "Engine": "foundling.decode.engine.engine",
    "EngineOptions": "foundling.decode.engine.engine",
    "LoRAOptions": "foundling.adapt.lora",
    "Sampling": "foundling.decode.sampling",
    "Tokenizer": "foundling.text",
    "build": "foundling.models",
    "check": "foundling.weights.manifest",
    "denoise": "foundling.decode.denoise",
    "dequantize": "foundling.adapt.quantize",
    "fill": "foundling.decode.fill",
    "generate": "foundling.decode.generate",
    "load": "foundling.weights.loading",
    "load_adapter": "foundling.weights.adapters",
    "load_adapters": "foundling.weights.adapters",
    "load_denoiser": "foundling.weights.convert.diffusers",
    "lora": "foundling.adapt.lora",
    "merge": "foundling.adapt.added",
    "native_encoder": "foundling.decode.native.encoder",
    "quantize": "foundling.adapt.quantize",
    "raise_model": "foundling.recipes.kinds",
    "reproduce": "foundling.recipes.kinds",
    "save": "foundling.weights.directory",
    "save_adapter": "foundling.weights.adapters",
    "save_denoiser": "foundling.weights.convert.diffusers",
    "switch": "foundling.adapt.bank",
    "train": "foundling.train.loop",
    "unmerge": "foundling.adapt.added",
}
__all__ = [
    "Engine", "EngineOptions", "LoRAOptions", "Sampling", "Tokenizer",
    "build", "check", "denoise", "dequantize", "fill", "generate", "load", "load_adapter", "load_adapters",
    "load_denoiser", "lora", "merge", "native_encoder", "quantize", "raise_model", "reproduce", "save", "save_adapter",
    "save_denoiser", "switch", "train", "unmerge",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        value = globals()[name] = getattr(importlib.import_module(_WHERE[name]), name)
        return value
    raise AttributeError(f"foundling has no '{name}'; it has {', '.join(__all__)}")


def __dir__() -> list[str]:
    return sorted(__all__)
