# SPDX-License-Identifier: Apache-2.0
"""The shared types: what a model gives, what an objective gives, what attention may see.

Axis letters: B batch, T query time, S key time, D d_model, V vocab, H query heads, K key/value heads, P head_dim.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

Batch = dict[str, Tensor]
"""Named tensors of one micro-batch, rows first. Text: `tokens`, `targets`, `documents` (B, T) int64, `loss_mask`
(B, T) bool (True = counted), `sample_ids` (B,) int64."""


class Term(NamedTuple):
    """A sum and the count it is to be divided by, kept apart so that accumulation and ranks cannot change a mean."""

    sum: Tensor
    count: Tensor | int  # pyright: ignore[reportIncompatibleMethodOverride]  hides tuple.count, which nobody needs here
    weight: float = 1.0


Loss = dict[str, Term]
"""total = Σ weight · sum / count, where the loop puts the *global* count of the step in place of the local one."""


class Out(NamedTuple):
    hidden: Tensor
    """(B, T, D), after the final norm."""
    aux: dict[str, Term]
    """Losses that arise inside the model (router balance); {} for a dense one."""


@dataclass(frozen=True)
class Mask:
    """Who may attend to whom, as data; only `Attend` may make it dense.

    `documents` (B, T): positions with the same id see each other, -1 is padding on the right.
    `lengths` (B,): tokens already cached for each row; query t of row b stands at position lengths[b] + t.
    """

    causal: bool = True
    documents: Tensor | None = None
    lengths: Tensor | None = None


@dataclass(frozen=True)
class KV:
    """A cache slot of keys and values, (B, S, n_kv_heads, head_dim) each."""

    n_kv_heads: int
    head_dim: int


Slot = KV


class Cache(Protocol):
    """What a model has already read, owned by the caller."""

    lengths: Tensor

    def slot(self, layer: int) -> Any: ...
    def advance(self, new: Tensor) -> None: ...
    def select(self, rows: Tensor) -> Cache: ...


@runtime_checkable
class LanguageModel(Protocol):
    """An nn.Module with public `.layers` (nn.ModuleList), `.head` (nn.Linear) and a frozen `.config`."""

    config: Any
    layers: nn.ModuleList
    head: nn.Linear

    def embed(self, tokens: Tensor) -> Tensor:
        """(B, T) int64 -> (B, T, D), scale included."""
        ...

    def __call__(
        self,
        x: Tensor,
        *,
        documents: Tensor | None = None,
        positions: Tensor | None = None,
        cache: Cache | None = None,
    ) -> Out:
        """x: (B, T) ids or (B, T, D) embeddings. With a cache each row advances by its real tokens."""
        ...

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., D) -> (..., V); apart from forward so that nothing holds (B, T, V) whole."""
        ...

    def cache_spec(self) -> list[tuple[Slot, ...]]:
        """One tuple of slots per mixer, as data: cache, engine and memory plan all read it."""
        ...

    def new_cache(self, batch_size: int, max_seq_len: int) -> Cache: ...


class Objective(Protocol):
    """What is to be learnt. `counts` is known from the batch alone, before any forward pass."""

    def counts(self, batch: Batch) -> dict[str, int]: ...
    def __call__(self, model: Any, batch: Batch) -> Loss: ...


class Batches(Protocol):
    """`batches[n]` is this rank's slice of global batch n, and depends on n alone."""

    def __getitem__(self, n: int) -> Batch: ...


def total(loss: Loss, counts: dict[str, int]) -> Tensor:
    """The scalar to differentiate: Σ weight · sum / global count. A term without a declared count (router balance)
    is a mean per micro-batch and uses its own."""
    terms = [term.weight * term.sum / max(counts.get(name, int(term.count)), 1) for name, term in loss.items()]
    return torch.stack([t.float() for t in terms]).sum()


@dataclass(frozen=True)
class Key:
    """One entry of a family's KEYS: a tensor of the published layout and what it becomes here.

    `{i}` stands for a layer number. `transforms` are names of weights/keys.TRANSFORMS, applied in order on loading and
    inverted in reverse order on saving, so that the two directions cannot disagree.
    """

    theirs: str
    ours: str | tuple[str, ...]
    transforms: tuple[str, ...] = ()

    @property
    def targets(self) -> tuple[str, ...]:
        return (self.ours,) if isinstance(self.ours, str) else self.ours


@dataclass(frozen=True)
class ConfigMap:
    """How a family's config.json reads. A foreign key is mapped (`fields`), demanded (`only`: another value is refused,
    since it would compute something else), or kept as inert and written back."""

    model_type: str
    architecture: str
    fields: dict[str, str]
    """published name -> ours"""
    derived: dict[str, Callable[[dict[str, Any]], Any]] = field(default_factory=dict)
    """the published default of a key that a file may leave out, from the others"""
    only: dict[str, Any] = field(default_factory=dict)
    base_prefix: str = ""
    """what a model without head leaves out of its tensor names"""
