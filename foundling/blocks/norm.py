# SPDX-License-Identifier: Apache-2.0
"""Normalisation, always in float32 whatever autocast says."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class RMSNorm(nn.Module):
    """x / rms(x) · (offset + weight) over the last axis (Zhang & Sennrich 2019, eq. 4; Gemma's offset is 1). `start` is
    the initial gain: 0 after a part of a residual layer, which then starts as nothing."""

    def __init__(self, d_model: int, eps: float, *, offset: float = 0.0, start: float = 1.0) -> None:
        super().__init__()
        self.eps, self.offset, self.start = eps, offset, start
        self.weight = nn.Parameter(torch.full((d_model,), start - offset))

    def forward(self, x: Tensor) -> Tensor:
        gain = self.weight.float() + self.offset if self.offset else self.weight.float()
        if x.requires_grad and not gain.requires_grad and x.device.type == "cpu" and not torch.compiler.is_compiling():
            return _FrozenRMSNorm.apply(x, gain, self.eps)  # pyright: ignore[reportReturnType]
        return F.rms_norm(x.float(), self.weight.shape, gain, self.eps).to(x.dtype)


class _FrozenRMSNorm(torch.autograd.Function):
    """RMSNorm whose gain gets no gradient. On a CPU torch has none of one pass: its ten steps save x̂ beside x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gain: Tensor, eps: float) -> Tensor:
        rate = torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + eps)
        ctx.save_for_backward(x, gain, rate)
        return (x.float() * rate).mul_(gain).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, gain, rate = ctx.saved_tensors
        single = x.float()
        grad_x = grad.float() * gain
        mean = (grad_x * single).mean(-1, keepdim=True)
        grad_x.mul_(rate).addcmul_(single, mean * rate.pow(3), value=-1)
        return grad_x.to(x.dtype), None, None


class LayerNorm(nn.Module):
    """(x − mean) / std · weight + bias over the last axis (Ba et al. 2016)."""

    def __init__(self, d_model: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(d_model))
        self.bias = nn.Parameter(torch.zeros(d_model))

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x.float(), self.weight.shape, self.weight.float(), self.bias.float(), self.eps).to(x.dtype)


class GroupNorm(nn.Module):
    """LayerNorm over groups of channels and all positions (Wu & He 2018). x (B, C, …)."""

    def __init__(self, groups: int, channels: int, eps: float) -> None:
        super().__init__()
        self.groups, self.eps = groups, eps
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        return F.group_norm(x.float(), self.groups, self.weight.float(), self.bias.float(), self.eps).to(x.dtype)
