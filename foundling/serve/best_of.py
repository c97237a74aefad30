# SPDX-License-Identifier: Apache-2.0
"""best_of: of several completions of a request the best n, by the reward model of the server, or else by mean
log-probability."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from foundling.decode.classify import Classifier
from foundling.decode.request import Completion
from foundling.serve.generation import Prompt
from foundling.text.framing import Framing
from foundling.weights.text_spec import text_spec

T = TypeVar("T")
MARK = "\ue000answer\ue001"
"""stands for an answer where a template is asked what it writes after one"""


def best(values: Sequence[T], scores: Sequence[float], n: int) -> list[T]:
    """The n with the highest scores, the highest first, the earlier of equal ones; NaN ranks last."""
    order = sorted(range(len(values)), key=lambda i: -math.inf if math.isnan(scores[i]) else scores[i], reverse=True)
    return [values[i] for i in order[:n]]


def mean_logprobs(completions: Sequence[Completion]) -> list[float]:
    return [one.mean_logprob if one.tokens else -math.inf for one in completions]


def chat_rewards(classifier: Classifier, messages: Sequence[Mapping[str, Any]], texts: Sequence[str]) -> list[float]:
    """Of answers to a conversation; NaN for an empty one, and for one that is longer than a reward model reads. A
    classifier that was not made for conversations reads the texts of the messages, one after another."""
    if not classifier.scores_chats:
        before = "".join(f"{message.get('content') or ''}\n\n" for message in messages)
        return _values(classifier, [before + text for text in texts])

    def score(some: Sequence[str]) -> list[float | None]:
        return classifier.score_chats([[*messages, {"role": "assistant", "content": text}] for text in some])

    return _of_texts(texts, score)


def prompt_rewards(classifier: Classifier, prompt: Prompt, texts: Sequence[str]) -> list[float]:
    """Of continuations of a text. A prompt of ids with special tokens is a conversation that its client has rendered: a
    reward model reads it as it stands, with the answer and what its own template writes after one. Any other prompt is
    what a user asked."""
    before = prompt.decode.before
    if not classifier.scores_chats:
        return _values(classifier, [before + text for text in texts])
    if not _is_rendered(prompt):
        return chat_rewards(classifier, [{"role": "user", "content": before}], texts)
    framing = Framing(classifier.tokenizer, text_spec(classifier.model))
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": MARK}]
    after = framing.render_chat(turns, add_generation_prompt=False).rpartition(MARK)[2]
    rendered = prompt.served.tokenizer.backend.decode(_without_virtual(prompt), skip_special_tokens=False)

    def score(some: Sequence[str]) -> list[float | None]:
        rows = [framing.marked(rendered + text + after) for text in some]
        longest = classifier.longest + len(framing.spec.virtual)
        values = iter(classifier.predict([row for row in rows if len(row) <= longest]))
        return [float(next(values)[0]) if len(row) <= longest else None for row in rows]

    return _of_texts(texts, score)


def _of_texts(texts: Sequence[str], score: Callable[[Sequence[str]], list[float | None]]) -> list[float]:
    values = iter(score([text for text in texts if text.strip()]) if any(text.strip() for text in texts) else [])
    scores = [next(values) if text.strip() else None for text in texts]
    return [math.nan if value is None else value for value in scores]


def _values(classifier: Classifier, texts: Sequence[str]) -> list[float]:
    """The value of a head with one; of a head with labels the probability of the last label."""
    last = classifier.labels[-1]
    answers = classifier.classify(texts)
    return [answer["value"] if "value" in answer else answer["scores"][last] for answer in answers]


def _without_virtual(prompt: Prompt) -> list[int]:
    return prompt.ids[len(prompt.served.framing.spec.virtual) :]


def _is_rendered(prompt: Prompt) -> bool:
    """Whether it has special tokens beside those that the tokenizer itself puts before a text."""
    tokenizer, ids = prompt.served.tokenizer, _without_virtual(prompt)
    first, last = tokenizer.frame
    usual = {*first, *last, tokenizer.bos, tokenizer.eos}
    return any(i in tokenizer.special and i not in usual for i in ids)
