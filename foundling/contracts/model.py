# SPDX-License-Identifier: Apache-2.0
"""What a model is called with and what it gives.

Axis letters: B batch, T query, S key, D d_model, V vocab, H query heads, K key/value heads, P head_dim.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

from torch import Tensor, nn

from foundling.contracts.cache import Cache, RowCache, Slot
from foundling.contracts.data import Batch
from foundling.contracts.objective import Term


class ModelOutput(NamedTuple):
    hidden: Tensor
    """(B, T, D), after the final norm"""
    aux: dict[str, Term]
    """losses that arise inside the model (router balance); {} for a dense one"""


Task = Literal["classify", "tag", "regress"]
"""what a head predicts: a class of a text, a class of each token, or values of a text"""
Pool = Literal["model", "first", "last", "mean", "concat", "every"]
"""what a head reads. model: what the model itself makes for it (a pooled vector, transformed states); first, last: the
state of a row's first or last token; mean: the mean of its states; concat: the last one, the largest numbers and the
mean side by side (Howard & Ruder 2018, ULMFiT, section 3.3); every: all of them"""


class HeadLayout(NamedTuple):
    """How a head is built: states, a dense layer where there is one, its activation and norm, the projection."""

    pool: Pool
    activation: Literal["", "tanh", "relu", "gelu"] = ""
    """of the dense layer; "" for none"""
    dense_bias: bool = True
    norm_eps: float = 0.0
    """of a LayerNorm without bias after the dense layer; 0 for none"""
    bias: bool = True
    """of the projection"""
    dropout: float = 0.0
    """of what the projection reads"""
    n_mixed: int = 0
    """how many states it mixes first, by weights of its own: γ Σ softmax(s)_j h_j (Peters et al. 2018, equation 1)"""


class Capabilities(NamedTuple):
    """What a family can do, declared on its class as `capabilities`; callers read it and never guess by attributes. A
    model that was built without a part declares on itself what it lacks."""

    generates: bool = False
    """predicts the next token from a cache: has `new_cache` and `logits`"""
    reads_source: bool = False
    """encodes a source first: has `encode(…) -> EncoderOutput`, which its forward takes as `memory`"""
    embeds: bool = False
    """is an Embedder: `embed(name, batch)` gives one vector for a whole input"""
    fills: bool = False
    """is bidirectional, and predicts the tokens behind masks: `logits(forward(x).hidden)`"""
    denoises: bool = False
    """forward(x, t, condition) predicts noise or sample"""
    modalities: tuple[str, ...] = ("text",)
    """what it reads: text, image, audio"""
    takes_head: bool = False
    """a head for a Task can stand on it: has `head_layout(task) -> HeadLayout`"""
    mixes_layers: bool = False
    """its heads learn a mix of its layers: has `layer_states(x, documents)`, (B, T, D) of the words and of each"""
    spells: bool = False
    """makes the vectors of tokens from their bytes: has `spell(texts)`"""
    task: Task | Literal[""] = ""
    """what its head `score` predicts, read by blocks.heads.scores; "" without one"""


class EncoderOutput(NamedTuple):
    """What an encoder made of its input."""

    states: Tensor
    """(B, S, D), normalised"""
    documents: Tensor | None = None
    """(B, S) int64, −1 where there is nothing to read; None where every row is one document, all of which is read,
    whatever the documents of the queries"""
    pooled: Tensor | None = None
    """(B, D), where the encoder has one vector for the whole input"""
    aux: dict[str, Term] = {}
    """losses that arise inside the encoder; a decoder that reads the output passes them on as `encoder_<name>`"""

    def select(self, rows: Tensor) -> EncoderOutput:
        """rows (N,) int64 -> the same of these rows"""
        documents, pooled = (None if part is None else part[rows] for part in (self.documents, self.pooled))
        return EncoderOutput(self.states[rows], documents, pooled, self.aux)


@runtime_checkable
class LanguageModel(Protocol):
    """An nn.Module with public `.layers` (nn.ModuleList), `.head` (nn.Linear) and a frozen `.config`. Every layer is
    called as `layer(x, ctx)` with a blocks.context.Context.

    Where `capabilities.reads_source`, it also has `encode(x, *, documents) -> EncoderOutput`, and its forward takes
    that as `memory`."""

    capabilities: Capabilities
    causal: bool
    """whether a token sees only those before it; the plan counts attention by it"""
    config: Any
    layers: nn.ModuleList
    head: nn.Linear

    def embed_tokens(self, tokens: Tensor) -> Tensor:
        """(B, T) int64 -> (B, T, D), scale included."""
        ...

    def __call__(
        self,
        x: Tensor,
        *,
        documents: Tensor | None = None,
        positions: Tensor | None = None,
        cache: Cache | None = None,
        memory: EncoderOutput | None = None,
        memory_documents: Tensor | None = None,
    ) -> ModelOutput:
        """x: (B, T) ids or (B, T, D) embeddings. `documents` (B, T): equal ids may interact, −1 is padding on the
        right. With a cache each row advances by its real tokens, and tokens without `documents` continue the row's last
        one. `memory_documents` (B, T): which document of the memory each query reads, its own one by default."""
        ...

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., D) -> (..., V); apart from forward so that nothing holds (B, T, V) whole."""
        ...

    def cache_spec(self) -> list[tuple[Slot, ...]]:
        """One tuple of slots per mixer invocation, as data: cache, engine and memory plan all read it."""
        ...

    def new_cache(self, batch_size: int, max_seq_len: int, memory: EncoderOutput | None = None) -> RowCache: ...


