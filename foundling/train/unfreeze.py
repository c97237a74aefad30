# SPDX-License-Identifier: Apache-2.0
"""Gradual unfreezing (Howard & Ruder 2018, ULMFiT, section 3.3): the head is trained first, and one more layer, from
the top, after each `unfreeze_every` steps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import nn

from foundling.adapt.freeze import depth_of
from foundling.errors import ConfigError
from foundling.runtime.device import Runtime


def frozen_at(model: Any, params: Mapping[str, nn.Parameter], every: int, step: int) -> list[nn.Parameter]:
    """Those of the trainable parameters `params` that step `step`, counted from 0, does not train yet. It depends on
    nothing else, so a run is resumed at any step. A depth at which nothing is trainable is passed over."""
    depths = depth_of(model)
    order = sorted({depths[name] for name in params}, reverse=True)
    trained = set(order[: 1 + step // every])
    return [p for name, p in params.items() if depths[name] not in trained]


def check_unfreezing(every: int | None, runtime: Runtime) -> None:
    """ConfigError with several processes, whose wrappers fix at the start which gradients they exchange."""
    if every is not None and runtime.world_size > 1:
        raise ConfigError(f"'unfreeze_every' is {every}, which needs one process; this run has {runtime.world_size}")


@contextmanager
def gradually_unfrozen(model: Any, params: Mapping[str, nn.Parameter], every: int | None, step: int) -> Iterator[None]:
    """Inside the `with` block the parameters that are not trained yet need no gradient, so none is computed."""
    frozen = [] if every is None else [p for p in frozen_at(model, params, every, step) if p.requires_grad]
    for p in frozen:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in frozen:
            p.requires_grad_(True)
