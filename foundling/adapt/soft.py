# SPDX-License-Identifier: Apache-2.0
"""Prompt tuning (Lester et al. 2021): the embeddings of virtual tokens, which stand before each text and alone learn.

A virtual token is an id beyond the vocabulary, which nothing predicts. A soft prompt is then n ids before a text, and
packing, caches and the engine need to know nothing of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foundling.adapt.added import Added, added, freeze_base
from foundling.adapt.rewrite import rewrite
from foundling.blocks.characters import CharacterCNN
from foundling.blocks.init import Role
from foundling.blocks.position import position_limit
from foundling.errors import AdaptError
from foundling.limits import TOKEN_ID, VIRTUAL_TOKENS


class ExtendedEmbedding(Added):
    """An embedding whose ids from `first` on are `rows` (n, D), and all others those of the base."""

    own = ("rows",)
    base: Any

    def __init__(self, base: Any, rows: Tensor, first: int) -> None:
        super().__init__()
        self.base, self.first, self.n = base, first, len(rows)
        self.rows = nn.Parameter(rows.float())  # trained in float32, whatever the base is in
        self.num_embeddings = max(base.num_embeddings, first + self.n)
        self.embedding_dim = base.embedding_dim

    @property
    def weight(self) -> Tensor:
        """(V, D), that of the base"""
        return self.base.weight

    @property
    def ids(self) -> range:
        return range(self.first, self.first + self.n)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, T) -> (B, T, D)"""
        at = tokens - self.first
        new = (at >= 0) & (at < self.n)
        x = self.base(tokens.masked_fill(new, 0))
        return torch.where(new[..., None], F.embedding(at.masked_fill(~new, 0), self.rows).to(x.dtype), x)

    def roles(self) -> dict[str, Role]:
        return {"rows": Role("embedding", self.embedding_dim)}


class VirtualTokens(ExtendedEmbedding):
    """The rows of a soft prompt."""


def token_embedding(model: Any) -> tuple[str, Any]:
    """The name and the module of what embeds the tokens of a model. AdaptError for one that reads none."""
    modules = dict(model.named_modules())
    for name in ("embedding", "text.embedding"):
        if isinstance(modules.get(name), nn.Embedding | CharacterCNN | ExtendedEmbedding):
            return name, modules[name]
    raise AdaptError(f"{type(model).__name__} reads no tokens, so it takes no virtual ones; adapt it by lora(…)")


def virtual_ids(model: nn.Module) -> tuple[int, ...]:
    """The ids that stand before each text of this model; () without prompt tuning."""
    return tuple(i for module in added(model).values() if isinstance(module, VirtualTokens) for i in module.ids)


def prompt_tuning(model: Any, n: int, generator: torch.Generator, init_ids: Sequence[int] | None = None) -> list[str]:
    """Adds `n` virtual tokens, in place, freezes the base, and returns the name of the embedding.

    They start as the embeddings of `init_ids`, repeated or cut to n, or of random tokens (section 3.2). AdaptError for
    a model that reads no tokens or has virtual ones already, for ids outside the vocabulary, and for as many as the
    model has positions."""
    VIRTUAL_TOKENS.check(n, "n", AdaptError)
    name, base = token_embedding(model)
    if virtual_ids(model):
        raise AdaptError("the model has virtual tokens already; load the base again to begin anew")
    if (limit := position_limit(model)) is not None and n >= limit:
        raise AdaptError(f"n is {n}; the model reads {limit} tokens, virtual ones included: leave space for a text")
    ids = torch.tensor(cycled(init_ids, n, base.num_embeddings)) if init_ids is not None else (
        torch.randint(base.num_embeddings, (n,), generator=generator)
    )  # fmt: skip
    with torch.no_grad():
        rows = base(ids.to(base.weight.device)).clone()
    names = rewrite(model, {name: base}, lambda m: VirtualTokens(m, rows, m.num_embeddings))
    freeze_base(model)
    return names


def cycled(ids: Sequence[int], n: int, n_rows: int) -> list[int]:
    """`ids` repeated or cut to n. AdaptError for none, and for one that has no row."""
    for i in ids:
        if TOKEN_ID.check(i, "an id of init_ids", AdaptError) >= n_rows:
            raise AdaptError(f"init_ids contain {i}; the model has rows for 0 to {n_rows - 1}")
    if not len(ids):
        raise AdaptError("init_ids are empty; give at least one token, or None for random ones")
    return [int(ids[at % len(ids)]) for at in range(n)]
