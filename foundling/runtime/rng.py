# SPDX-License-Identifier: Apache-2.0
"""Random generators, each seeded by what it belongs to."""

from __future__ import annotations

import hashlib
from typing import Any

import torch


def generator(*parts: Any) -> torch.Generator:
    """A CPU generator seeded by a hash of all parts: no two uses share a stream, and none depends on another."""
    digest = hashlib.sha256(repr(parts).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
