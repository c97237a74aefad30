# SPDX-License-Identifier: Apache-2.0
"""Applies a method of adaptation to a model: what is frozen, what is added, what is trained."""

from __future__ import annotations

from typing import Any

import torch

from foundling.adapt.added import added
from foundling.adapt.freeze import train_biases, train_top
from foundling.adapt.heads import Head, freeze_vocabulary
from foundling.adapt.lora import LoRAOptions, lora
from foundling.adapt.options import AdaptOptions
from foundling.adapt.prefix import prefix_tuning
from foundling.adapt.quantize import quantize
from foundling.adapt.soft import prompt_tuning
from foundling.errors import AdaptError

SAVED_ALONE = ("lora", "qlora", "prompt", "prefix")
"""methods that leave the base as it is: the adapter is saved without it"""


def apply(model: Any, options: AdaptOptions, generator: torch.Generator) -> list[str]:
    """Rewrites the model in place and returns the names of what is trained. A head that was added before is trained by
    every method; one that belongs to the model, by those that save the model whole. AdaptError where the method does
    not fit the model."""
    method = options.method
    if options.merged and method in ("prompt", "prefix"):
        raise AdaptError(f"the method '{method}' cannot be merged into the model; leave out --merged")
    heads = [m for m in added(model).values() if isinstance(m, Head)]
    if method == "head":
        if not heads:
            raise AdaptError("the method 'head' trains a head, and these examples need none; use lora or full")
        model.requires_grad_(False)
    elif method == "full":
        model.requires_grad_(True)
    elif method in ("lora", "qlora"):
        settings = {"rank": options.rank, "alpha": options.alpha}
        if options.pattern is not None:
            settings["pattern"] = options.pattern
        choice = LoRAOptions(**settings)
        if method == "qlora":
            quantize(model, choice.pattern, kind="nf4")
        lora(model, choice, generator)
    elif method == "prompt":
        prompt_tuning(model, options.n_virtual, generator)
    elif method == "prefix":
        prefix_tuning(model, options.n_virtual, generator)
    elif method == "bias":
        train_biases(model)
    else:
        train_top(model, options.top_layers)
    for head in heads:
        if head.own or method not in SAVED_ALONE:  # an adapter is saved without the model's own head
            head.requires_grad_(True)
    if heads:
        freeze_vocabulary(model)
    return [name for name, p in model.named_parameters() if p.requires_grad]


def stores_rounded(options: AdaptOptions, precision: str) -> bool:
    """Whether `store_frozen` is for this method: what it makes is saved beside the base, not with it, and autocast
    would round the base at each use."""
    return precision == "bfloat16" and options.method in SAVED_ALONE
