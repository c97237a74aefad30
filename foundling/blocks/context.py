# SPDX-License-Identifier: Apache-2.0
"""What every layer is called with besides x: one value, made once per forward and complete before the first layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor
from torch.utils._pytree import register_pytree_node

from foundling.blocks.mask import Mask, MaskRule, Reach, build_mask
from foundling.contracts.cache import Cache, LayerCache

GLOBAL, LOCAL = "global", "local"
"""kinds of attention layer: one that sees every key, and one that sees a window or a chunk"""


@dataclass(frozen=True)
class Context:
    """The second argument of every layer, `layer(x, ctx)`. A registered pytree: FSDP2 hooks the tensors that it finds
    by tree_flatten."""

    masks: dict[str, Mask] = field(default_factory=dict)
    """kind of attention layer -> its mask"""
    ropes: dict[str, Any] = field(default_factory=dict)
    """kind of attention layer -> what positions do to its queries and keys: (cos, sin), (B or 1, 1, T, P) each"""
    documents: Tensor | None = None
    """(B, T), −1 on the right is padding; None where each row is one document"""
    segments: Tensor | None = None
    """(B, T), for recurrent mixers: a running number of the documents in a row (blocks/conv.py, segments_of)"""
    memory: Tensor | None = None
    """(B, S, D), what cross-attention reads; None where the cache holds its keys and values"""
    memory_mask: Mask | None = None
    """who reads which part of the memory"""
    condition: Any = None
    """what a denoiser is conditioned on: (B, D) of time, class or text"""
    cache: Cache | None = None
    index: int = 0
    """the number of the mixer, by which it finds its part of the cache"""

    @property
    def layer_cache(self) -> LayerCache | None:
        return None if self.cache is None else self.cache.slot(self.index)

    def at(self, index: int) -> Context:
        """As mixer number `index` reads it; the same object where there is no cache."""
        return self if self.cache is None else replace(self, index=index)


_CHILDREN = ("masks", "ropes", "documents", "segments", "memory", "memory_mask", "condition")

register_pytree_node(
    Context,
    lambda ctx: ([getattr(ctx, name) for name in _CHILDREN], (ctx.cache, ctx.index)),
    lambda leaves, rest: Context(*leaves, *rest),
    serialized_type_name="foundling.blocks.context.Context",
)


def build_masks(
    reaches: Mapping[str, Reach], rule: MaskRule, n_queries: int, n_keys: int, like: Tensor, bias: Tensor | None = None
) -> dict[str, Mask]:
    """kind -> mask; kinds that see the same share one."""
    masks: dict[str, Mask] = {}
    built: dict[tuple[int | None, int | None, bool], Mask] = {}
    for kind, reach in reaches.items():
        own = replace(rule, window=reach.window, chunk=reach.chunk).within(n_keys)
        key = own.window, own.chunk, reach.needs_dense
        if key not in built:
            built[key] = build_mask(own, n_queries, n_keys, like, bias, needs_dense=reach.needs_dense)
        masks[kind] = built[key]
    return masks
