# SPDX-License-Identifier: Apache-2.0
"""Attention (Vaswani et al. 2017, section 3.2), with shared key/value heads (Ainslie et al. 2023, GQA)."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foundling.blocks.position import Rotation, rotate
from foundling.contracts import KV, Cross, LayerCache, Mask, Slot


def dense_mask(mask: Mask, n_queries: int, n_keys: int, device: torch.device) -> Tensor:
    """(B or 1, 1, T, S) bool, True = may attend. Padding is not kept from anything but the future: no softmax is over
    nothing, and nobody reads what it sees."""
    at = torch.arange(n_queries, device=device)[:, None]
    key = torch.arange(n_keys, device=device)[None, :]
    if mask.lengths is not None:
        at = at + mask.lengths[:, None, None]
    allowed = (key <= at) if mask.causal else torch.ones_like(key <= at)
    if allowed.ndim == 2:
        allowed = allowed[None]
    if mask.documents is not None:
        keys = mask.documents if mask.key_documents is None else mask.key_documents
        same = mask.documents[:, :, None] == keys[:, None, :]
        allowed = allowed & (same | (mask.documents < 0)[:, :, None])
    return allowed[:, None]


class Attend(nn.Module):
    """softmax(scale · q kᵀ + bias) v under a Mask: the one place that paged kernels, maps and prefixes replace."""

    def __init__(self, scale: float | None = None) -> None:
        """`scale` is 1/√P unless given."""
        super().__init__()
        self.scale = scale

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Mask) -> Tensor:
        """q (B, H, T, P), k and v (B, K, S, P) -> (B, H, T, P)"""
        plain = mask.documents is None and mask.lengths is None
        grouped, allowed = q.shape[1] != k.shape[1], None
        if mask.bias is not None or not plain:
            allowed = dense_mask(mask, q.shape[2], k.shape[2], q.device)
        if mask.bias is not None and allowed is not None:
            allowed = torch.where(allowed, mask.bias.to(q.dtype), -math.inf)
        causal = mask.causal and allowed is None
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask=allowed, is_causal=causal, scale=self.scale, enable_gqa=grouped
        )


class Attention(nn.Module):
    """Self-attention; `scale` as in Attend."""

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        n_kv_heads: int,
        head_dim: int,
        *,
        bias: bool = False,
        scale: float | None = None,
    ) -> None:
        super().__init__()
        self.n_heads, self.n_kv_heads, self.head_dim = n_heads, n_kv_heads, head_dim
        self.q = nn.Linear(d_model, n_heads * head_dim, bias=bias)
        self.k = nn.Linear(d_model, n_kv_heads * head_dim, bias=bias)
        self.v = nn.Linear(d_model, n_kv_heads * head_dim, bias=bias)
        self.o = nn.Linear(n_heads * head_dim, d_model, bias=bias)
        self.attend = Attend(scale)

    def slots(self) -> tuple[Slot, ...]:
        return (KV(self.n_kv_heads, self.head_dim),)

    def sequence_flops(self, seq_len: int) -> int:
        """Forward, per token, besides the projections: scores and values over half of the square."""
        return 2 * self.n_heads * self.head_dim * seq_len

    def heads(self, x: Tensor) -> Tensor:
        """(B, T, heads · P) -> (B, heads, T, P)"""
        return x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)

    def forward(
        self, x: Tensor, mask: Mask, rotation: Rotation | None = None, cache: LayerCache | None = None
    ) -> Tensor:
        """x (B, T, D) -> (B, T, D); with a cache the keys are all that each row holds and x is what comes next."""
        q, k, v = self.heads(self.q(x)), self.heads(self.k(x)), self.heads(self.v(x))
        if rotation is not None:
            q, k = rotate(q, rotation), rotate(k, rotation)
        if cache is not None:
            k, v = cache.extend(k, v)
        return self.o(self.attend(q, k, v, mask).transpose(1, 2).flatten(2))


class CrossAttention(Attention):
    """Queries from x, keys and values from a memory: projected here, or found in the cache."""

    def slots(self) -> tuple[Slot, ...]:
        return (Cross(self.n_kv_heads, self.head_dim),)

    def sequence_flops(self, seq_len: int) -> int:
        """As above, over all of a memory of `seq_len`."""
        return 4 * self.n_heads * self.head_dim * seq_len

    def project(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """states (B, S, D) -> keys and values (B, K, S, P)"""
        states = states.view_as(
            states
        )  # its gradient is added up here first, as it is where FSDP hooks a layer's inputs
        return self.heads(self.k(states)), self.heads(self.v(states))

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, x: Tensor, states: Tensor | None, mask: Mask, cache: LayerCache | None = None
    ) -> Tensor:
        """x (B, T, D), states (B, S, D) or None where the cache has them -> (B, T, D)"""
        if states is None:
            assert cache is not None
            k, v = cache.cross()
        else:
            k, v = self.project(states)
        return self.o(self.attend(self.heads(self.q(x)), k, v, mask).transpose(1, 2).flatten(2))
