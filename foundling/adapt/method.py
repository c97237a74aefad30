# SPDX-License-Identifier: Apache-2.0
"""Applies the options of a method to a model."""

from __future__ import annotations

from typing import Any

import torch

from foundling.adapt.lora import LoRAOptions, lora
from foundling.adapt.options import AdaptOptions
from foundling.adapt.quantize import quantize
from foundling.errors import AdaptError

IN_LAYERS = "*layers.*"


def apply(model: Any, options: AdaptOptions, generator: torch.Generator) -> list[str]:
    """Adapts the model in place: adds what the method adds, and freezes what it does not train. Returns the names of
    the modules that it added; the generator draws their initial values. AdaptError for a pattern that matches
    nothing."""
    if options.method == "full":
        model.requires_grad_(True)
        return []
    if options.method in ("lora", "qlora"):
        if options.method == "qlora":
            quantize(model, IN_LAYERS, "nf4")
        return lora(model, LoRAOptions(options.pattern or IN_LAYERS, options.rank, options.alpha), generator)
    raise AdaptError(f"method is '{options.method}', which is not among those here: full, lora, qlora")


def stores_rounded(options: AdaptOptions, precision: str) -> bool:
    """Whether `store_frozen` is for this method: what it makes is saved beside the base, not with it, and autocast
    would round the base at each use."""
    return precision == "bfloat16" and options.method in ("lora", "qlora", "prompt", "prefix")
