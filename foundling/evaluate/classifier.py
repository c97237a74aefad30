# SPDX-License-Identifier: Apache-2.0
"""A classifier as the subject of an evaluation: its labels are the continuations of a text."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from typing import Any

from foundling.decode.classify import Classifier
from foundling.errors import GenerationError, render
from foundling.evaluate.local import Loaded
from foundling.evaluate.subject import Continuation, LikelihoodRequest, Prompt, Refusals
from foundling.evaluate.task import Task
from foundling.limits import shown
from foundling.runtime.machine import versions
from foundling.text.cutting import encode_within
from foundling.weights.directory import weights_hash

_AT_ONCE = 256  # texts that are classified before their answers are recorded


class ClassifierSubject(Refusals):
    """`loglikelihood` gives ln p(label | text). `truncate`: a text that is too long loses its end; without, it is
    refused. Raises GenerationError for a head that tags words or predicts values."""

    kind = "a classifier"
    serves = ("classify", "choice")

    def __init__(
        self, classifier: Classifier, *, name: str = "model", truncate: bool = False, model_hash: str | None = None
    ) -> None:
        if classifier.task != "classify":
            what = {"tag": "tags words", "regress": "predicts values"}[classifier.task]
            raise GenerationError(
                f"{name} {what}; tasks of kind classify and choice need a head that classifies texts "
                "(evaluate/tasks/labels.py measures the others)"
            )
        self.classifier, self.model, self.name, self.truncate = classifier, classifier.model, name, truncate
        self._model_hash = model_hash

    @classmethod
    def of(cls, loaded: Loaded, *, truncate: bool = False) -> ClassifierSubject:
        classifier = Classifier(loaded.model, loaded.tokenizer)
        return cls(classifier, name=loaded.name, truncate=truncate, model_hash=loaded.hash)

    @property
    def hashes(self) -> dict[str, str]:
        if self._model_hash is None:
            self._model_hash = weights_hash(self.model)
        parameter = next(self.model.parameters())
        template = [self.classifier.tokenizer.backend.to_str(), self.classifier.longest, list(self.classifier.labels)]
        return {
            "model": self._model_hash,
            "template": hashlib.sha256(json.dumps(template).encode()).hexdigest(),
            "backend": f"{versions()}, {str(parameter.dtype).removeprefix('torch.')} on {parameter.device.type}",
        }

    def loglikelihood(self, requests: Sequence[LikelihoodRequest]) -> Iterator[tuple[int, Continuation]]:
        """GenerationError for a continuation that is no label of the head, white space at either end aside, a
        conversation, and a text that is too long."""
        labels = [self._label(request.continuation) for request in requests]
        by_text: dict[str, list[int]] = {}
        for index, request in enumerate(requests):
            by_text.setdefault(self._text(request.prompt), []).append(index)
        texts = list(by_text)
        self._check_lengths(texts)
        for start in range(0, len(texts), _AT_ONCE):
            chunk = texts[start : start + _AT_ONCE]
            for text, answer in zip(chunk, self.classifier.classify(chunk), strict=True):
                scores = answer["scores"]
                for index in by_text[text]:
                    label = labels[index]
                    logprob = math.log(scores[label]) if scores[label] else -math.inf
                    yield index, Continuation(requests[index].continuation, logprob, 1, label == answer["label"])

    def count(self, task: Task[Any]) -> tuple[int, int]:
        """(tokens that are computed for a task, 0 that are generated)"""
        texts = list(dict.fromkeys(self._text(task.prompt(example)) for example in task.examples))
        encoded = encode_within(self.classifier.tokenizer, texts, self.classifier.longest)
        return sum(len(one.ids) for one in encoded), 0

    def _label(self, text: str) -> str:
        for label in (text, text.strip()):
            if label in self.classifier.labels:
                return label
        labels = ", ".join(render.message(label) for label in self.classifier.labels[:20])
        more = f" and {len(self.classifier.labels) - 20} more" if len(self.classifier.labels) > 20 else ""
        raise GenerationError(f"{self.name} has no label {shown(text.strip())}; its labels are {labels}{more}")

    def _text(self, prompt: Prompt) -> str:
        if not isinstance(prompt, str):
            raise GenerationError(f"{self.name} is a classifier: it reads texts and no conversations; leave out system")
        return prompt

    def _check_lengths(self, texts: Sequence[str]) -> None:
        longest = self.classifier.longest
        encoded = [] if self.truncate else encode_within(self.classifier.tokenizer, texts, longest)
        if n := sum(one.cut for one in encoded):
            raise GenerationError(too_long(n, len(texts), longest))


def too_long(n: int, total: int, longest: int) -> str:
    return (
        f"{n} of {total} texts are longer than the {longest} tokens that the model reads; shorten them, or "
        "--truncate to cut their end"
    )
