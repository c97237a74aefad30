# SPDX-License-Identifier: Apache-2.0
"""A decoder: layers that read tokens from left to right, and where they have cross-attention, a memory."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from foundling.blocks.attention import MemoryReader, reaches_of
from foundling.blocks.cache import ModelCache
from foundling.blocks.context import Context, build_masks
from foundling.blocks.conv import segments_of
from foundling.blocks.layer import balance_terms, forward_layers
from foundling.blocks.mask import Mask, MaskRule, build_mask
from foundling.blocks.position import RoPE, check_positions, position_limit, positions_of
from foundling.contracts.cache import Cache, Conv, Slot, State
from foundling.contracts.model import Capabilities, EncoderOutput, HeadLayout, ModelOutput, Task
from foundling.contracts.objective import Term
from foundling.errors import GenerationError


class Decoder(nn.Module):
    """Token embedding, layers, final norm (nn.Identity after post-norm layers, which end with theirs) and head.

    A family builds the parts. What its positions do is one of: `rope`, rotations in every attention layer;
    `embed_positions`, vectors added to the embeddings; `attention_bias`, numbers added to the scores."""

    capabilities = Capabilities(generates=True, takes_head=True)
    causal = True

    def __init__(
        self,
        config: Any,
        layers: list[nn.Module],
        norm: nn.Module,
        *,
        rope: RoPE | None = None,
        dropout: float = 0.0,
        d_embed: int | None = None,
    ) -> None:
        """`dropout` is of the embeddings, in training; `d_embed` their width, where it is not that of the layers."""
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.d_model if d_embed is None else d_embed)
        self.rope = rope
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.ModuleList(layers)
        self.norm = norm
        self.head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        if config.tie_embeddings:
            self.head.weight = self.embedding.weight
        self.reaches = reaches_of(layers)
        self.is_recurrent = any(isinstance(slot, Conv | State) for slots in self.cache_spec() for slot in slots)
        self.reads_memory = any(isinstance(module, MemoryReader) for module in self.modules())

    def embed_tokens(self, tokens: Tensor) -> Tensor:
        """(B, T) -> (B, T, D)"""
        return self.embedding(tokens)

    def embed_positions(self, x: Tensor, positions: Tensor) -> Tensor:
        """x (B, T, D), embeddings, and positions (B or 1, T) in each document -> what the first layer reads."""
        return x

    @cached_property
    def max_positions(self) -> int | None:
        """How many positions its tables have; None where it adds none or computes them."""
        return position_limit(self)

    def build_ropes(self, positions: Tensor) -> dict[str, Any]:
        """positions (B or 1, T) -> kind of attention layer -> its rotation."""
        return {} if self.rope is None else dict.fromkeys(self.reaches, self.rope(positions))

    def attention_bias(self, queries: Tensor, keys: Tensor) -> Tensor | None:
        """queries (B or 1, T) and keys (B or 1, S), their places in the row -> (B or 1, H, T, S), added to the scores;
        None for nothing."""
        return None

    def forward(
        self,
        x: Tensor,
        *,
        documents: Tensor | None = None,
        positions: Tensor | None = None,
        cache: Cache | None = None,
        memory: EncoderOutput | None = None,
        memory_documents: Tensor | None = None,
    ) -> ModelOutput:
        """x (B, T) ids or (B, T, D) embeddings -> hidden (B, T, D). `memory_documents` (B, T): which document of the
        memory each query reads, its own one by default. GenerationError where a memory is missing or not read, and for
        a position beyond a table of positions."""
        x = x if x.is_floating_point() else self.embed_tokens(x)
        ctx, positions = self.build_context(x, documents, positions, cache, memory, memory_documents)
        x, aux = self.forward_layers(self.dropout(self.embed_positions(x, positions)), ctx)
        if cache is not None:
            cache.advance()
        if memory is not None:
            aux = {f"encoder_{name}": term for name, term in memory.aux.items()} | aux
        return ModelOutput(self.norm(x), aux)

    def build_context(
        self,
        x: Tensor,
        documents: Tensor | None = None,
        positions: Tensor | None = None,
        cache: Cache | None = None,
        memory: EncoderOutput | None = None,
        memory_documents: Tensor | None = None,
    ) -> tuple[Context, Tensor]:
        """What all layers read, and each token's position in its document (B or 1, T). x (B, T, D); begins the cache's
        forward pass."""
        steps = torch.arange(x.shape[1], device=x.device)[None]
        if cache is None:
            rule = MaskRule(self.causal, documents)
            queries = keys = steps if positions is None else positions
            bound = x.shape[1] if positions is None else None
            positions = positions_of(x, documents) if positions is None else positions
        else:
            documents, key_documents, counted = cache.begin(documents, x.shape[1])
            rule = MaskRule(self.causal, documents, key_documents=key_documents, lengths=cache.lengths)
            queries, keys = cache.lengths[:, None] + steps, torch.arange(cache.span, device=x.device)[None]
            bound = cache.span if positions is None else None
            positions = counted if positions is None else positions
            if self.rope is not None:
                self.rope.check_continuation(cache.lengths, positions, cache.span)
        check_positions(self.max_positions, positions, bound)
        segments = None
        if self.is_recurrent and documents is not None:
            segments = segments_of(documents, None if cache is None else cache.previous)
        bias = self.attention_bias(queries, keys)
        ctx = Context(
            masks=build_masks(self.reaches, rule, queries.shape[1], keys.shape[1], x, bias),
            ropes=self.build_ropes(positions),
            documents=documents,
            segments=segments,
            memory=None if memory is None else memory.states,
            memory_mask=self._memory_mask(x, documents, cache, memory, memory_documents),
            cache=cache,
        )
        return ctx, positions

    def _memory_mask(
        self,
        x: Tensor,
        documents: Tensor | None,
        cache: Cache | None,
        memory: EncoderOutput | None,
        memory_documents: Tensor | None,
    ) -> Mask | None:
        if not self.reads_memory:
            if memory is not None:
                raise GenerationError(f"{type(self).__name__} reads no memory")
            return None
        if memory is None and cache is None:
            raise GenerationError("an encoder-decoder reads a memory; pass memory=model.encode(…)")
        of_memory = memory.documents if memory is not None else cache.memory_documents if cache is not None else None
        if of_memory is None:
            return Mask(causal=False)
        reading = documents if memory_documents is None else memory_documents
        if reading is None:
            reading = torch.zeros(x.shape[:2], dtype=torch.int64, device=x.device)
        rule = MaskRule(causal=False, documents=reading, key_documents=of_memory)
        return build_mask(rule, x.shape[1], of_memory.shape[1], x)

    def forward_layers(self, x: Tensor, ctx: Context) -> tuple[Tensor, dict[str, Term]]:
        """x (B, T, D) -> (B, T, D), and the losses that arise in the layers"""
        x, routings = forward_layers(self.layers, x, ctx)
        return x, balance_terms(routings, self.config)

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., D) -> (..., V)"""
        if self.head is None:  # saved without it
            raise GenerationError(f"this {type(self).__name__} has no head: it reads, and predicts no tokens")
        return self.head(hidden)

    def head_layout(self, task: Task) -> HeadLayout:
        """The last token of a text has seen all of it: what transformers' classifiers on decoders read."""
        return HeadLayout("every") if task == "tag" else HeadLayout("last", bias=False)

    def cache_spec(self) -> list[tuple[Slot, ...]]:
        return [slots for layer in self.layers for slots in layer.slots()]  # pyright: ignore

    def new_cache(self, batch_size: int, max_seq_len: int, memory: EncoderOutput | None = None) -> ModelCache:
        """An empty cache of `batch_size` rows; with a memory, its keys and values are projected here, once."""
        if self.reads_memory != (memory is not None):
            reads = "a memory; pass memory=model.encode(…)" if self.reads_memory else "no memory"
            raise GenerationError(f"{type(self).__name__} reads {reads}")
        if memory is None:
            weight = self.embedding.weight
            return ModelCache(self.cache_spec(), batch_size, max_seq_len, dtype=weight.dtype, device=weight.device)
        cross = [m.project(memory.states) for m in self.layers.modules() if isinstance(m, MemoryReader)]
        return ModelCache(
            self.cache_spec(), batch_size, max_seq_len, dtype=memory.states.dtype, device=memory.states.device,
            cross=cross, memory_documents=memory.documents,
        )  # fmt: skip
