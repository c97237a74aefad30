# SPDX-License-Identifier: Apache-2.0
"""How well a model predicts text it has not seen."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch

from foundling.contracts.data import Batch
from foundling.contracts.objective import Objective
from foundling.runtime.device import Runtime


class Score(NamedTuple):
    loss: float
    """nats per token"""
    bits_per_byte: float
    tokens: int


def score(
    model: Any,
    objective: Objective,
    batches: Iterable[Batch],
    n_bytes: int,
    runtime: Runtime,
    tell: Callable[[], None] | None = None,
) -> Score:
    """Total nats over all counted tokens, divided by tokens and by the text's UTF-8 bytes. Runs uncompiled: a compiled
    layer would be compiled anew for evaluation, which costs more than it saves."""
    model.eval()
    nats, tokens = 0.0, 0
    with torch.inference_mode(), torch.compiler.set_stance("force_eager"), runtime.autocast():
        for batch in batches:
            term = objective(model, {k: v.to(runtime.device) for k, v in batch.items()})["loss"]
            nats += float(term.sum)
            tokens += int(term.count)
            if tell:
                tell()
    return Score(nats / max(1, tokens), nats / math.log(2) / max(1, n_bytes), tokens)
