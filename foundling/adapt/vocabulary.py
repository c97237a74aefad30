# SPDX-License-Identifier: Apache-2.0
"""New tokens in a vocabulary, without a change of the base: their rows are an adapter of embedding and head. So the
base keeps its hash, adapters that were trained on it still load, and `merge` gives a plain model of more rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foundling.adapt.added import Added, added
from foundling.adapt.rewrite import rewrite
from foundling.adapt.soft import ExtendedEmbedding, VirtualTokens, token_embedding
from foundling.blocks.characters import CharacterCNN
from foundling.blocks.init import Role
from foundling.errors import AdaptError
from foundling.text.tokenizer import Tokenizer

NOISE = 0.01
"""Of a new row, in standard deviations of the old: so that new tokens differ from each other."""


def with_rows(old: Tensor, rows: Tensor, first: int) -> nn.Parameter:
    """(V, …) with `rows` (n, …) from `first` on, longer if they do not fit, in the type of the old"""
    size = max(len(old), first + len(rows))
    whole = old.new_zeros(size, *old.shape[1:])
    whole[: len(old)] = old.detach()
    whole[first : first + len(rows)] = rows.detach().to(old.dtype)
    return nn.Parameter(whole)


class NewTokens(ExtendedEmbedding):
    """Rows of an embedding for tokens of the tokenizer."""

    plain: nn.Embedding | None = None
    """what `merged` gave last, whose weight a tied head shares"""

    def merged(self) -> nn.Module:
        plain = nn.Embedding(self.num_embeddings, self.embedding_dim, device="meta")
        plain.weight = with_rows(self.base.weight, self.rows, self.first)
        object.__setattr__(self, "plain", plain)  # no submodule of this one
        return plain


class NewLogits(Added):
    """A head that predicts the tokens from `first` on by `rows` (n, D) and `bias` (n,), and all others by the base. A
    tied one reads the rows of the embedding, which own them."""

    own = ("rows",)
    base: Any

    def __init__(self, base: Any, new: NewTokens, rows: Tensor | None, bias: Tensor | None) -> None:
        """`rows`: None for a head that is tied to the embedding; `bias`: None for a head without biases"""
        super().__init__()
        self.base, self.first, self.n = base, new.first, new.n
        self.tied = rows is None
        object.__setattr__(self, "embedding", new)  # a submodule of the model, not of this one
        self.rows = new.rows if rows is None else nn.Parameter(rows.float())
        self.bias = None if bias is None else nn.Parameter(bias.float())
        parts = {"rows": not self.tied, "bias": bias is not None}
        self.own = tuple(part for part, own in parts.items() if own)  # pyright: ignore[reportAttributeAccessIssue]
        self.in_features, self.out_features = base.in_features, max(base.out_features, self.first + self.n)

    @property
    def weight(self) -> Tensor:
        """(V, D), that of the base"""
        return self.base.weight

    def forward(self, x: Tensor) -> Tensor:
        """(…, D) -> (…, V + n)"""
        y = self.base(x)
        bias = None if self.bias is None else self.bias.to(y.dtype)
        new = F.linear(x.to(y.dtype), self.rows.to(y.dtype), bias)
        return torch.cat((y[..., : self.first], new, y[..., self.first + self.n :]), dim=-1)

    def roles(self) -> dict[str, Role]:
        return {"rows": Role("head", self.in_features), "bias": Role("vector", 1)}

    def merged(self) -> nn.Module:
        """After the embedding, whose weight a tied head shares."""
        plain = nn.Linear(self.in_features, self.out_features, bias=self.bias is not None, device="meta")
        embedding: Any = self.embedding
        shared = embedding.plain or embedding.merged()
        plain.weight = shared.weight if self.tied else with_rows(self.base.weight, self.rows, self.first)
        if self.bias is not None:
            plain.bias = with_rows(self.base.bias, self.bias, self.first)
        return plain


def extend_vocabulary(
    model: Any,
    tokenizer: Tokenizer,
    tokens: Sequence[str],
    generator: torch.Generator,
    *,
    special: bool = True,
    rows: Tensor | None = None,
) -> Tokenizer:
    """Adds tokens to a model, in place, and to a copy of its tokenizer, which is returned.

    Their rows train; what else trains stays as it is. They start as `rows` (n, D), or at the mean of the rows of all
    tokens, in embedding and head (Hewitt 2021: no new token is then likelier than the average one). `special`: as marks
    that no text holds and decoding leaves out. They take the ids after the tokenizer's last one: rows beyond the
    vocabulary, or those that stood for no token. ConfigError for tokens that exist, are empty or come twice; AdaptError
    for a model that was extended before, has a soft prompt, or has fewer rows than its tokenizer has tokens."""
    check_extensible(model, tokenizer.vocab_size)
    _, base = token_embedding(model)
    if rows is not None and rows.shape != (len(tokens), base.embedding_dim):
        raise AdaptError(f"rows are {list(rows.shape)}; expected {[len(tokens), base.embedding_dim]}")
    extended, old = tokenizer.with_tokens(tokens, special=special), sorted(tokenizer.ids)
    start = _start(base.weight, old, len(tokens), generator) if rows is None else rows.detach().clone()
    head, own, bias = getattr(model, "head", None), None, None
    if head is not None and head.weight is not base.weight:
        own = _start(head.weight, old, len(tokens), generator)
    if head is not None and head.bias is not None:
        bias = head.bias.detach()[old].mean().expand(len(tokens)).clone()
    extend(model, tokenizer.vocab_size, start, own, bias)
    return extended


def check_extensible(model: Any, first: int) -> None:
    """AdaptError for a model that cannot get new tokens from the id `first` on."""
    _, base = token_embedding(model)
    if isinstance(base, CharacterCNN):
        raise AdaptError(f"{type(model).__name__} makes words from their characters; new tokens have no rows to add")
    if kinds := [type(m).__name__ for m in added(model).values() if isinstance(m, ExtendedEmbedding)]:
        way = "extend first, prompt_tuning comes after" if kinds == [VirtualTokens.__name__] else "merge first"
        raise AdaptError(f"the model's vocabulary has {kinds[0]} already; {way}")
    if first > base.num_embeddings:
        raise AdaptError(f"the tokenizer has {first} tokens, the model {base.num_embeddings} rows")


def extend(model: Any, first: int, rows: Tensor, head_rows: Tensor | None, head_bias: Tensor | None) -> list[str]:
    """Puts rows (n, D) for the ids from `first` on into embedding and head, in place, and returns the names of the two.
    `head_rows` (n, D): None where the head is tied; `head_bias` (n,): None where it has none."""
    name, base = token_embedding(model)
    new, head = NewTokens(base, rows.to(base.weight.device), first), getattr(model, "head", None)
    names = rewrite(model, {name: base}, lambda m: new)
    if head is not None:
        own, bias = (None if part is None else part.to(base.weight.device) for part in (head_rows, head_bias))
        names += rewrite(model, {"head": head}, lambda m: NewLogits(m, new, own, bias))
    model.config = dataclasses.replace(model.config, vocab_size=new.num_embeddings)
    return names


@torch.no_grad()
def _start(weight: Tensor, ids: Sequence[int], n: int, generator: torch.Generator) -> Tensor:
    """(V, D) -> (n, D): the mean of the rows `ids`, and a little noise"""
    rows = weight[torch.tensor(ids, device=weight.device)].float()
    noise = torch.randn(n, rows.shape[1], generator=generator).to(rows.device)
    return rows.mean(0) + NOISE * rows.std(0, correction=0) * noise
