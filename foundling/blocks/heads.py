# SPDX-License-Identifier: Apache-2.0
"""Heads that stand on a model's hidden states in place of its vocabulary."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foundling.blocks.init import Role


class ScalarHead(nn.Module):
    """One number for each position: a value, or at the last token of a row its reward (Ouyang et al. 2022, section
    3.4). Put on a model as `model.score`, its only parameter is `score.weight` (1, D), the name that transformers'
    sequence classifiers use. It starts at zero. It is no nn.Linear, so it is neither adapted nor quantised."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, d_model))

    def roles(self) -> dict[str, Role]:
        return {"weight": Role("head", self.weight.shape[1])}

    def forward(self, hidden: Tensor) -> Tensor:
        """hidden (..., D) -> (...) float32"""
        return F.linear(hidden, self.weight)[..., 0].float()

    def of_rows(self, hidden: Tensor, documents: Tensor | None = None) -> Tensor:
        """hidden (B, T, D), documents (B, T) with −1 on the right as padding -> (B,), at each row's last real token."""
        if documents is None:
            return self(hidden[:, -1])
        last = ((documents >= 0).sum(1) - 1).clamp_min(0)
        return self(hidden[torch.arange(len(hidden), device=hidden.device), last])
