# SPDX-License-Identifier: Apache-2.0
"""Floating-point operations of training, counted from the modules themselves."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from foundling.blocks.attention import Attention
from foundling.models import build


def matmul_parameters(model: nn.Module) -> int:
    """Parameters that multiply: every Linear, the head included (a tied one once)."""
    return sum(m.in_features * m.out_features for m in model.modules() if isinstance(m, nn.Linear))


def training_flops_per_token(model: nn.Module, seq_len: int) -> int:
    """6 N + 6 Σ H·P·T: two products forward and four backward per weight, and causal attention at half its square
    (Kaplan et al. 2020, section 2.1; Chowdhery et al. 2022, appendix B, halved for causality)."""
    attention = sum(m.n_heads * m.head_dim for m in model.modules() if isinstance(m, Attention))
    return 6 * matmul_parameters(model) + 6 * attention * seq_len


def skeleton(family: str, fields: dict[str, Any]) -> nn.Module:
    """The model without memory behind it, to be counted."""
    return build(family, device=str(torch.device("meta")), **fields)
