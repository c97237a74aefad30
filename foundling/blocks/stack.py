# SPDX-License-Identifier: Apache-2.0
"""A stack of pre-norm residual layers that reads tokens from left to right."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from foundling.blocks.cache import KVCache, LayerCache
from foundling.blocks.position import Rotation, positions_of
from foundling.contracts import KV, Mask, Out, Slot


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


class Decoder(nn.Module):
    """Token embedding, layers, final norm and head. A family builds the parts and says in `place` what positions do."""

    def __init__(self, config, layers: list[nn.Module], norm: nn.Module) -> None:
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
        raise NotImplementedError

    def embed(self, tokens: Tensor) -> Tensor:
        return self.embedding(tokens)

    def forward(
        self,
        x: Tensor,
        *,
        documents: Tensor | None = None,
        positions: Tensor | None = None,
        cache: KVCache | None = None,
    ) -> Out:
        real = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device) if documents is None else documents >= 0
        if cache is not None:
            cache.begin(real)
        if positions is None:
            positions = positions_of(x, documents, None if cache is None else cache.lengths)
        if not x.is_floating_point():
            x = self.embed(x)
        x, rotation = self.place(x, positions)
        mask = Mask(causal=True, documents=documents) if cache is None else Mask(causal=True, lengths=cache.lengths)
        for index, layer in enumerate(self.layers):
            x = layer(x, mask, rotation, None if cache is None else cache.slot(index))
        if cache is not None:
            cache.advance(real.sum(1))
        return Out(self.norm(x), {})

    def logits(self, hidden: Tensor) -> Tensor:
        return self.head(hidden)

    def cache_spec(self) -> list[tuple[Slot, ...]]:
        return [(KV(layer.mixer.n_kv_heads, layer.mixer.head_dim),) for layer in self.layers]  # pyright: ignore

    def new_cache(self, batch_size: int, max_seq_len: int) -> KVCache:
        weight = self.embedding.weight
        return KVCache(self.cache_spec(), batch_size, max_seq_len, dtype=weight.dtype, device=weight.device)
