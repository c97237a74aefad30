# SPDX-License-Identifier: Apache-2.0
"""What a model gives and what it is called with.

Axis letters: B batch, T query, S key, D d_model, V vocab, H query heads, K key/value heads, P head_dim.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

from torch import Tensor, nn

from foundling.contracts.cache import Slot
from foundling.contracts.objective import Term


class ModelOutput(NamedTuple):
    hidden: Tensor
    """(B, T, D), after the final norm."""
    aux: dict[str, Term]
    """Losses that arise inside the model (router balance); {} for a dense one."""


class Capabilities(NamedTuple):
    """What a family can do, declared on its class as `capabilities`; callers read it and never guess by attributes."""

    generates: bool = False
    """predicts the next token from a cache: has `new_cache` and `logits`"""
    reads_source: bool = False
    """encodes a source first: has `encode(…) -> EncoderOutput`, which its forward takes as `memory`"""
    embeds: bool = False
    """has `encode` or `embed` that gives one vector for a whole input"""
    denoises: bool = False
    """forward(x, t, condition) predicts noise or sample"""
    modalities: tuple[str, ...] = ("text",)
    """what it reads: text, image, audio"""


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


class EncoderOutput(NamedTuple):
    """What an encoder made of its input, for others to read."""

    states: Tensor
    """(B, S, D), normalised"""
    documents: Tensor
    """(B, S) int64, -1 where there is nothing to read"""
    pooled: Tensor | None = None
    """(B, D), where the encoder has one vector for the whole"""

    def select(self, rows: Tensor) -> EncoderOutput:
        return EncoderOutput(
            self.states[rows], self.documents[rows], None if self.pooled is None else self.pooled[rows]
        )


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
    ) -> ModelOutput:
        """x: (B, T) ids or (B, T, D) embeddings. With a cache each row advances by its real tokens, and tokens without
        `documents` continue the row's last one."""
        ...

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., D) -> (..., V); apart from forward so that nothing holds (B, T, V) whole."""
        ...

    def cache_spec(self) -> list[tuple[Slot, ...]]:
        """One tuple of slots per mixer invocation, as data: cache, engine and memory plan all read it."""
        ...

    def new_cache(self, batch_size: int, max_seq_len: int, memory: EncoderOutput | None = None) -> Any: ...


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
    ) -> EncoderOutput:
        """x (B, T) ids or (B, T, D) embeddings -> its states, and of each row one vector where there is a pooler."""
        ...

    def __call__(
        self,
        x: Tensor,
        *,
        documents: Tensor | None = None,
        positions: Tensor | None = None,
        token_types: Tensor | None = None,
    ) -> ModelOutput:
        """What `logits` reads, (B, T, D)."""
        ...

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., D) -> (..., V)"""
        ...


@runtime_checkable
class DualEncoder(Protocol):
    """Two encoders into one space. Rows of both have length 1; `scale` (1,) is the logarithm of what the similarities
    are multiplied by, learnt."""

    scale: nn.Parameter

    def embed_image(self, pixels: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, D)"""
        ...

    def embed_text(self, tokens: Tensor, *, documents: Tensor | None = None) -> Tensor:
        """(B, T) int64 -> (B, D)"""
        ...


def layers_of(model: nn.Module) -> list[nn.Module]:
    """The units of compiling and sharding: every element of an nn.ModuleList called `layers`, the outermost ones."""
    found: dict[str, nn.Module] = {}
    for path, module in model.named_modules():
        inside = any(path.startswith(f"{outer}.") for outer in found)
        if not inside and isinstance(module, nn.ModuleList) and path.rpartition(".")[2] == "layers":
            found |= {f"{path}.{name}": layer for name, layer in module.named_children()}
    return list(found.values())
