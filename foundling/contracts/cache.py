# SPDX-License-Identifier: Apache-2.0
"""What a model has read so far: the slots that its mixers declare, the protocol that models call, and the operations on
rows that callers use.

Axis letters: B rows, T tokens of this forward pass, S keys, K key/value heads, P head_dim.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol, Self

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
    """A slot of fixed size: a recurrent state (B, *shape), always float32."""

    shape: tuple[int, ...]


class Cross(NamedTuple):
    """A slot that never changes: keys and values of a memory, computed once and shared by all rows that read it."""

    n_kv_heads: int
    head_dim: int


Slot = KV | Conv | State | Cross


class LayerCache(Protocol):
    """One mixer's part of a cache."""

    def extend(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Appends k and v (B, K, T, P) to each row; gives all keys and values (B, K, S, P) of the rows."""
        ...

    def cross(self) -> tuple[Tensor, Tensor]:
        """Keys and values (B, K, S, P) of the memory that each row reads."""
        ...

    def get(self, kind: type[Slot]) -> Tensor:
        """The tensor of a Conv or State slot, (B, …)."""
        ...

    def put(self, kind: type[Slot], value: Tensor) -> None:
        """Replaces it."""
        ...


class Cache(Protocol):
    """What a model calls in a forward pass: `begin` before its layers, `slot` in each mixer, `advance` after them."""

    documents: Tensor
    """(B, T), the documents of the tokens of this forward pass"""
    previous: Tensor
    """(B,), the document of the last token that each row held before this forward pass, −1 for an empty row"""
    span: int
    """S, the number of keys that `extend` gives in this forward pass"""

    @property
    def lengths(self) -> Tensor:
        """(B,) int64, the real tokens that each row holds"""
        ...

    @property
    def memory_documents(self) -> Tensor | None:
        """(B, S), the documents of the memory that each row reads; None without a memory, and where each row reads all
        of its own"""
        ...

    def begin(self, documents: Tensor | None, steps: int) -> tuple[Tensor, Tensor, Tensor]:
        """Starts a forward pass over `steps` tokens a row; `documents` (B, steps), None continues each row's last one.
        Gives their documents, the keys' documents (B, S), and each token's position in its document (B, steps)."""
        ...

    def slot(self, index: int) -> LayerCache: ...

    def advance(self) -> None:
        """Ends the forward pass: each row grows by its real tokens."""
        ...


class RowCache(Cache, Protocol):
    """A cache whose rows a caller rearranges between forward passes. `rows` are int64 indices."""

    def select(self, rows: Tensor, max_seq_len: int | None = None) -> Self:
        """A new cache of these rows, copied; a row may come more than once. `max_seq_len`: the tokens that a row of it
        can hold, as many as here by default."""
        ...

    def view(self, rows: Tensor) -> Self:
        """A cache of these rows that reads and writes this one."""
        ...

    def reset(self, rows: Tensor) -> None:
        """Empties rows."""
        ...

    def snapshot(self, rows: Tensor) -> Any:
        """What `restore` needs to bring these rows back."""
        ...

    def restore(self, snapshot: Any, rows: Tensor) -> None: ...

    def truncate(self, lengths: Tensor) -> None:
        """Cuts each row to its first `lengths` (B,) tokens; GenerationError where a recurrent state cannot be cut."""
        ...
