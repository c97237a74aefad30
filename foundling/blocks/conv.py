# SPDX-License-Identifier: Apache-2.0
"""Causal convolutions, and the document boundaries of recurrent mixers."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foundling.blocks.context import Context
from foundling.contracts.cache import Conv, Slot


def segments_of(documents: Tensor, previous: Tensor | None) -> Tensor:
    """documents (B, T), −1 for padding on the right; previous (B,): the document of the preceding token, −1 for none.
    -> (B, T): 0 while that document continues, plus one at each boundary; padding continues the last segment."""
    previous = documents[:, :1] if previous is None else previous[:, None]
    shifted = torch.cat((previous, documents[:, :-1]), dim=1)
    return ((documents != shifted) & (documents >= 0) & (shifted >= 0)).cumsum(1)


def last_inputs(x: Tensor, past: Tensor, documents: Tensor, segments: Tensor | None) -> Tensor:
    """The last W inputs of each row's real tokens, with zeros for earlier documents: the next value of a Conv slot.
    x (B, T, C); past (B, W, C), the inputs before x -> (B, W, C)"""
    width = past.shape[1]
    inputs = torch.cat((past, x.to(past.dtype)), dim=1)
    real = (documents >= 0).sum(1)
    index = real[:, None] + torch.arange(width, device=x.device)
    last = inputs.gather(1, index[..., None].expand(-1, -1, inputs.shape[2]))
    if segments is None:
        return last
    s = F.pad(segments, (width, 0))
    current = s.gather(1, (real + width - 1)[:, None])
    return torch.where((s.gather(1, index) == current)[..., None], last, 0)


def with_past(x: Tensor, segments: Tensor | None, past: Tensor | None, width: int) -> tuple[Tensor, Tensor | None]:
    """x (B, T, C) after the `width` inputs before it, past (B, width, C) or zero, and the segments of all of them."""
    x = F.pad(x, (0, 0, width, 0)) if past is None else torch.cat((past.to(x.dtype), x), dim=1)
    # past inputs are in segment 0; if a boundary comes first, segments start at 1
    return x, None if segments is None else F.pad(segments, (width, 0))


def taps(x: Tensor, weight: Tensor, segments: Tensor | None) -> Tensor:
    """A causal depthwise convolution within each segment, one tap at a time: x (B, W − 1 + T, C), weight (C, W),
    segments (B, W − 1 + T) or None for one -> (B, T, C).

    It avoids the transpositions that torch's convolution needs. The mask is applied last, so autograd stores no masked
    copy of x per tap."""
    width = weight.shape[1]
    steps = x.shape[1] - width + 1
    parts = [x[:, k : k + steps] * weight[:, k] for k in range(width)]
    if segments is not None:
        same = (segments[:, k : k + steps] == segments[:, width - 1 :] for k in range(width))
        parts = [torch.where(visible[..., None], part, 0) for visible, part in zip(same, parts, strict=True)]
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

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        """x (B, T, C) -> (B, T, C). With a cache it continues from the last inputs and stores the new ones."""
        cache = ctx.layer_cache
        past = None if cache is None else cache.get(Conv)
        y = self._convolved(x, ctx.segments, past)
        if cache is not None and past is not None and ctx.documents is not None:  # put last, since it overwrites `past`
            cache.put(Conv, last_inputs(x, past, ctx.documents, ctx.segments))
        return y

    def _convolved(self, x: Tensor, segments: Tensor | None, past: Tensor | None) -> Tensor:
        x, segments = with_past(x, segments, past, self.width - 1)
        return taps(x, self.weight[:, 0], segments) + self.bias


class Window(nn.Module):
    """The last `width` tokens of each document side by side, the oldest first, zero before its first."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.channels, self.width = channels, width

    def slots(self) -> tuple[Slot, ...]:
        return (Conv(self.channels, self.width - 1),)

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        """x (B, T, C) -> (B, T, width · C)"""
        cache, steps = ctx.layer_cache, x.shape[1]
        past = None if cache is None else cache.get(Conv)
        inputs, segments = with_past(x, ctx.segments, past, self.width - 1)
        parts = [inputs[:, k : k + steps] for k in range(self.width)]
        if segments is not None:
            same = (segments[:, k : k + steps] == segments[:, self.width - 1 :] for k in range(self.width))
            parts = [torch.where(visible[..., None], part, 0) for visible, part in zip(same, parts, strict=True)]
        if cache is not None and past is not None and ctx.documents is not None:
            cache.put(Conv, last_inputs(x, past, ctx.documents, ctx.segments))
        return torch.cat(parts, -1)
