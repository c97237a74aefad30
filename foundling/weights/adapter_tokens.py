# SPDX-License-Identifier: Apache-2.0
"""New tokens in an adapter's directory: their rows by our names. peft has no layout for rows beyond its base's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from foundling.adapt.added import Added
from foundling.adapt.soft import token_embedding
from foundling.adapt.vocabulary import NewLogits, NewTokens, check_extensible, extend
from foundling.errors import WeightsError
from foundling.limits import NEW_TOKENS, TOKENS
from foundling.weights.adapter_layout import Kind, Source, Written
from foundling.weights.peft_lora import OWN


def write(model: Any, modules: Mapping[str, Added], tensors: Mapping[str, Tensor]) -> Written:
    new = next(m for m in modules.values() if isinstance(m, NewTokens))
    mine = {f"{OWN}{name}.{part}": tensors[f"{name}.{part}"] for name, m in modules.items() for part in m.own}
    return Written({}, mine, {"first": new.first, "n": new.n})


def read(model: Any, source: Source) -> Callable[[], list[str]]:
    about, where = source.about(KIND.name) or {}, f"{source.directory}: adapters.{KIND.name}"
    n = NEW_TOKENS.check(about.get("n"), f"{where}.n", WeightsError)
    first = TOKENS.check(about.get("first"), f"{where}.first", WeightsError)
    check_extensible(model, first)
    (name, base), head = token_embedding(model), getattr(model, "head", None)

    def take(name: str, *shape: int) -> Tensor:
        return source.take(f"{OWN}{name}", shape, torch.float32)

    rows = take(f"{name}.rows", n, base.embedding_dim)
    tied = head is None or head.weight is base.weight
    own = None if tied else take("head.rows", n, base.embedding_dim)
    bias = None if head is None or head.bias is None else take("head.bias", n)
    return lambda: extend(model, first, rows, own, bias)


KIND = Kind(
    "tokens", (NewTokens, NewLogits), lambda source: source.about("tokens") is not None, write, read
)  # fmt: skip
