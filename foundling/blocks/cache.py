# SPDX-License-Identifier: Apache-2.0
"""What a model has already read, owned by the caller: keys and values of each layer, and each row's own length."""

from __future__ import annotations

import torch
from torch import Tensor

from foundling.contracts import KV, Slot
from foundling.errors import GenerationError


class KVCache:
    def __init__(
        self,
        spec: list[tuple[Slot, ...]],
        batch_size: int,
        max_seq_len: int,
        *,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.max_seq_len = max_seq_len
        self.lengths = torch.zeros(batch_size, dtype=torch.int64, device=device)
        self.layers: list[tuple[Tensor, Tensor]] = []
        for slots in spec:
            (slot,) = slots
            assert isinstance(slot, KV)
            shape = (batch_size, slot.n_kv_heads, max_seq_len, slot.head_dim)
            self.layers.append(
                (torch.zeros(shape, dtype=dtype, device=device), torch.zeros(shape, dtype=dtype, device=device))
            )
        self._real: Tensor | None = None

    def begin(self, real: Tensor) -> None:
        """real (B, T) bool: which of the coming tokens are not padding. Called once a forward, before the layers."""
        if int((self.lengths + real.sum(1)).max()) > self.max_seq_len:
            raise GenerationError(
                f"the cache holds {self.max_seq_len} tokens a row; make it longer or the prompt shorter"
            )
        self._real = real

    def slot(self, layer: int) -> LayerCache:
        return LayerCache(self, layer)

    def advance(self, new: Tensor) -> None:
        """new (B,): real tokens by which each row has grown."""
        self.lengths = self.lengths + new
        self._real = None

    def select(self, rows: Tensor) -> KVCache:
        """Rows gathered into a new cache: beams, or many answers to one prompt."""
        chosen = object.__new__(KVCache)
        chosen.max_seq_len, chosen._real = self.max_seq_len, None
        chosen.lengths = self.lengths[rows]
        chosen.layers = [(k[rows], v[rows]) for k, v in self.layers]
        return chosen


class LayerCache:
    """One layer's view of the cache."""

    def __init__(self, cache: KVCache, layer: int) -> None:
        self.cache, self.layer = cache, layer

    def extend(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Writes k and v (B, K, T, P) behind each row's own end; returns all keys and values up to the longest row."""
        cache = self.cache
        keys, values = cache.layers[self.layer]
        assert cache._real is not None
        rows, steps = cache._real.nonzero(as_tuple=True)
        places = cache.lengths[rows] + steps
        keys[rows, :, places] = k[rows, :, steps].to(keys.dtype)
        values[rows, :, places] = v[rows, :, steps].to(values.dtype)
        longest = min(int(cache.lengths.max()) + k.shape[2], cache.max_seq_len)
        return keys[:, :, :longest], values[:, :, :longest]
