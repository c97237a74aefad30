# SPDX-License-Identifier: Apache-2.0
"""Attention (Vaswani et al. 2017, section 3.2), with shared key/value heads (Ainslie et al. 2023, GQA)."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foundling.blocks.context import GLOBAL, LOCAL, Context
from foundling.blocks.flash import applies, short_attention
from foundling.blocks.mask import Mask, Reach, compute_dtype
from foundling.blocks.position import rotate
from foundling.contracts.cache import KV, Cross, Slot


class Attend(nn.Module):
    """softmax(scale · q kᵀ + bias) v under a mask. It alone chooses the backend: SDPA without a mask where nothing but
    causality is asked, with a dense mask elsewhere, and plain products where scores are capped."""

    def __init__(self, scale: float | None = None, softcap: float | None = None, dropout: float = 0.0) -> None:
        """`scale` is 1/√P by default; `softcap` · tanh(scores / softcap) bounds the scores (Gemma 2, section 2);
        `dropout` is the probability of dropping an attention weight in training."""
        super().__init__()
        self.scale, self.softcap, self.dropout = scale, softcap, dropout

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Mask) -> Tensor:
        """q (B, H, T, P), k and v (B, K, S, P) -> (B, H, T, P)"""
        if self.softcap is not None:
            return self._capped(q, k, v, mask)
        dense = mask.dense
        if dense is not None and dense.dtype != torch.bool:
            dense = dense.to(q.dtype)
        dropout = self.dropout if self.training else 0.0
        if applies(q, k, v, dense, mask.causal, dropout):
            return short_attention(q, k, v, dense, mask.causal, self.scale)
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask=dense, is_causal=mask.causal and dense is None, scale=self.scale,
            enable_gqa=q.shape[1] != k.shape[1], dropout_p=dropout,
        )  # fmt: skip

    def _capped(self, q: Tensor, k: Tensor, v: Tensor, mask: Mask) -> Tensor:
        assert self.softcap is not None and mask.dense is not None and mask.dense.dtype == torch.bool
        group = q.shape[1] // k.shape[1]
        if group > 1:
            k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
        scores = q @ k.transpose(-1, -2) * (q.shape[-1] ** -0.5 if self.scale is None else self.scale)
        scores = torch.tanh(scores / self.softcap) * self.softcap
        weights = torch.softmax(scores.masked_fill(~mask.dense, -math.inf).float(), dim=-1).to(v.dtype)
        return F.dropout(weights, self.dropout, self.training) @ v


class Attention(nn.Module):
    """Self-attention; `scale`, `softcap` and `dropout` as in Attend, `window` and `chunk` as in MaskRule. `qk_norm`
    makes a norm of a width, applied to each head's queries and keys before the rotation (Dehghani et al. 2023, section
    2)."""

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
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.n_heads, self.n_kv_heads, self.head_dim = n_heads, n_kv_heads, head_dim
        self.window, self.chunk = window, chunk
        self.kind = GLOBAL if window is None and chunk is None else LOCAL
        self.q = nn.Linear(d_model, n_heads * head_dim, bias=bias)
        self.k = nn.Linear(d_model, n_kv_heads * head_dim, bias=bias)
        self.v = nn.Linear(d_model, n_kv_heads * head_dim, bias=bias)
        self.o = nn.Linear(n_heads * head_dim, d_model, bias=bias)
        self.q_norm, self.k_norm = (qk_norm(head_dim), qk_norm(head_dim)) if qk_norm else (None, None)
        self.attend = Attend(scale, softcap, dropout)

    def slots(self) -> tuple[Slot, ...]:
        return (KV(self.n_kv_heads, self.head_dim),)

    @property
    def reach(self) -> Reach:
        """What the mask of this kind of layer is built from."""
        return Reach(self.window, self.chunk, self.attend.softcap is not None)

    def sequence_flops(self, seq_len: int, *, causal: bool = True) -> int:
        """Forward, per token, besides the projections: scores and values over the keys that it sees, on average half of
        the sequence or chunk where causal and all of it elsewhere, and none beyond the window."""
        seen = seq_len if self.chunk is None else min(seq_len, self.chunk)
        seen = seen / 2 if causal else seen
        if self.window is not None:
            seen = min(seen, self.window if causal else 2 * self.window - 1)
        return int(4 * self.n_heads * self.head_dim * seen)

    def heads(self, x: Tensor) -> Tensor:
        """(B, T, heads · P) -> (B, heads, T, P)"""
        return x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)

    def qkv(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x (B, T, D) -> q (B, H, T, P), k and v (B, K, T, P), before the rotation"""
        x = x.to(compute_dtype(x))  # once, not at each product
        q, k, v = self.heads(self.q(x)), self.heads(self.k(x)), self.heads(self.v(x))
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        return q, k, v

    def apply_rope(self, q: Tensor, k: Tensor, rope: Any) -> tuple[Tensor, Tensor]:
        """Puts positions into queries and keys; `rope` is the context's, of this kind of layer."""
        return rotate(q, rope), rotate(k, rope)

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        """x (B, T, D) -> (B, T, D). With a cache, x continues each row, and the keys are all that the row holds."""
        q, k, v = self.qkv(x)
        rope, cache = ctx.ropes.get(self.kind), ctx.layer_cache
        if rope is not None:
            q, k = self.apply_rope(q, k, rope)
        if cache is not None:
            k, v = cache.extend(k, v)
        return self.o(self.attend(q, k, v, ctx.masks[self.kind]).transpose(1, 2).flatten(2))


class MemoryReader(nn.Module):
    """A part of a layer that reads a memory by two projections of it, which are made once for all queries."""

    def project(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        """memory (B, S, D) -> (B, K, S, P) twice: keys and values, where it attends"""
        raise NotImplementedError

    def read(self, ctx: Context) -> tuple[Tensor, Tensor]:
        """The two of the context's memory: projected here, or from the cache."""
        if ctx.memory is not None:
            return self.project(ctx.memory)
        cache = ctx.layer_cache
        assert cache is not None, "neither the context nor a cache holds the memory"
        return cache.cross()


class CrossAttention(MemoryReader, Attention):
    """Queries from x, keys and values from a memory."""

    def slots(self) -> tuple[Slot, ...]:
        return (Cross(self.n_kv_heads, self.head_dim),)

    def sequence_flops(self, seq_len: int, *, causal: bool = True) -> int:
        """Forward, per token, besides the projections: over all of a memory of `seq_len`, in any stack."""
        return 4 * self.n_heads * self.head_dim * seq_len

    def project(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        """memory (B, S, D) -> keys and values (B, K, S, P)"""
        memory = memory.view_as(memory)  # its gradients are added up per layer first, as they are under FSDP's hook
        return self.heads(self.k(memory)), self.heads(self.v(memory))

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        """x (B, T, D) -> (B, T, D)"""
        k, v = self.read(ctx)
        assert ctx.memory_mask is not None
        return self.o(self.attend(self.heads(self.q(x)), k, v, ctx.memory_mask).transpose(1, 2).flatten(2))


def reaches_of(layers: Iterable[nn.Module]) -> dict[str, Reach]:
    """kind -> reach, of the self-attention in these layers."""
    reaches: dict[str, Reach] = {}
    for module in (module for layer in layers for module in layer.modules()):
        if isinstance(module, Attention) and not isinstance(module, CrossAttention):
            reach = reaches.setdefault(module.kind, module.reach)
            assert reach == module.reach, f"two kinds called '{module.kind}'"
    return reaches
