# SPDX-License-Identifier: Apache-2.0
"""Positions: counted inside each document, and turned into rotations (RoPE)."""

import torch
from torch import Tensor, nn


def positions_of(tokens: Tensor, documents: Tensor | None) -> Tensor:
    """(B, T) or (1, T) int64: the place of each token in its own document, so that a packed row equals its documents
    read apart."""
    steps = torch.arange(tokens.shape[1], device=tokens.device)[None]
    if documents is None:
        return steps
    begins = torch.ones_like(documents, dtype=torch.bool)
    begins[:, 1:] = documents[:, 1:] != documents[:, :-1]
    return steps - torch.where(begins, steps, 0).cummax(dim=1).values


Rotation = tuple[Tensor, Tensor]
"""cos and sin, (B or 1, 1, T, P) float32, the halves of P repeated."""


class RoPE(nn.Module):
    """Rotary positions (Su et al. 2021, RoFormer, section 3.4.2); a head's halves are paired, as in Llama."""

    def __init__(self, head_dim: int, theta: float) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.theta = theta

    def forward(self, positions: Tensor) -> Rotation:
        """positions (B or 1, T) -> (cos, sin)"""
        powers = torch.arange(0, self.head_dim, 2, device=positions.device, dtype=torch.float32) / self.head_dim
        angles = positions[..., None].float() * (1.0 / self.theta**powers)
        angles = torch.cat((angles, angles), dim=-1)[:, None]
        return angles.cos(), angles.sin()


def rotate(x: Tensor, rotation: Rotation) -> Tensor:
    """x (B, H, T, P) turned by its position, in x's dtype."""
    cos, sin = rotation
    half = x.shape[-1] // 2
    turned = torch.cat((-x[..., half:], x[..., :half]), dim=-1)
    return (x * cos + turned * sin).to(x.dtype)
