# SPDX-License-Identifier: Apache-2.0
"""Floating-point operations of training, counted from the modules themselves."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any

import torch
from torch import nn

from foundling.blocks.moe import GroupedLinear, MoE
from foundling.models import build


def matmul_parameters(model: nn.Module) -> int:
    """Parameters that a token is multiplied by: every Linear, the head included (a tied one once), and of experts those
    that it visits."""
    dense = sum(m.in_features * m.out_features for m in model.modules() if isinstance(m, nn.Linear))
    experts = (
        (moe, m)
        for moe in model.modules()
        if isinstance(moe, MoE)
        for m in moe.modules()
        if isinstance(m, GroupedLinear)
    )
    return dense + sum(moe.n_active * m.in_features * m.out_features for moe, m in experts)


def training_flops_per_token(model: nn.Module, seq_len: int) -> int:
    """6 N + 3 × what mixers do along the sequence: two products forward and four backward per weight, and causal
    attention at half its square (Kaplan et al. 2020, section 2.1; Chowdhery et al. 2022, appendix B, halved for
    causality)."""
    along = sum(m.sequence_flops(seq_len) for m in model.modules() if hasattr(m, "sequence_flops"))  # pyright: ignore
    return 6 * matmul_parameters(model) + 3 * along


def skeleton(family: str, fields: dict[str, Any]) -> Any:
    """The model without memory behind it, to be counted and left as it is: equal fields give the same one again."""
    return _skeleton(family, json.dumps(fields, sort_keys=True))


@lru_cache(maxsize=64)
def _skeleton(family: str, fields: str) -> Any:
    return build(family, device=str(torch.device("meta")), **json.loads(fields))
