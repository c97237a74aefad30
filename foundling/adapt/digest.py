# SPDX-License-Identifier: Apache-2.0
"""Hashes over the weights of a model, or of the base of an adapted one."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from foundling.adapt.added import base_tensors
from foundling.adapt.heads import SCORE


def derived_buffers(model: Any) -> dict[str, Tensor]:
    """Non-persistent buffers: computed from the configuration, never saved."""
    return {
        f"{path}.{leaf}".lstrip("."): module._buffers[leaf]
        for path, module in model.named_modules()
        for leaf in module._non_persistent_buffers_set
        if module._buffers[leaf] is not None
    }


def whole(tensor: Tensor) -> Tensor:
    """The full tensor; gathers a sharded one, for which every process must call."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def hash_of(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """`base_digest` of a model with these parameters and persistent buffers, which come sorted by our names."""
    digest = hashlib.sha256()
    for name, tensor in tensors:
        data = tensor.cpu().contiguous()
        digest.update(f"{name} {data.dtype} {tuple(data.shape)}\n".encode())
        digest.update(
            data.view(torch.uint8).numpy().tobytes()
            if data.ndim
            else data.reshape(1).view(torch.uint8).numpy().tobytes()
        )
    return digest.hexdigest()


def base_digest(model: Any, *, headless: bool = False) -> str:
    """SHA-256 over names, shapes and bytes of the parameters and persistent buffers of the base as they are stored now,
    sorted by name; a tied weight counts once. `headless`: without a head for texts."""
    derived = {id(b) for b in derived_buffers(model).values()}
    named = sorted(base_tensors(model).items())
    return hash_of(
        (name, whole(tensor.detach()))
        for name, tensor in named
        if id(tensor) not in derived and not (headless and name.startswith(f"{SCORE}."))
    )
