# SPDX-License-Identifier: Apache-2.0
"""Causal convolutions, and the borders of documents that recurrent mixers heed."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foundling.contracts.cache import Conv, LayerCache


def segments_of(documents: Tensor, previous: Tensor | None) -> Tensor:
    """documents (B, T), -1 on the right; previous (B,): the last document of what was read before, -1 for none. ->
    (B, T): 0 while the document before goes on, then one more at each border; padding continues the last."""
    before = documents[:, :1] if previous is None else previous[:, None]
    shifted = torch.cat((before, documents[:, :-1]), dim=1)
    return ((documents != shifted) & (documents >= 0) & (shifted >= 0)).cumsum(1)


def remembered(x: Tensor, held: Tensor, documents: Tensor, segments: Tensor | None) -> Tensor:
    """The last W inputs after each row's real tokens, those of older documents left out: what a Conv slot holds next.
    x (B, T, C); held (B, W, C), the inputs before -> (B, W, C)"""
    width = held.shape[1]
    inputs = torch.cat((held, x.to(held.dtype)), dim=1)
    real = (documents >= 0).sum(1)
    places = real[:, None] + torch.arange(width, device=x.device)
    kept = inputs.gather(1, places[..., None].expand(-1, -1, inputs.shape[2]))
    if segments is None:
        return kept
    s = F.pad(segments, (width, 0))
    last = s.gather(1, (real + width - 1)[:, None])
    return torch.where((s.gather(1, places) == last)[..., None], kept, 0)


def taps(x: Tensor, weight: Tensor, segments: Tensor | None) -> Tensor:
    """A causal depthwise convolution that sees its own segment alone, one tap at a time: x (B, W − 1 + T, C), weight
    (C, W), segments (B, W − 1 + T) or None for one -> (B, T, C). Rows stay whole, where torch's convolution would turn
    them to channels and back. Masked last, so that no masked copy of x is kept for each tap."""
    width = weight.shape[1]
    steps = x.shape[1] - width + 1
    parts = [x[:, k : k + steps] * weight[:, k] for k in range(width)]
    if segments is not None:
        same = (segments[:, k : k + steps] == segments[:, width - 1 :] for k in range(width))
        parts = [torch.where(seen[..., None], part, 0) for seen, part in zip(same, parts, strict=True)]
    return sum(parts[1:], parts[0])


class CausalConv(nn.Module):
    """A depthwise convolution over the last `width` tokens of each document."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.channels, self.width = channels, width
        self.weight = nn.Parameter(torch.randn(channels, 1, width) * width**-0.5)
        self.bias = nn.Parameter(torch.zeros(channels))

    def slot(self) -> Conv:
        return Conv(self.channels, self.width - 1)

    def forward(self, x: Tensor, segments: Tensor | None, cache: LayerCache | None) -> Tensor:
        """x (B, T, C), segments (B, T) as segments_of gives them, or None for one document -> (B, T, C). With a cache
        it goes on from what is held, and holds the last inputs anew."""
        held = None if cache is None else cache.get(Conv)
        y = self._convolved(x, segments, held)
        if cache is not None and held is not None:  # after it: what is held is overwritten
            cache.put(Conv, remembered(x, held, cache.documents, segments))
        return y

    def _convolved(self, x: Tensor, segments: Tensor | None, held: Tensor | None) -> Tensor:
        """held (B, width − 1, C): the inputs before"""
        before = self.width - 1
        x = F.pad(x, (0, 0, before, 0)) if held is None else torch.cat((held.to(x.dtype), x), dim=1)
        # what was held belongs to segment 0, unless a border came first: then segments begin at 1
        seen = None if segments is None else F.pad(segments, (before, 0))
        return taps(x, self.weight[:, 0], seen) + self.bias
