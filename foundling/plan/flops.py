# SPDX-License-Identifier: Apache-2.0
"""Floating-point operations of training, counted from the modules themselves."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any

import torch
from torch import nn

from foundling.adapt.lora import GROUPED, LINEAR, LoRA
from foundling.blocks.moe import MoE
from foundling.models import build


def matmul_parameters(model: nn.Module) -> int:
    """Parameters that multiply a token: every Linear, including the head (a tied one once), the active experts, and
    adapters."""
    return sum(count for _, count in _products(model).values())


def _products(model: nn.Module) -> dict[str, tuple[nn.Module, int]]:
    """Name -> projection or adapter, and its numbers that multiply a token."""
    active = {f"{path}.{name}": m.n_active for path, m in model.named_modules() if isinstance(m, MoE)
              for name, _ in m.named_modules()}  # fmt: skip
    counts: dict[str, tuple[nn.Module, int]] = {}
    for name, m in model.named_modules():
        if isinstance(m, LoRA):
            counts[name] = m, active.get(name, 1) * m.a.shape[-2] * (m.in_features + m.out_features)
        elif isinstance(m, LINEAR):
            counts[name] = m, m.in_features * m.out_features  # pyright: ignore[reportOperatorIssue]
        elif isinstance(m, GROUPED) and name in active:
            counts[name] = m, active[name] * m.in_features * m.out_features  # pyright: ignore[reportOperatorIssue]
    return counts


def training_flops_per_token(model: nn.Module, seq_len: int, target_len: int | None = None) -> int:
    """6 N + 3 × the FLOPs of mixers along the sequence: two products forward and four backward per weight, and
    attention over the full square, or half of it where it is causal (Kaplan et al. 2020, section 2.1; Chowdhery et al.
    2022, appendix B, halved for causality). A weight that gets no gradient costs four, and two below the lowest layer
    with one that does, where the backward pass ends.

    For a model that reads a source, the result is per source token (of `seq_len`): the encoder and the keys and values
    of cross-attention process the source, the rest of the decoder `target_len` tokens."""
    share, lowest = 1.0 if target_len is None else target_len / seq_len, _lowest_trained(model)

    def of_source(name: str) -> bool:
        return name.startswith("encoder.") or name.removesuffix(".base").endswith((".cross.k", ".cross.v"))

    total = 0.0
    for name, (m, count) in _products(model).items():
        trains = any(p.requires_grad for p in m.parameters(recurse=False))
        factor = 2 + 2 * _reached(name, lowest) + 2 * trains
        total += count * factor * (1.0 if of_source(name) else share)
    if target_len is None:
        return int(total) + _sequence_flops(model, seq_len, lowest=lowest)
    total += _sequence_flops(model.encoder, seq_len, "encoder", lowest=lowest)  # pyright: ignore[reportArgumentType]
    for name, m in model.named_modules():
        if hasattr(m, "sequence_flops") and not name.startswith("encoder."):
            # cross-attention reads the whole source, self-attention the earlier tokens
            forward = m.sequence_flops(seq_len if name.endswith(".cross") else target_len)  # pyright: ignore
            total += share * forward * (1 + 2 * _reached(name, lowest))
    return int(total)


_Place = tuple[int, int]
"""(stack, layer) in the order of the forward pass: what is before all layers, the encoder's, the others, the end."""
_END = (3, 0)
_BEFORE = ("embed", "position", "segment")
"""beginnings of the names of what is before all layers"""


def _place(name: str) -> _Place:
    parts = name.split(".")
    if "layers" in parts and (at := parts.index("layers")) + 1 < len(parts) and parts[at + 1].isdecimal():
        return (1 if parts[0] == "encoder" else 2), int(parts[at + 1])
    return (0, 0) if any(part.startswith(_BEFORE) for part in parts[:2]) else _END


def _lowest_trained(model: nn.Module) -> _Place:
    return min((_place(name) for name, p in model.named_parameters() if p.requires_grad), default=(_END[0] + 1, 0))


def _reached(name: str, lowest: _Place) -> bool:
    """Whether the backward pass goes through the input of this module. All of the lowest layer is counted; a head that
    is trained alone has no input that needs a gradient."""
    return _place(name) >= lowest < _END


def _sequence_flops(module: Any, seq_len: int, name: str = "", causal: bool = False, *, lowest: _Place = (0, 0)) -> int:
    """FLOPs per token of training the mixers, without their projections: thrice those of the forward pass where the
    backward pass reaches. The nearest stack around a mixer says by `causal` whether it sees only the tokens before;
    without one, all are seen."""
    causal = getattr(module, "causal", causal)
    own = 0
    if hasattr(module, "sequence_flops"):
        own = module.sequence_flops(seq_len) if causal else module.sequence_flops(seq_len, causal=False)
        own *= 1 + 2 * _reached(name, lowest)
    path = f"{name}." if name else ""
    parts = ((path + leaf, child) for leaf, child in module.named_children())
    return own + sum(_sequence_flops(child, seq_len, at, causal, lowest=lowest) for at, child in parts)


def skeleton(family: str, fields: dict[str, Any]) -> Any:
    """The model on the meta device, for counting. Do not change it: equal fields return the same object."""
    return _skeleton(family, json.dumps(fields, sort_keys=True))


@lru_cache(maxsize=64)
def _skeleton(family: str, fields: str) -> Any:
    return build(family, device=str(torch.device("meta")), **json.loads(fields))
