# SPDX-License-Identifier: Apache-2.0
"""Measurements during training on examples that are not trained on: the best weights are kept, and training stops where
they get no better.

What is measured follows from the weights alone, so a resumed run measures, keeps and stops as an unbroken one does.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from foundling.errors import MismatchError
from foundling.recipes.journal import BEST, Journal
from foundling.runtime.files import fsync_path, output_errors, temporary


@dataclass
class Validation:
    measure: Callable[[Any], float]
    """the model -> its loss; lower is better"""
    every: int
    """steps between measurements; the last step is measured too"""
    patience: int | None = None
    """measurements without a better one after which training stops"""
    best: float = math.inf
    best_step: int | None = None
    """0: before training"""
    without: int = 0
    """measurements since the best one"""

    def is_due(self, step: int, total: int) -> bool:
        return step % self.every == 0 or step == total

    @property
    def stopped(self) -> bool:
        return self.patience is not None and self.without >= self.patience

    def state(self) -> dict[str, Any]:
        """What a checkpoint stores."""
        return {
            "best": self.best if math.isfinite(self.best) else None,
            "best_step": self.best_step,
            "without": self.without,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        self.best = math.inf if state["best"] is None else state["best"]
        self.best_step, self.without = state["best_step"], state["without"]

    def after(self, step: int, model: Any, journal: Journal) -> float:
        """Measures the model, keeps its trained weights if they are the best so far, and returns the loss."""
        training = model.training
        loss = self.measure(model.eval())
        model.train(training)
        if math.isfinite(loss) and loss < self.best:
            self.best, self.best_step, self.without = loss, step, 0
            file = journal.directory / BEST
            tensors = {name: p.detach().cpu().contiguous() for name, p in _trained(model).items()}
            with output_errors(file), temporary(file) as aside:
                save_file(tensors, aside, metadata={"step": str(step)})
                fsync_path(aside)
                os.replace(aside, file)
            journal.record(BEST)
        elif step:
            self.without += 1
        return loss

    @torch.no_grad()
    def restore_best(self, model: Any, journal: Journal) -> None:
        """Puts the best weights into the model. MismatchError where the file is not as it was written."""
        if self.best_step is None:
            return
        if problem := journal.problem(BEST):
            raise MismatchError(f"{problem}; move {journal.directory} away and start anew")
        tensors = load_file(journal.directory / BEST)
        for name, p in _trained(model).items():
            p.copy_(tensors[name])


def _trained(model: Any) -> dict[str, torch.nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}
