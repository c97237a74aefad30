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

    `documents` (B, T) of the queries: places with the same id see each other, -1 is padding, on the right.
    `key_documents` (B, S) of the keys, where they are not the queries themselves: a cache, a memory.
    `lengths` (B,): keys that stood in the cache before; query t of row b is key lengths[b] + t.
    `bias` (B or 1, H, T, S) is added to the scores. `window`: a query sees itself and the window − 1 before it.
    `chunk`: each document is cut into pieces of so many tokens from its begin on, and a query sees its own piece.
    """

    causal: bool = True
    documents: Tensor | None = None
    key_documents: Tensor | None = None
    lengths: Tensor | None = None
    bias: Tensor | None = None
    window: int | None = None
    chunk: int | None = None


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


class Memory(NamedTuple):
    """What an encoder made of its input, for others to read."""

    states: Tensor
    """(B, S, D), normalised"""
    documents: Tensor
    """(B, S) int64, -1 where there is nothing to read"""
    pooled: Tensor | None = None
    """(B, D), where the encoder has one vector for the whole"""

    def select(self, rows: Tensor) -> Memory:
        return Memory(self.states[rows], self.documents[rows], None if self.pooled is None else self.pooled[rows])


@dataclass(frozen=True)
class Condition:
    """What a denoiser is told besides the noisy sample. Without classes, or where `keep` (B,) bool is False, it is
    told nothing: the null condition of classifier-free guidance."""

    classes: Tensor | None = None
    """(B,) int64; the model embeds them"""
    keep: Tensor | None = None


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


@runtime_checkable
class LanguageModel(Protocol):
    """An nn.Module with public `.layers` (nn.ModuleList), `.head` (nn.Linear) and a frozen `.config`.

    An encoder-decoder also has `encode(x, *, documents) -> Memory`, and its forward takes `memory` and
    `memory_documents` (B, T), the document of the memory that each query reads (by default its own).
    """

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
        cache: Any = None,
    ) -> Out:
        """x: (B, T) ids or (B, T, D) embeddings. With a cache each row advances by its real tokens, and tokens without
        `documents` continue the row's last one."""
        ...

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., D) -> (..., V); apart from forward so that nothing holds (B, T, V) whole."""
        ...

    def cache_spec(self) -> list[tuple[Slot, ...]]:
        """One tuple of slots per mixer invocation, as data: cache, engine and memory plan all read it."""
        ...

    def new_cache(self, batch_size: int, max_seq_len: int, memory: Memory | None = None) -> Any: ...


@runtime_checkable
class Encoder(Protocol):
    """An nn.Module that reads both ways, with public `.layers`, a frozen `.config`, and `.head`, which is None where
    nothing predicts tokens. token_types (B, T): which of the texts that are read together."""

    config: Any
    layers: nn.ModuleList
    head: nn.Linear | None

    def embed(self, tokens: Tensor) -> Tensor:
        """(B, T) int64 -> (B, T, D), of tokens alone"""
        ...

    def encode(
        self,
        x: Tensor,
        *,
        documents: Tensor | None = None,
        positions: Tensor | None = None,
        token_types: Tensor | None = None,
    ) -> Memory:
        """x (B, T) ids or (B, T, D) embeddings -> its states, and of each row one vector where there is a pooler."""
        ...

    def __call__(
        self,
        x: Tensor,
        *,
        documents: Tensor | None = None,
        positions: Tensor | None = None,
        token_types: Tensor | None = None,
    ) -> Out:
        """What `logits` reads, (B, T, D)."""
        ...

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., D) -> (..., V)"""
        ...


