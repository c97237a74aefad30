# SPDX-License-Identifier: Apache-2.0
"""Which keys a query may attend to: the rule as data, and the mask that a backend computes with.

Axis letters: B batch, T query, S key, H heads.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import register_pytree_node

from foundling.blocks.position import positions_of


class Reach(NamedTuple):
    """How far one kind of attention layer sees, and what its backend needs."""

    window: int | None = None
    chunk: int | None = None
    needs_dense: bool = False
    """soft-capped scores: the mask is needed even where only causality is asked"""


@dataclass(frozen=True)
class MaskRule:
    """Who may attend to whom.

    `documents` (B, T) of the queries: tokens of one document attend to each other, −1 is padding on the right.
    `key_documents` (B, S) of the keys, where they are not the queries themselves: a cache, a memory.
    `lengths` (B,): the number of keys that the cache held before; query t of row b is key lengths[b] + t.
    `window`: query i sees key j where |i − j| < window; with `causal`, itself and the window − 1 keys before it.
    `chunk`: each document is split into chunks of this many tokens, and a query sees its own chunk.
    """

    causal: bool = True
    documents: Tensor | None = None
    key_documents: Tensor | None = None
    lengths: Tensor | None = None
    window: int | None = None
    chunk: int | None = None

    def within(self, n_keys: int) -> MaskRule:
        """The same rule without a window or chunk that no key is outside of."""
        window = None if self.window is None or self.window >= n_keys else self.window
        chunk = None if self.chunk is None or self.chunk >= n_keys else self.chunk
        return replace(self, window=window, chunk=chunk)

    @property
    def is_plain(self) -> bool:
        """Nothing is asked but causality, or nothing at all."""
        return all(part is None for part in (self.documents, self.lengths, self.window, self.chunk))


@dataclass(frozen=True)
class Mask:
    """What `Attend` reads. `dense` (B or 1, 1 or H, T, S): bool, True where a query may attend, or numbers to add to
    the scores, −∞ where it may not; None where `causal` says all."""

    causal: bool = True
    dense: Tensor | None = None


# FSDP2 finds the tensors of a layer's inputs by tree_flatten: a learned bias in a mask needs its backward hook
register_pytree_node(
    Mask,
    lambda mask: ([mask.dense], mask.causal),
    lambda leaves, causal: Mask(causal, *leaves),
    serialized_type_name="foundling.blocks.mask.Mask",
)


def dense_mask(rule: MaskRule, n_queries: int, n_keys: int, device: torch.device) -> Tensor:
    """(B or 1, 1, T, S) bool, True = may attend. Padding queries attend to everything before them, so that no softmax
    is over nothing; their outputs are never read."""
    query = torch.arange(n_queries, device=device)[:, None]
    key = torch.arange(n_keys, device=device)[None, :]
    if rule.lengths is not None:
        query = query + rule.lengths[:, None, None]
    allowed = (key <= query) if rule.causal else torch.ones_like(key <= query)
    if rule.window is not None:
        distance = query - key if rule.causal else (query - key).abs()
        allowed = allowed & (distance < rule.window)
    key_documents = rule.documents if rule.key_documents is None else rule.key_documents
    if rule.chunk is not None:
        chunks = positions_of(key if key_documents is None else key_documents, key_documents) // rule.chunk
        own = chunks.gather(1, query.flatten(-2).expand(len(chunks), -1).clamp_max(n_keys - 1))
        allowed = allowed & (own[:, :, None] == chunks[:, None, :])
    if allowed.ndim == 2:
        allowed = allowed[None]
    if rule.documents is not None and key_documents is not None:
        same = rule.documents[:, :, None] == key_documents[:, None, :]
        allowed = allowed & (same | (rule.documents < 0)[:, :, None])
    return allowed[:, None]


def build_mask(
    rule: MaskRule, n_queries: int, n_keys: int, like: Tensor, bias: Tensor | None = None, *, needs_dense: bool = False
) -> Mask:
    """The mask of one kind of layer, built once for all of its layers. `bias` (B or 1, H, T, S) is added to the scores;
    `like` gives the device, and the dtype that the layers compute in."""
    rule = rule.within(n_keys)
    if rule.is_plain and bias is None and not needs_dense:
        return Mask(rule.causal)
    allowed = dense_mask(rule, n_queries, n_keys, like.device)
    if bias is None:
        return Mask(rule.causal, allowed)
    return Mask(rule.causal, torch.where(allowed, bias.to(compute_dtype(like)), -math.inf))


def compute_dtype(x: Tensor) -> torch.dtype:
    """The dtype of what a projection of x gives, autocast considered."""
    return torch.get_autocast_dtype(x.device.type) if torch.is_autocast_enabled(x.device.type) else x.dtype
