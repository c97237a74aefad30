# SPDX-License-Identifier: Apache-2.0
"""Residual layers, and a stack of them that reads tokens from left to right."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from foundling.blocks.cache import ModelCache
from foundling.blocks.moe import Routing, balance
from foundling.blocks.position import Rotation, positions_of
from foundling.contracts.cache import LayerCache, Slot
from foundling.contracts.model import Capabilities, EncoderOutput, Mask, ModelOutput
from foundling.contracts.objective import Term
from foundling.errors import GenerationError


class Block(nn.Module):
    """x + mixer(norm(x)), then x + ffn(norm(x)) (Xiong et al. 2020, pre-norm)."""

    def __init__(self, mixer_norm: nn.Module, mixer: nn.Module, ffn_norm: nn.Module, ffn: nn.Module) -> None:
        super().__init__()
        self.mixer_norm, self.mixer, self.ffn_norm, self.ffn = mixer_norm, mixer, ffn_norm, ffn

    def forward(
        self, x: Tensor, mask: Mask, rotation: Rotation | None = None, cache: LayerCache | None = None
    ) -> Tensor:
        x = x + self.mixer(self.mixer_norm(x), mask, rotation, cache)
        return x + self.ffn(self.ffn_norm(x))


class PostNormBlock(Block):
    """norm(x + mixer(x)), then norm(x + ffn(x)) (Vaswani et al. 2017, section 3.1)."""

    def forward(
        self, x: Tensor, mask: Mask, rotation: Rotation | None = None, cache: LayerCache | None = None
    ) -> Tensor:
        x = self.mixer_norm(x + self.mixer(x, mask, rotation, cache))
        return self.ffn_norm(x + self.ffn(x))


class SandwichBlock(Block):
    """x + norm(mixer(norm(x))), then so with ffn (Ding et al. 2021, CogView, section 2.4)."""

    def __init__(
        self, mixer_norm: nn.Module, mixer: nn.Module, mixer_post_norm: nn.Module,
        ffn_norm: nn.Module, ffn: nn.Module, ffn_post_norm: nn.Module,
    ) -> None:  # fmt: skip
        super().__init__(mixer_norm, mixer, ffn_norm, ffn)
        self.mixer_post_norm, self.ffn_post_norm = mixer_post_norm, ffn_post_norm

    def forward(
        self, x: Tensor, mask: Mask, rotation: Rotation | None = None, cache: LayerCache | None = None
    ) -> Tensor:
        x = x + self.mixer_post_norm(self.mixer(self.mixer_norm(x), mask, rotation, cache))
        return x + self.ffn_post_norm(self.ffn(self.ffn_norm(x)))


class MixerBlock(nn.Module):
    """x + mixer(norm(x)), where mixers alone make the stack."""

    def __init__(self, mixer_norm: nn.Module, mixer: nn.Module) -> None:
        super().__init__()
        self.mixer_norm, self.mixer = mixer_norm, mixer

    def forward(
        self, x: Tensor, mask: Mask, rotation: Rotation | None = None, cache: LayerCache | None = None
    ) -> Tensor:
        return x + self.mixer(self.mixer_norm(x), mask, rotation, cache)


class MoEBlock(Block):
    """A pre-norm block whose ffn is a mixture of experts; it also says what the router did."""

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, x: Tensor, mask: Mask, rotation: Rotation | None = None, cache: LayerCache | None = None
    ) -> tuple[Tensor, Routing]:
        x = x + self.mixer(self.mixer_norm(x), mask, rotation, cache)
        y, routing = self.ffn(self.ffn_norm(x), None if mask.documents is None else mask.documents >= 0)
        return x + y, routing


def opening(
    x: Tensor, documents: Tensor | None, positions: Tensor | None, cache: ModelCache | None
) -> tuple[Mask, Tensor]:
    """The causal mask of a forward pass over x (B, T, …), and each token's place in its document."""
    if cache is None:
        return Mask(documents=documents), positions_of(x, documents) if positions is None else positions
    documents, keys, counted = cache.begin(documents, x.shape[1])
    mask = Mask(documents=documents, key_documents=keys, lengths=cache.lengths)
    return mask, counted if positions is None else positions


class Decoder(nn.Module):
    """Token embedding, layers, final norm (nn.Identity behind post-norm layers, whose last is it) and head. A family
    builds the parts and says in `place` what positions do."""

    capabilities = Capabilities(generates=True)

    def __init__(self, config: Any, layers: list[nn.Module], norm: nn.Module) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.d_model)
        self.layers = nn.ModuleList(layers)
        self.norm = norm
        self.head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        if config.tie_embeddings:
            self.head.weight = self.embedding.weight

    def place(self, x: Tensor, positions: Tensor) -> tuple[Tensor, Rotation | None]:
        """x (B, T, D) and positions (B or 1, T) -> x with absolute positions added, rotations for attention."""
        return x, None

    def embed(self, tokens: Tensor) -> Tensor:
        return self.embedding(tokens)

    def forward(
        self,
        x: Tensor,
        *,
        documents: Tensor | None = None,
        positions: Tensor | None = None,
        cache: ModelCache | None = None,
    ) -> ModelOutput:
        mask, positions = opening(x, documents, positions, cache)
        x, rotation = self.place(x if x.is_floating_point() else self.embed(x), positions)
        x, aux = self.read(x, mask, rotation, cache)
        if cache is not None:
            cache.advance()
        return ModelOutput(self.norm(x), aux)

    def read(
        self, x: Tensor, mask: Mask, rotation: Rotation | None, cache: ModelCache | None
    ) -> tuple[Tensor, dict[str, Term]]:
        """Through the layers; a family whose layers say more than x overrides it."""
        for index, layer in enumerate(self.layers):
            x = layer(x, mask, self.turns(layer, rotation), None if cache is None else cache.slot(index))
        return x, {}

    def turns(self, layer: nn.Module, rotation: Any) -> Any:
        """What this layer is given of what `place` made for all."""
        return rotation

    def logits(self, hidden: Tensor) -> Tensor:
        if self.head is None:  # saved without it
            raise GenerationError(f"this {type(self).__name__} has no head: it reads, and predicts no tokens")
        return self.head(hidden)

    def cache_spec(self) -> list[tuple[Slot, ...]]:
        return [layer.mixer.slots() for layer in self.layers]  # pyright: ignore

    def new_cache(self, batch_size: int, max_seq_len: int, memory: EncoderOutput | None = None) -> ModelCache:
        if memory is not None:
            raise GenerationError(f"{type(self).__name__} reads no memory")
        weight = self.embedding.weight
        return ModelCache(self.cache_spec(), batch_size, max_seq_len, dtype=weight.dtype, device=weight.device)


class SparseDecoder(Decoder):
    """A decoder some of whose layers are MoEBlocks, balanced by `config.balance_weight`."""

    def read(
        self, x: Tensor, mask: Mask, rotation: Rotation | None, cache: ModelCache | None
    ) -> tuple[Tensor, dict[str, Term]]:
        routings = []
        for index, layer in enumerate(self.layers):
            out = layer(x, mask, self.turns(layer, rotation), None if cache is None else cache.slot(index))
            if isinstance(out, tuple):
                x, routing = out
                routings.append(routing)
            else:
                x = out
        return x, {"router_balance": Term(balance(routings), 1, self.config.balance_weight)} if routings else {}
