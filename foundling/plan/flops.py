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
    """Parameters that multiply a token: every Linear, including the head (a tied one once), and the active experts."""
    dense = sum(m.in_features * m.out_features for m in model.modules() if isinstance(m, nn.Linear))
    experts = (
        (moe, m)
        for moe in model.modules()
        if isinstance(moe, MoE)
        for m in moe.modules()
        if isinstance(m, GroupedLinear)
    )
    return dense + sum(moe.n_active * m.in_features * m.out_features for moe, m in experts)


def training_flops_per_token(model: nn.Module, seq_len: int, target_len: int | None = None) -> int:
    """6 N + 3 × the FLOPs of mixers along the sequence: two products forward and four backward per weight, and
    attention over the full square, or half of it where it is causal (Kaplan et al. 2020, section 2.1; Chowdhery et al.
    2022, appendix B, halved for causality).

    For a model that reads a source, the result is per source token (of `seq_len`): the encoder and the keys and values
    of cross-attention process the source, the rest of the decoder `target_len` tokens."""
    if target_len is None:
        return 6 * matmul_parameters(model) + 3 * _sequence_flops(model, seq_len)
    share = target_len / seq_len
    source = matmul_parameters(model.encoder) + sum(  # pyright: ignore[reportArgumentType]
        m.in_features * m.out_features
        for name, m in model.named_modules()
        if isinstance(m, nn.Linear) and name.endswith((".cross.k", ".cross.v"))
    )
    target = matmul_parameters(model) - source
    sequence = _sequence_flops(model.encoder, seq_len)  # pyright: ignore[reportArgumentType]
    for name, m in model.named_modules():
        if hasattr(m, "sequence_flops") and not name.startswith("encoder."):
            # cross-attention reads the whole source, self-attention the earlier tokens
            sequence += share * m.sequence_flops(seq_len if name.endswith(".cross") else target_len)  # pyright: ignore
    return int(6 * (source + share * target) + 3 * sequence)


def _sequence_flops(module: Any, seq_len: int, causal: bool = False) -> int:
    """FLOPs per token of the mixers, without their projections. The nearest stack around a mixer says by `causal`
    whether it sees only the tokens before; without one, all are seen."""
    causal = getattr(module, "causal", causal)
    own = 0
    if hasattr(module, "sequence_flops"):
        own = module.sequence_flops(seq_len) if causal else module.sequence_flops(seq_len, causal=False)
    return own + sum(_sequence_flops(child, seq_len, causal) for child in module.children())


def skeleton(family: str, fields: dict[str, Any]) -> Any:
    """The model on the meta device, for counting. Do not change it: equal fields return the same object."""
    return _skeleton(family, json.dumps(fields, sort_keys=True))


@lru_cache(maxsize=64)
def _skeleton(family: str, fields: str) -> Any:
    return build(family, device=str(torch.device("meta")), **json.loads(fields))


def adapted_flops_per_token(model, seq_len, target_len=None):
    return training_flops_per_token(model, seq_len, target_len)
