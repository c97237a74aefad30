# SPDX-License-Identifier: Apache-2.0
"""One model under the conditions that should not matter: again, other threads, batches, number formats, devices."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from foundling.decode.engine.engine import EngineOptions
from foundling.evaluate.local import LocalModel
from foundling.evaluate.subject import Continuation, GeneratedText, GenerateRequest, LikelihoodRequest, Refusals

ONE_ROW = 1
"""tokens of a forward pass: less than any request has, so that each is alone"""


class Threaded(Refusals):
    """A subject that computes on `threads` threads."""

    kind, serves = LocalModel.kind, LocalModel.serves

    def __init__(self, subject: LocalModel, threads: int) -> None:
        self.subject, self.threads, self.name = subject, threads, subject.name

    @property
    def hashes(self) -> dict[str, str]:
        return self.subject.hashes

    def loglikelihood(self, requests: Sequence[LikelihoodRequest]) -> Iterator[tuple[int, Continuation]]:
        return self._on_threads(self.subject.loglikelihood(requests))

    def rolling(self, texts: Sequence[str]) -> Iterator[tuple[int, Continuation]]:
        return self._on_threads(self.subject.rolling(texts))

    def generate(self, requests: Sequence[GenerateRequest]) -> Iterator[tuple[int, GeneratedText]]:
        return self._on_threads(self.subject.generate(requests))

    def _on_threads(self, answers: Iterator[Any]) -> Iterator[Any]:
        before = torch.get_num_threads()
        torch.set_num_threads(self.threads)
        try:
            yield from answers
        finally:
            torch.set_num_threads(before)


def conditions(directory: str | Path, **options: Any) -> dict[str, Threaded]:
    """The reference (float32, one thread) first. `options`: those of LocalModel.load."""
    plain = LocalModel.load(directory, **options)
    # batch_tokens is of log-probabilities, max_num_seqs of generated answers
    alone = {"batch_tokens": ONE_ROW, "engine": replace(options.get("engine") or EngineOptions(), max_num_seqs=1)}
    subjects = {
        "float32, 1 thread": Threaded(plain, 1),
        "again": Threaded(plain, 1),
        "2 threads": Threaded(plain, 2),
        "one request at a time": Threaded(LocalModel.load(directory, **options | alone), 1),
        "bfloat16": Threaded(LocalModel.load(directory, **options, dtype="bfloat16"), 1),
    }
    if torch.cuda.is_available():
        subjects["float32 on cuda"] = Threaded(LocalModel.load(directory, **options, device="cuda"), 1)
    return subjects
