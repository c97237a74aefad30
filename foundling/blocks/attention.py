# SPDX-License-Identifier: Apache-2.0
"""Attention (Vaswani et al. 2017, section 3.2), with shared key/value heads (Ainslie et al. 2023, GQA)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foundling.blocks.cache import LayerCache
from foundling.blocks.position import Rotation, rotate
from foundling.contracts import Mask


def dense_mask(mask: Mask, n_queries: int, n_keys: int, device: torch.device) -> Tensor:
    """(B or 1, 1, T, S) bool, True = may attend. Padding attends to itself, so that no softmax is over nothing."""
    at = torch.arange(n_queries, device=device)[:, None]
    key = torch.arange(n_keys, device=device)[None, :]
    if mask.lengths is not None:
        at = at + mask.lengths[:, None, None]
    allowed = (key <= at) if mask.causal else torch.ones_like(key <= at)
    if allowed.ndim == 2:
        allowed = allowed[None]
    if mask.documents is not None and mask.lengths is None:
        allowed = allowed & (mask.documents[:, :, None] == mask.documents[:, None, :])
    return allowed[:, None]


class Attend(nn.Module):
    """softmax(q kᵀ / √P) v under a Mask: the one place that paged kernels, maps and prefixes replace or hook."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Mask) -> Tensor:
        """q (B, H, T, P), k and v (B, K, S, P) -> (B, H, T, P)"""
        grouped = q.shape[1] != k.shape[1]
        if mask.documents is None and mask.lengths is None:
            return F.scaled_dot_product_attention(q, k, v, is_causal=mask.causal, enable_gqa=grouped)
        allowed = dense_mask(mask, q.shape[2], k.shape[2], q.device)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=allowed, enable_gqa=grouped)


class Attention(nn.Module):
    def __init__(self, d_model: int, n_heads: int, n_kv_heads: int, head_dim: int, *, bias: bool = False) -> None:
        super().__init__()
        self.n_heads, self.n_kv_heads, self.head_dim = n_heads, n_kv_heads, head_dim
        self.q = nn.Linear(d_model, n_heads * head_dim, bias=bias)
        self.k = nn.Linear(d_model, n_kv_heads * head_dim, bias=bias)
        self.v = nn.Linear(d_model, n_kv_heads * head_dim, bias=bias)
        self.o = nn.Linear(n_heads * head_dim, d_model, bias=bias)
        self.attend = Attend()

    def forward(
        self, x: Tensor, mask: Mask, rotation: Rotation | None = None, cache: LayerCache | None = None
    ) -> Tensor:
        """x (B, T, D) -> (B, T, D); with a cache the keys are all that each row holds and x is what comes next."""
        q, k, v = (
            project(x).unflatten(-1, (heads, self.head_dim)).transpose(1, 2)
            for project, heads in ((self.q, self.n_heads), (self.k, self.n_kv_heads), (self.v, self.n_kv_heads))
        )
        if rotation is not None:
            q, k = rotate(q, rotation), rotate(k, rotation)
        if cache is not None:
            k, v = cache.extend(k, v)
        return self.o(self.attend(q, k, v, mask).transpose(1, 2).flatten(2))