@runtime_checkable
class Pair(Protocol):
    """Two encoders into one space. Rows of both have length 1; `scale` (1,) is the logarithm of what the similarities
    are multiplied by, learnt."""

    scale: nn.Parameter

    def embed_image(self, pixels: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, D)"""
        ...

    def embed_text(self, tokens: Tensor, *, documents: Tensor | None = None) -> Tensor:
        """(B, T) int64 -> (B, D)"""
        ...


class Denoiser(Protocol):
    """x (B, C, H, W) at noise level t (B,), as the schedule states it -> a prediction like x."""

    def __call__(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor: ...


def layers_of(model: nn.Module) -> list[nn.Module]:
    """The units of compiling and sharding: every element of an nn.ModuleList called `layers`, the outermost ones."""
    found: dict[str, nn.Module] = {}
    for path, module in model.named_modules():
        inside = any(path.startswith(f"{outer}.") for outer in found)
        if not inside and isinstance(module, nn.ModuleList) and path.rpartition(".")[2] == "layers":
            found |= {f"{path}.{name}": layer for name, layer in module.named_children()}
    return list(found.values())


class Objective(Protocol):
    """What is to be learnt. `counts` is known from the batch alone, before any forward pass."""

    def counts(self, batch: Batch) -> dict[str, int]: ...
    def __call__(self, model: Any, batch: Batch) -> Loss: ...


@runtime_checkable
class Contrast(Protocol):
    """An objective that is no sum over rows: it sees the representations of the whole global batch at once, which the
    loop gathers from micro-batches and ranks (gradient caching)."""

    def counts(self, batch: Batch) -> dict[str, int]: ...
    def represent(self, model: Any, batch: Batch) -> dict[str, Tensor]:
        """Named (B, …) tensors, rows first: all through which the model reaches the loss."""
        ...

    def loss(self, representations: dict[str, Tensor]) -> Loss: ...


class Batches(Protocol):
    """`batches[n]` is this rank's slice of global batch n, and depends on n alone."""

    def __getitem__(self, n: int) -> Batch: ...


def total(loss: Loss, counts: dict[str, int], micro_batches: int = 1) -> Tensor:
    """The scalar to differentiate: Σ weight · sum / global count. A term without a declared count (router balance)
    is a mean over the step's `micro_batches`, of all ranks, each by its own count."""
    terms = [
        term.weight * term.sum / (max(counts[name], 1) if name in counts else max(int(term.count), 1) * micro_batches)
        for name, term in loss.items()
    ]
    return torch.stack([t.float() for t in terms]).sum()


@dataclass(frozen=True)
class Key:
    """One entry of a family's KEYS: a tensor of the published layout and what it becomes here.

    `{i}`, `{j}` stand for numbers that both names have; `{e}`, in `theirs` alone, for each index of our first axis.
    `transforms` are names of weights/keys.TRANSFORMS, applied in order on loading and inverted in reverse order on
    saving, so that the two directions cannot disagree.
    """

    theirs: str
    ours: str | tuple[str, ...]
    transforms: tuple[str, ...] = ()
    given: str = ""
    """a tensor of ours beside which alone this entry holds"""
    unless: str = ""
    """a tensor of ours beside which it does not"""
    heads: str = "n_heads"
    """the field of the configuration that says how many heads it holds, for transforms that ask"""

    @property
    def targets(self) -> tuple[str, ...]:
        return (self.ours,) if isinstance(self.ours, str) else self.ours


@dataclass(frozen=True)
class ConfigMap:
    """How a family's config.json reads. A foreign key is mapped (`fields`), demanded (`only`: another value is refused,
    since it would compute something else), or kept as inert and written back. `a.b` is key b of the mapping a."""

    model_type: str
    architecture: str
    """the class of transformers; "" where a config.json names none: what is not of transformers"""
    fields: dict[str, str]
    """published name -> ours"""
    derived: dict[str, Callable[[dict[str, Any]], Any]] = field(default_factory=dict)
    """the published default of a key that a file may leave out, from the others"""
    only: dict[str, Any] = field(default_factory=dict)
    base_prefix: str = ""
    """what a model without head leaves out of its tensor names"""
    ignored: tuple[str, ...] = ()
    """endings of tensor names that hold nothing learnt"""
    zero: tuple[str, ...] = ()
    """endings of tensor names that are left out while they are zero; others are refused"""
    convert: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = field(default_factory=dict)
    """published name -> (to ours, to theirs), where the values differ too"""
    implied: dict[str, Callable[[dict[str, Any]], Any]] = field(default_factory=dict)
    """published names whose value follows from our fields: another one is refused"""
    architectures: dict[str, dict[str, Any]] = field(default_factory=dict)
    """name -> what our fields must be; the first that fits is written in place of `architecture`"""
    parts: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """our field -> published tensors of which a directory may have one: a bool says whether it has, a number is how
    many rows that one has. What stands on a model differs between directories of one model_type."""
    filled: dict[str, Callable[[dict[str, Any]], Any]] = field(default_factory=dict)
    """published names that are written from our fields (not where that gives None), unless kept as inert"""
    counted: tuple[str, ...] | None = None
    """our fields of which each one has tensors of its own; by default those that count layers, blocks and experts"""
    renamed: tuple[tuple[str, str], ...] = ()
    """(ending of tensor names in older directories, what it is today)"""
    type_key: str = "model_type"
    """the key that holds `model_type`"""
    weights: str = "model.safetensors"
    """the file that holds the tensors"""
