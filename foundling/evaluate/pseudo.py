# SPDX-License-Identifier: Apache-2.0
"""Texts that a masked model scores. Its pseudo-log-likelihood is no log-probability of a text, so the figures have
names of their own (Salazar et al. 2020, "Masked Language Model Scoring", section 2)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from foundling.evaluate.intervals import BOOTSTRAP, bootstrap
from foundling.evaluate.metrics import Figure
from foundling.evaluate.subject import Continuation
from foundling.evaluate.task import Task


def is_pseudo(answers: Sequence[Any]) -> bool:
    return any(isinstance(answer, Continuation) and answer.n_masked for answer in answers)


def pseudo_task(task: Task[Any]) -> Task[Any]:
    """A task of whole texts, as a masked model does it: another metric, and with it another hash, so that no result of
    it is compared with one of a model that generates."""
    return replace(task, metric=f"pseudo {task.metric}", figures=_figures)


def _figures(examples: Sequence[Any], answers: Sequence[Continuation]) -> dict[str, Figure]:
    nats, tokens = [-answer.logprob for answer in answers], [answer.n_tokens for answer in answers]
    low, high = (bootstrap(nats, tokens) if min(tokens) > 0 else None) or (None, None)
    ends = (None, None, "") if low is None or high is None else (math.exp(low), math.exp(high), BOOTSTRAP)
    masked = float(sum(answer.n_masked for answer in answers))
    return {
        "pseudo-perplexity": Figure(math.exp(sum(nats) / max(1, sum(tokens))), *ends),
        "masked positions": Figure(masked, None, None, ""),
        "tokens of the texts": Figure(float(sum(tokens)), None, None, ""),
    }
