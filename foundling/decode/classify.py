# SPDX-License-Identifier: Apache-2.0
"""Texts in, labels out: a model with a head and its tokenizer predict classes, tags of words with their spans, or
values."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from foundling.blocks.heads import scores
from foundling.decode.prompts import pad_prompts
from foundling.errors import GenerationError, WeightsError
from foundling.limits import PREDICTIONS, TEXTS_AT_ONCE
from foundling.models import family_of
from foundling.runtime.hub import local_directory
from foundling.runtime.mode import evaluation_mode
from foundling.text import Tokenizer
from foundling.text.framing import Framing
from foundling.text.tags import encode_words, has_spans, spans_of
from foundling.weights.directory import load
from foundling.weights.text_spec import text_spec

BATCH_SIZE = 32


@dataclass
class Classifier:
    model: Any
    tokenizer: Tokenizer

    def __post_init__(self) -> None:
        if not self.model.capabilities.task:
            name = type(self.model).__name__
            raise GenerationError(f"this {name} has no head, so it is no classifier; foundling finetune makes it one")

    @classmethod
    def load(cls, directory: str | Path) -> Classifier:
        """From a directory of Foundling or transformers. WeightsError, with the way out, for one without a head."""
        directory = local_directory(directory)
        model = load(directory)
        if not model.capabilities.task:
            can = model.capabilities
            way = (
                "foundling generate reads it, and "
                if can.generates
                else "foundling fill reads it, and "
                if can.fills
                else ""
            )
            raise WeightsError(
                f"{directory}: this {family_of(model).name} is no classifier; {way}foundling finetune "
                f"{directory} DATA --as classify makes one of it"
            )
        return cls(model, Tokenizer.load(directory))

    @property
    def task(self) -> str:
        return self.model.capabilities.task

    @property
    def labels(self) -> tuple[str, ...]:
        return self.model.score.options.labels

    def classify(
        self, texts: Sequence[str], *, top: int | None = None, batch_size: int = BATCH_SIZE
    ) -> list[dict[str, Any]]:
        """One answer a text, in their order; {'cut': True} beside it where the text is longer than the model reads.

        classify: {'label', 'probability', 'scores': {label: probability}}, the `top` likeliest, all by default.
        regress: {'value'}, or {'values': {label: value}} for several.
        tag: {'tags': [{'word', 'tag', 'probability'}]} of the words between spaces, and where tags are of spans
        {'spans': [{'kind', 'start', 'end', 'text'}]}, in words."""
        if top is not None:
            PREDICTIONS.check(top, "top", GenerationError)
        if self.task == "tag":
            return self.tag([text.split() for text in texts], batch_size=batch_size)
        framing = Framing(self.tokenizer, text_spec(self.model))
        rows = [self._cut(framing.prompt(text)) for text in texts]
        found = self.predict([ids for ids, _ in rows], batch_size=batch_size)
        answer = self._value if self.task == "regress" else self._classes
        return [answer(row, top) | ({"cut": True} if cut else {}) for row, (_, cut) in zip(found, rows, strict=True)]

    def tag(self, sentences: Sequence[Sequence[str]], *, batch_size: int = BATCH_SIZE) -> list[dict[str, Any]]:
        """As `classify`, of sentences whose words are divided already. A word that was cut off, or of which no token is
        left, is tagged as the first label with probability None."""
        encoded = [encode_words(self.tokenizer, words) for words in sentences]
        rows = [self._cut(ids) for ids, _ in encoded]
        found = self.predict([ids for ids, _ in rows], batch_size=batch_size)
        answers = []
        for words, (_, firsts), (ids, cut), logits in zip(sentences, encoded, rows, found, strict=True):
            read = len(ids) - (len(self._frame[1]) if cut else 0)
            probs = logits.softmax(-1)
            tags = []
            for word, first in zip(words, firsts, strict=True):
                if 0 <= first < read:
                    best = int(probs[first].argmax())
                    tags.append({"word": word, "tag": self.labels[best], "probability": float(probs[first, best])})
                else:
                    tags.append({"word": word, "tag": self._outside, "probability": None})
            answers.append({"tags": tags} | self._spans(tags) | ({"cut": True} if cut else {}))
        return answers

    @torch.inference_mode()
    def predict(self, rows: Sequence[Sequence[int]], *, batch_size: int = BATCH_SIZE) -> list[Tensor]:
        """What the head predicts of each list of ids, on the CPU: (n,), or (T, n) of its tokens. Those of about one
        length are read together. GenerationError for a row without a token, or scores that are not finite."""
        TEXTS_AT_ONCE.check(batch_size, "batch_size", GenerationError)
        if not all(rows):
            raise GenerationError("a text has no token; leave out empty texts")
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        found, device = dict[int, Tensor](), next(self.model.parameters()).device
        with evaluation_mode(self.model):
            for start in range(0, len(order), batch_size):
                chosen = order[start : start + batch_size]
                tokens, documents = pad_prompts([rows[i] for i in chosen], device)
                out = scores(self.model, {"tokens": tokens, "documents": documents}).cpu()
                if not out.isfinite().all():
                    raise GenerationError("the model's scores are not finite; is the model damaged?")
                for place, i in enumerate(chosen):
                    found[i] = out[place, : len(rows[i])] if self.task == "tag" else out[place]
        return [found[i] for i in range(len(rows))]

    @property
    def _frame(self) -> tuple[list[int], list[int]]:
        return self.tokenizer.frame

    @property
    def _outside(self) -> str:
        return "O" if has_spans(self.labels) else self.labels[0]

    def _cut(self, ids: list[int]) -> tuple[list[int], bool]:
        """The ids that the model reads, with the special tokens at their end, and whether some are left out."""
        longest = self.model.config.max_seq_len
        if len(ids) <= longest:
            return ids, False
        last = self._frame[1]
        return [*ids[: longest - len(last)], *last], True

    def _classes(self, logits: Tensor, top: int | None) -> dict[str, Any]:
        probs = logits.double().softmax(-1)
        best = probs.topk(min(top or len(probs), len(probs)))
        ranked = {self.labels[i]: p for i, p in zip(best.indices.tolist(), best.values.tolist(), strict=True)}
        label, probability = next(iter(ranked.items()))
        return {"label": label, "probability": probability, "scores": ranked}

    def _value(self, row: Tensor, top: int | None) -> dict[str, Any]:
        options = self.model.score.options
        values = [options.mean + options.std * score for score in row.tolist()]
        return {"value": values[0]} if len(values) == 1 else {"values": dict(zip(self.labels, values, strict=True))}

    def _spans(self, tags: Sequence[dict[str, Any]]) -> dict[str, Any]:
        if not has_spans(self.labels):
            return {}
        spans = spans_of([tag["tag"] for tag in tags])
        words = [tag["word"] for tag in tags]
        return {"spans": [{**span._asdict(), "text": " ".join(words[span.start : span.end])} for span in spans]}


def batches_of(texts: Iterable[str], size: int) -> Iterable[list[str]]:
    """Lists of `size` texts, as they come."""
    chunk = list[str]()
    for text in texts:
        chunk.append(text)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk
