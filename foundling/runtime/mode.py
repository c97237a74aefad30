# SPDX-License-Identifier: Apache-2.0
"""Evaluation mode for a while."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any


@contextmanager
def evaluation_mode(*models: Any) -> Generator[None]:
    """Inside, dropout drops nothing; afterwards every module of the models is in the mode that it was in."""
    training = [module for model in models for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True
