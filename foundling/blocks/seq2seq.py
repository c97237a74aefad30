# SPDX-License-Identifier: Apache-2.0
"""An encoder, and a decoder whose layers read what it made (Vaswani et al. 2017, section 3.1)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from foundling.blocks.cache import ModelCache
from foundling.blocks.position import positions_of
from foundling.blocks.stack import Block, Decoder, opening
from foundling.contracts.cache import LayerCache, Slot
from foundling.contracts.model import Capabilities, EncoderOutput, Mask, ModelOutput
from foundling.errors import GenerationError


class SourceEncoder(nn.Module):
    """Layers that see both ways, and a final norm (nn.Identity behind post-norm layers). A family says in `place` or
    `relate` what positions do."""

    def __init__(self, layers: list[nn.Module], norm: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.norm = norm

    def place(self, x: Tensor, positions: Tensor) -> Tensor:
        """x (B, S, D) and positions (B or 1, S) in each document -> x with absolute positions added"""
        return x

    def relate(self, queries: Tensor, keys: Tensor) -> Tensor | None:
        """As EncoderDecoder.relate"""
        return None

    def forward(self, x: Tensor, documents: Tensor) -> Tensor:
        """x (B, S, D), documents (B, S) -> (B, S, D)"""
        at = torch.arange(x.shape[1], device=x.device)[None]
        x = self.place(x, positions_of(x, documents))
        mask = Mask(causal=False, documents=documents, bias=self.relate(at, at))
        for layer in self.layers:
            x = layer(x, mask)
        return self.norm(x)


class CrossAttentionBlock(Block):
    """A pre-norm block that, between mixer and ffn, reads a memory."""

    def __init__(
        self, mixer_norm: nn.Module, mixer: nn.Module, cross_norm: nn.Module, cross: nn.Module,
        ffn_norm: nn.Module, ffn: nn.Module,
    ) -> None:  # fmt: skip
        super().__init__(mixer_norm, mixer, ffn_norm, ffn)
        self.cross_norm, self.cross = cross_norm, cross

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, x: Tensor, mask: Mask, states: Tensor | None, reads: Mask, cache: LayerCache | None
    ) -> Tensor:
        """x (B, T, D); states (B, S, D) of the memory, None where the cache has its keys; `reads` says who reads it"""
        x = x + self.mixer(self.mixer_norm(x), mask, None, cache)
        x = x + self.cross(self.cross_norm(x), states, reads, cache)
        return x + self.ffn(self.ffn_norm(x))


class PostNormCrossAttentionBlock(CrossAttentionBlock):
    """The same with each norm behind its sum."""

    def forward(
        self, x: Tensor, mask: Mask, states: Tensor | None, reads: Mask, cache: LayerCache | None
    ) -> Tensor:  # fmt: skip
        x = self.mixer_norm(x + self.mixer(x, mask, None, cache))
        x = self.cross_norm(x + self.cross(x, states, reads, cache))
        return self.ffn_norm(x + self.ffn(x))


class EncoderDecoder(Decoder):
    """A decoder of cross-attention blocks, and its encoder; both embed by one table."""

    capabilities = Capabilities(generates=True, reads_source=True)

    def __init__(self, config: Any, encoder: SourceEncoder, layers: list[nn.Module], norm: nn.Module) -> None:
        super().__init__(config, layers, norm)
        self.encoder = encoder

    def relate(self, queries: Tensor, keys: Tensor) -> Tensor | None:
        """What positions add to the scores: places in the row of queries (B or 1, T) and keys (B or 1, S) ->
        (B or 1, H, T, S), None for nothing"""
        return None

    def encode(self, x: Tensor, *, documents: Tensor | None = None) -> EncoderOutput:
        """x (B, S) ids or (B, S, D) embeddings -> what the decoder reads"""
        if documents is None:
            documents = torch.zeros(x.shape[:2], dtype=torch.int64, device=x.device)
        return EncoderOutput(self.encoder(x if x.is_floating_point() else self.embed(x), documents), documents)

    def forward(
        self,
        x: Tensor,
        *,
        documents: Tensor | None = None,
        positions: Tensor | None = None,
        cache: ModelCache | None = None,
        memory: EncoderOutput | None = None,
        memory_documents: Tensor | None = None,
    ) -> ModelOutput:
        if memory is None and cache is None:
            raise GenerationError("an encoder-decoder reads a memory; pass memory=model.encode(…)")
        mask, places = opening(x, documents, positions, cache)
        steps = torch.arange(x.shape[1], device=x.device)[None]
        queries = keys = steps if positions is None else positions
        if cache is not None:
            queries, keys = cache.lengths[:, None] + steps, torch.arange(cache.span, device=x.device)[None]
        mask = replace(mask, bias=self.relate(queries, keys))
        reading = mask.documents if memory_documents is None else memory_documents
        if reading is None:
            reading = torch.zeros(x.shape[:2], dtype=torch.int64, device=x.device)
        there = memory.documents if memory is not None else cache.memory_documents  # pyright: ignore
        reads = Mask(causal=False, documents=reading, key_documents=there)
        x, _ = self.place(x if x.is_floating_point() else self.embed(x), places)
        for index, layer in enumerate(self.layers):
            states = None if memory is None else memory.states
            x = layer(x, mask, states, reads, None if cache is None else cache.slot(index))
        if cache is not None:
            cache.advance()
        return ModelOutput(self.norm(x), {})

    def cache_spec(self) -> list[tuple[Slot, ...]]:
        return [layer.mixer.slots() + layer.cross.slots() for layer in self.layers]  # pyright: ignore

    def new_cache(self, batch_size: int, max_seq_len: int, memory: EncoderOutput | None = None) -> ModelCache:
        if memory is None:
            raise GenerationError("an encoder-decoder reads a memory; pass memory=model.encode(…)")
        cross = [layer.cross.project(memory.states) for layer in self.layers]  # pyright: ignore
        dtype, device = memory.states.dtype, memory.states.device
        return ModelCache(
            self.cache_spec(), batch_size, max_seq_len,
            dtype=dtype, device=device, cross=cross, memory_documents=memory.documents,
        )  # fmt: skip
