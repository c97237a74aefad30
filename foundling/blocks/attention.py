# SPDX-License-Identifier: Apache-2.0
"""Attention (Vaswani et al. 2017, section 3.2), with shared key/value heads (Ainslie et al. 2023, GQA)."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foundling.blocks.position import positions_of, rotate
from foundling.contracts.cache import KV, Cross, LayerCache, Slot
from foundling.contracts.model import Mask


def dense_mask(mask: Mask, n_queries: int, n_keys: int, device: torch.device) -> Tensor:
    """(B or 1, 1, T, S) bool, True = may attend. Padding is not kept from anything but the future: no softmax is over
    nothing, and nobody reads what it sees."""
    at = torch.arange(n_queries, device=device)[:, None]
    key = torch.arange(n_keys, device=device)[None, :]
    if mask.lengths is not None:
        at = at + mask.lengths[:, None, None]
    allowed = (key <= at) if mask.causal else torch.ones_like(key <= at)
    if mask.window is not None:
        allowed = allowed & (at - key < mask.window)
    if mask.chunk is not None:
        keys = mask.documents if mask.key_documents is None else mask.key_documents
        chunks = positions_of(key if keys is None else keys, keys) // mask.chunk  # (B or 1, S)
        own = chunks.gather(1, at.flatten(-2).expand(len(chunks), -1).clamp_max(n_keys - 1))
        allowed = allowed & (own[:, :, None] == chunks[:, None, :])
    if allowed.ndim == 2:
        allowed = allowed[None]
    if mask.documents is not None:
        keys = mask.documents if mask.key_documents is None else mask.key_documents
        same = mask.documents[:, :, None] == keys[:, None, :]
        allowed = allowed & (same | (mask.documents < 0)[:, :, None])
    return allowed[:, None]


class Attend(nn.Module):
    """softmax(scale · q kᵀ + bias) v under a Mask: the one place that paged kernels, maps and prefixes replace."""

    def __init__(self, scale: float | None = None, softcap: float | None = None) -> None:
        """`scale` is 1/√P unless given; `softcap` · tanh(scores / softcap) bounds them (Gemma 2, section 2)."""
        super().__init__()
        self.scale, self.softcap = scale, softcap

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Mask) -> Tensor:
        """q (B, H, T, P), k and v (B, K, S, P) -> (B, H, T, P)"""
        local = any(part is not None and part < k.shape[2] for part in (mask.window, mask.chunk))
        plain = mask.documents is None and mask.lengths is None and not local
        grouped, allowed = q.shape[1] != k.shape[1], None
        if mask.bias is not None or not plain:
            allowed = dense_mask(mask, q.shape[2], k.shape[2], q.device)
        if mask.bias is not None and allowed is not None:
            allowed = torch.where(allowed, mask.bias.to(q.dtype), -math.inf)
        if self.softcap is not None:
            allowed = dense_mask(mask, q.shape[2], k.shape[2], q.device) if allowed is None else allowed
            return self._capped(q, k, v, allowed, mask.bias)
        causal = mask.causal and allowed is None
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask=allowed, is_causal=causal, scale=self.scale, enable_gqa=grouped
        )

    def _capped(self, q: Tensor, k: Tensor, v: Tensor, allowed: Tensor, bias: Tensor | None) -> Tensor:
        assert self.softcap is not None and bias is None
        group = q.shape[1] // k.shape[1]
        if group > 1:
            k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
        scores = q @ k.transpose(-1, -2) * (q.shape[-1] ** -0.5 if self.scale is None else self.scale)
        scores = torch.tanh(scores / self.softcap) * self.softcap
        return torch.softmax(scores.masked_fill(~allowed, -math.inf).float(), dim=-1).to(v.dtype) @ v


class Attention(nn.Module):
    """Self-attention; `scale` and `softcap` as in Attend, `window` and `chunk` as in Mask. `qk_norm` makes a norm of a
    width, for each head's queries and keys before they are turned (Dehghani et al. 2023, section 2)."""

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        n_kv_heads: int,
        head_dim: int,
        *,
        bias: bool = False,
        scale: float | None = None,
        softcap: float | None = None,
        window: int | None = None,
        chunk: int | None = None,
        qk_norm: Callable[[int], nn.Module] | None = None,
    ) -> None:
        super().__init__()
        self.n_heads, self.n_kv_heads, self.head_dim = n_heads, n_kv_heads, head_dim
        self.window, self.chunk = window, chunk
        self.q = nn.Linear(d_model, n_heads * head_dim, bias=bias)
        self.k = nn.Linear(d_model, n_kv_heads * head_dim, bias=bias)
        self.v = nn.Linear(d_model, n_kv_heads * head_dim, bias=bias)
        self.o = nn.Linear(n_heads * head_dim, d_model, bias=bias)
        self.q_norm, self.k_norm = (qk_norm(head_dim), qk_norm(head_dim)) if qk_norm else (None, None)
        self.attend = Attend(scale, softcap)

    def slots(self) -> tuple[Slot, ...]:
        return (KV(self.n_kv_heads, self.head_dim),)

    def sequence_flops(self, seq_len: int) -> int:
        """Forward, per token, besides the projections: scores and values over half of the square, or what of it the
        window or the chunks leave."""
        seen = (seq_len if self.chunk is None else min(seq_len, self.chunk)) / 2
        seen = seen if self.window is None else min(seen, self.window)
        return int(4 * self.n_heads * self.head_dim * seen)

    def heads(self, x: Tensor) -> Tensor:
        """(B, T, heads · P) -> (B, heads, T, P)"""
        return x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)

    def qkv(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x (B, T, D) -> q (B, H, T, P), k and v (B, K, T, P), not yet turned"""
        q, k, v = self.heads(self.q(x)), self.heads(self.k(x)), self.heads(self.v(x))
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        return q, k, v

    def turn(self, q: Tensor, k: Tensor, rotation: Any) -> tuple[Tensor, Tensor]:
        """What positions do to queries and keys."""
        return rotate(q, rotation), rotate(k, rotation)

    def forward(self, x: Tensor, mask: Mask, rotation: Any = None, cache: LayerCache | None = None) -> Tensor:
        """x (B, T, D) -> (B, T, D); with a cache the keys are all that each row holds and x is what comes next."""
        q, k, v = self.qkv(x)
        if self.window is not None or self.chunk is not None:
            mask = replace(mask, window=self.window, chunk=self.chunk)
        if rotation is not None:
            q, k = self.turn(q, k, rotation)
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
