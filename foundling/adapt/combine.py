# SPDX-License-Identifier: Apache-2.0
"""Merging the weights of models of one architecture: one tensor of each in, one out. All compute in float32; the caller
rounds once. The formulae and their conventions are those of mergekit's documentation, so that a recipe carries over."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from foundling.adapt.prune import smallest

PARALLEL = 0.9995
"""|cosine| above which the angle is too small for SLERP's division; interpolation is then linear"""
TINY = 1e-8


def average(tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Σ weight · tensor / Σ weight (Wortsman et al. 2022, Model soups)."""
    total = sum(weights)
    return torch.stack([tensor.float() * (w / total) for tensor, w in zip(tensors, weights, strict=True)]).sum(0)


def slerp(a: Tensor, b: Tensor, t: float) -> Tensor:
    """(sin((1 − t) θ) a + sin(t θ) b) / sin θ, with θ the angle between a and b taken as vectors (Shoemake 1985); a at
    t = 0, b at t = 1. Only the angle is taken of unit vectors: a and b enter with their own lengths, and where these
    are equal, the result has that length. Linear where they are nearly parallel or opposite, or one is zero."""
    a, b = a.float(), b.float()
    # in float64: the cosine of two long vectors that are nearly parallel, rounded in float32, may pass 1
    x, y = a.flatten().double(), b.flatten().double()
    lengths = float(x.norm() * y.norm())
    cosine = float(x @ y) / lengths if lengths > TINY else 1.0
    if abs(cosine) > PARALLEL:
        return torch.lerp(a, b, t)
    angle = torch.tensor(cosine, dtype=torch.float64).acos()
    of_a, of_b = (float((share * angle).sin() / angle.sin()) for share in (1 - t, t))
    return of_a * a + of_b * b


def task(base: Tensor, tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """base + Σ weight · (tensor − base) (Ilharco et al. 2023, Editing models with task arithmetic, section 2)."""
    base = base.float()
    return base + torch.stack([w * (t.float() - base) for t, w in zip(tensors, weights, strict=True)]).sum(0)


def ties(base: Tensor, tensors: Sequence[Tensor], weights: Sequence[float], density: float) -> Tensor:
    """TIES (Yadav et al. 2023, algorithm 1): of each difference from the base, the share `density` of the largest is
    kept; each number takes the sign with the larger sum; the mean is over the differences of that sign, weighted.
    Differences are trimmed tensor by tensor, as mergekit does, not over a whole model."""
    base = base.float()
    changes = torch.stack([w * (tensor.float() - base) for tensor, w in zip(tensors, weights, strict=True)])
    for change in changes:
        change.masked_fill_(smallest(change.abs(), 1 - density), 0.0)
    sign = torch.where(changes.sum(0) >= 0, 1.0, -1.0)
    agrees = changes.sign() == sign
    shares = torch.tensor(list(weights), dtype=torch.float32).view(-1, *[1] * base.ndim)
    divisor = (agrees * shares).sum(0)
    mean = (changes * agrees).sum(0) / torch.where(divisor.abs() < TINY, 1.0, divisor)
    return base + mean
