# SPDX-License-Identifier: Apache-2.0
"""What a model has read so far: the slots that its mixers declare, and the two protocols that read and write them."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

from torch import Tensor


class KV(NamedTuple):
    """A slot that grows: keys and values, (B, n_kv_heads, S, head_dim) each."""

    n_kv_heads: int
    head_dim: int


class Conv(NamedTuple):
    """A slot of fixed size: the last `width` inputs of a causal convolution, (B, width, channels)."""

    channels: int
    width: int


class State(NamedTuple):
    """A slot of fixed size: a recurrent state (B, *shape), float32 always."""

    shape: tuple[int, ...]


class Cross(NamedTuple):
    """A slot that never changes: keys and values of a memory, computed once, shared by all rows that read it."""

    n_kv_heads: int
    head_dim: int


Slot = KV | Conv | State | Cross


class LayerCache(Protocol):
    """One mixer's part of a cache."""

    documents: Tensor
    """(B, T) of the tokens being read"""
    previous: Tensor
    """(B,) the document of the last token each row holds, -1 for an empty row"""

    def extend(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]: ...
    def cross(self) -> tuple[Tensor, Tensor]: ...
    def get(self, kind: type[Slot]) -> Tensor: ...
    def put(self, kind: type[Slot], value: Tensor) -> None: ...


class Cache(Protocol):
    """What a model has already read, owned by the caller, one row an answer."""

    lengths: Tensor

    def slot(self, index: int) -> LayerCache: ...
    def select(self, rows: Tensor) -> Cache: ...
    def view(self, rows: Tensor) -> Cache: ...
    def reset(self, rows: Tensor) -> None: ...
    def snapshot(self, rows: Tensor) -> Any: ...
    def restore(self, snapshot: Any, rows: Tensor) -> None: ...
    def truncate(self, lengths: Tensor) -> None: ...