@runtime_checkable
class Encoder(Protocol):
    """A bidirectional nn.Module, also an Embedder of texts, with public `.layers`, a frozen `.config`, and `.head`,
    which is None where nothing predicts tokens. token_types (B, T): which of the texts that are read together."""

    capabilities: Capabilities
    causal: bool
    """whether a token sees only those before it; the plan counts attention by it"""
    config: Any
    layers: nn.ModuleList
    head: nn.Linear | None

    def embed_tokens(self, tokens: Tensor) -> Tensor:
        """(B, T) int64 -> (B, T, D), of tokens alone"""
        ...

    def embed(self, name: str, batch: Batch) -> Tensor:
        """As of Embedder; the only name is "text"."""
        ...

    def encode(
        self,
        x: Tensor,
        *,
        documents: Tensor | None = None,
        positions: Tensor | None = None,
        token_types: Tensor | None = None,
    ) -> EncoderOutput:
        """x (B, T) ids or (B, T, D) embeddings -> its states, and one vector per row where there is a pooler."""
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
class Embedder(Protocol):
    """Gives one vector for a whole input, in one space for all of `capabilities.modalities`: the towers of CLIP, or an
    encoder's mean over its tokens."""

    capabilities: Capabilities

    def embed(self, name: str, batch: Batch) -> Tensor:
        """The vectors (B, D) of length 1 of what the batch holds of this modality: `tokens` and, where rows have
        padding, `documents` (B, T) for "text"; `pixels` (B, C, H, W) for "image". ConfigError for a modality that the
        model does not read."""
        ...


@runtime_checkable
class DualEncoder(Embedder, Protocol):
    """Two towers into one space. `scale` (1,) is the logarithm of the learned factor on similarities."""

    scale: nn.Parameter


def named_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Name -> layer: every element of an nn.ModuleList called `layers`, the outermost ones."""
    layers: dict[str, nn.Module] = {}
    for path, module in model.named_modules():
        inside = any(path.startswith(f"{outer}.") for outer in layers)
        if not inside and isinstance(module, nn.ModuleList) and path.rpartition(".")[2] == "layers":
            layers |= {f"{path}.{name}": layer for name, layer in module.named_children()}
    return layers


def layers_of(model: nn.Module) -> list[nn.Module]:
    """The units of compiling and sharding: the layers of `named_layers`."""
    return list(named_layers(model).values())
