# SPDX-License-Identifier: Apache-2.0
"""Texts in, labels out: a model with a head and its tokenizer predict classes, tags of words with their spans, or
values."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from foundling.adapt.heads import REWARD
from foundling.blocks.heads import scores
from foundling.decode.prompts import pad_prompts
from foundling.errors import GenerationError, WeightsError
from foundling.limits import PREDICTIONS, SEQ_LEN, TEXTS_AT_ONCE
from foundling.models import family_of
from foundling.runtime.hub import local_directory
from foundling.runtime.mode import evaluation_mode
from foundling.text import Tokenizer
from foundling.text.cutting import Text, encode_within
from foundling.text.framing import Framing
from foundling.text.tags import encode_words, has_spans, spans_of
from foundling.weights.loading import files_of, load
from foundling.weights.text_spec import text_spec

BATCH_SIZE = 32
TOKENS_AT_ONCE = 1 << 14
"""of one forward, so that one long text does not make 32 rows as long"""
WIDTHS = 16
"""Rows are as wide as a multiple of this: for ever new shapes the allocator keeps ever new memory."""


@dataclass
class Classifier:
    model: Any
    tokenizer: Tokenizer
    max_len: int | None = None
    """tokens that a text is cut to; at most, and by default, what the model reads"""

    def __post_init__(self) -> None:
        if self.max_len is not None:
            SEQ_LEN.check(self.max_len, "max_len", GenerationError)
        if not self.model.capabilities.task:
            name = type(self.model).__name__
            raise GenerationError(f"this {name} has no head, so it is no classifier; foundling finetune makes it one")
        self._spec = text_spec(self.model)

    @classmethod
    def load(cls, directory: str | Path, *, base: str | Path | None = None, max_len: int | None = None) -> Classifier:
        """From a directory of Foundling or transformers, or of an adapter (see `load`, with its `base`). WeightsError,
        with the way out, for one without a head."""
        directory = local_directory(directory)
        model = load(directory, base=base, merged=True)
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
        return cls(model, Tokenizer.load(files_of(directory, base)), max_len)

    @property
    def task(self) -> str:
        return self.model.capabilities.task

    @property
    def labels(self) -> tuple[str, ...]:
        return self.model.score.options.labels

    def classify(
        self, texts: Sequence[Text], *, top: int | None = None, batch_size: int = BATCH_SIZE
    ) -> list[dict[str, Any]]:
        """One answer a text, or a pair of texts, in their order; {'cut': True} beside it where it is longer than
        `longest` tokens, of a pair the longer text first.

        classify: {'label', 'probability', 'scores': {label: probability}}, the `top` likeliest, all by default.
        regress: {'value'}, or {'values': {label: value}} for several.
        A reward model reads pairs of what was asked and the answer.
        tag: {'tags': [{'word', 'tag', 'probability'}]} of the words between spaces, and where tags are of spans
        {'spans': [{'kind', 'start', 'end', 'text'}]}, in words; of texts alone, GenerationError for a pair."""
        if top is not None:
            PREDICTIONS.check(top, "top", GenerationError)
        if self.task == "tag":
            words = [text.split() for text in texts if isinstance(text, str)]
            if len(words) < len(texts):
                raise GenerationError("this model tags the words of a text, not of a pair; give texts alone")
            return self.tag(words, batch_size=batch_size)
        if self.scores_chats:
            rows = [self._chat(text) for text in texts]
            return [self._value(row, top) for row in self.predict(rows, batch_size=batch_size)]
        encoded, virtual = encode_within(self.tokenizer, texts, self.longest), self._spec.virtual
        opening = self.tokenizer.eos if self.tokenizer.bos is None else self.tokenizer.bos
        types = None
        if self._spec.reads_types and any(any(one.types) for one in encoded):
            types = [[*(0 for _ in virtual), *(one.types or [0])] for one in encoded]
        rows = [[*virtual, *(one.ids or [opening])] for one in encoded]
        found = self.predict(rows, types, batch_size=batch_size)
        answer = self._value if self.task == "regress" else self._classes
        return [answer(row, top) | ({"cut": True} if one.cut else {}) for row, one in zip(found, encoded, strict=True)]

    @property
    def scores_chats(self) -> bool:
        """Whether it is a reward model (objectives/preference.py)."""
        return self.labels == (REWARD,) and self.tokenizer.chat_template is not None

    def score_chats(self, chats: Sequence[Sequence[Mapping[str, Any]]]) -> list[float | None]:
        """By a reward model, of conversations that end with an answer: a number for each, None where it is longer than
        `longest` tokens. DataError where the chat template refuses one."""
        framing, rows = Framing(self.tokenizer, self._spec), list[list[int] | None]()
        for chat in chats:
            ids, _ = framing.chat_example(chat)
            rows.append([*self._spec.virtual, *ids] if len(ids) <= self.longest else None)
        values = iter(self.predict([row for row in rows if row is not None]))
        return [None if row is None else float(self._value(next(values), None)["value"]) for row in rows]

    def _chat(self, text: Text) -> list[int]:
        """GenerationError for a text alone, and for a pair that is longer than the model reads."""
        if isinstance(text, str):
            raise GenerationError("a reward model scores an answer to what was asked: give both (--pair ANSWER)")
        turns = [{"role": role, "content": part} for role, part in zip(("user", "assistant"), text, strict=True)]
        ids, _ = Framing(self.tokenizer, self._spec).chat_example(turns)
        if len(ids) > self.longest:
            raise GenerationError(f"a conversation has {len(ids):,} tokens, the reward model reads {self.longest:,}")
        return [*self._spec.virtual, *ids]

    def tag(self, sentences: Sequence[Sequence[str]], *, batch_size: int = BATCH_SIZE) -> list[dict[str, Any]]:
        """As `classify`, of sentences whose words are divided already. A word that was cut off, or that has no token of
        its own, is tagged as the first label with probability None."""
        encoded, virtual = encode_words(self.tokenizer, sentences, self.longest), self._spec.virtual
        found = self.predict([[*virtual, *one.ids] for one in encoded], batch_size=batch_size)
        answers = []
        for words, one, logits in zip(sentences, encoded, found, strict=True):
            probs = logits[len(virtual) :].softmax(-1)
            tags = []
            for word, first in zip(words, one.firsts, strict=True):
                if first is not None:
                    best = int(probs[first].argmax())
                    tags.append({"word": word, "tag": self.labels[best], "probability": float(probs[first, best])})
                else:
                    tags.append({"word": word, "tag": self._outside, "probability": None})
            answers.append({"tags": tags} | self._spans(tags) | ({"cut": True} if one.cut else {}))
        return answers

    @torch.inference_mode()
    def predict(
        self,
        rows: Sequence[Sequence[int]],
        types: Sequence[Sequence[int]] | None = None,
        *,
        batch_size: int = BATCH_SIZE,
    ) -> list[Tensor]:
        """What the head predicts of each list of ids, on the CPU: (n,), or (T, n) of its tokens. `types`: which text of
        a pair each id is of. Those of about one length are read together, at most TOKENS_AT_ONCE with padding unless
        one alone has more. GenerationError for a row without a token, or scores that are not finite."""
        TEXTS_AT_ONCE.check(batch_size, "batch_size", GenerationError)
        if not all(rows):
            raise GenerationError("a text has no token; leave out empty texts")
        found, device = dict[int, Tensor](), next(self.model.parameters()).device
        with evaluation_mode(self.model):
            for chosen in groups_within([len(row) for row in rows], batch_size, TOKENS_AT_ONCE):
                longest = max(len(rows[i]) for i in chosen)
                width = min(-(-longest // WIDTHS) * WIDTHS, self.model.config.max_seq_len)
                tokens, documents = pad_prompts([rows[i] for i in chosen], device, width)
                batch = {"tokens": tokens, "documents": documents}
                if types is not None:
                    batch["token_types"], _ = pad_prompts([types[i] for i in chosen], device, width)
                out = scores(self.model, batch).cpu()
                if not out.isfinite().all():
                    raise GenerationError("the model's scores are not finite; is the model damaged?")
                for place, i in enumerate(chosen):
                    found[i] = out[place, : len(rows[i])] if self.task == "tag" else out[place]
        return [found[i] for i in range(len(rows))]

    @property
    def longest(self) -> int:
        """Tokens of a text that are read, special ones included."""
        return min(self.max_len or self._most, self._most)

    @property
    def _most(self) -> int:
        return self.model.config.max_seq_len - len(self._spec.virtual)

    @property
    def _outside(self) -> str:
        return "O" if has_spans(self.labels) else self.labels[0]

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


def groups_within(lengths: Sequence[int], most_rows: int, most_tokens: int) -> Iterator[list[int]]:
    """The places of all lengths, shortest first, in groups of at most `most_rows`, and of at most `most_tokens` as
    padded rows unless one alone is longer."""
    group = list[int]()
    for i in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        if group and (len(group) == most_rows or (len(group) + 1) * lengths[i] > most_tokens):
            yield group
            group = []
        group.append(i)
    if group:
        yield group


def batches_of(texts: Iterable[Text], size: int) -> Iterable[list[Text]]:
    """Lists of `size` texts, as they come."""
    chunk = list[Text]()
    for text in texts:
        chunk.append(text)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk
