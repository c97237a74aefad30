# SPDX-License-Identifier: Apache-2.0
"""Whether a model answers the same where it should: asked twice, in other words, in another format, with the options in
another order, and on other hardware (dtype, threads, batch size, device)."""

from __future__ import annotations

import json
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, NamedTuple

from foundling.decode.response_cache import inconsistency
from foundling.errors import DataError
from foundling.evaluate.intervals import BOOTSTRAP, bootstrap, interval_of
from foundling.evaluate.metrics import Figure
from foundling.evaluate.subject import GenerateRequest, LikelihoodRequest, Prompt, Subject

COVERED = 0.95
"""confidence of what `Changes.covered` says"""

PARAPHRASES: dict[str, str] = {
    "please": "Please do the following. {}",
    "question before": "Here is my question: {}",
    "polite": "{} Thank you.",
    "careful": "{} Think about it before you answer.",
}
FORMATS: dict[str, str] = {
    "markdown": "## Task\n\n{}\n\n## Answer\n",
    "numbered": "1. Read this: {}\n2. Answer it.",
    "quoted": "> {}\n\nAnswer the above.",
}


def variants(prompt: Prompt) -> dict[str, Prompt]:
    """name -> a prompt that asks for the same: "as is", in other words, in other formats, with other case and white
    space. Of a conversation, the last message of the user is changed."""
    text = prompt if isinstance(prompt, str) else _last_user(prompt)["content"]
    texts = {
        "as is": text,
        "trailing space": f"{text} ",
        "trailing newline": f"{text}\n",
        "leading space": f" {text}",
        "first letter in lower case": text[:1].lower() + text[1:],
        "upper case": text.upper(),
        "JSON": json.dumps({"task": text}, ensure_ascii=False),
    }
    texts |= {name: form.replace("{}", text) for name, form in (PARAPHRASES | FORMATS).items()}
    return {name: _with_text(prompt, changed) for name, changed in texts.items()}


def orders(options: Sequence[str]) -> dict[str, list[int]]:
    """name -> the numbers of the options in the order to show them: each option stands once at each place. What answers
    say is to be mapped back: place p shows option order[p]."""
    n = len(options)
    return {f"from option {first + 1}": [(first + i) % n for i in range(n)] for first in range(n)}


class Consistency(NamedTuple):
    """How far answers to the same prompts differ between conditions."""

    different: Figure
    """share of prompts whose answers are not all the same"""
    pairs: float
    """share of pairs of conditions with different answers, over all prompts"""
    by_condition: dict[str, Figure]
    """share of prompts with another answer than under the first condition"""
    n: int


def agreement(answers_by_condition: Mapping[str, Sequence[Hashable]]) -> Consistency:
    """Of answers under two or more conditions, each in the order of the prompts. DataError for fewer, for none, and for
    unequal numbers."""
    columns = list(answers_by_condition.values())
    n = len(columns[0]) if columns else 0
    if len(columns) < 2 or not n or any(len(column) != n for column in columns):
        raise DataError(
            f"answers under {len(columns)} conditions ({', '.join(str(len(c)) for c in columns)}); expected two or more"
            " conditions with one answer for each prompt"
        )
    groups = list(zip(*columns, strict=True))
    (_, first), *others = answers_by_condition.items()
    return Consistency(
        _share([float(len(set(group)) > 1) for group in groups]),
        inconsistency(groups),
        {name: _share([float(a != b) for a, b in zip(first, column, strict=True)]) for name, column in others},
        n,
    )


class Changes(NamedTuple):
    """Of log-probabilities under one condition, against the reference."""

    mean: Figure
    """of |Δ|, in nats"""
    largest: float
    """of |Δ|, in nats"""
    covered: float
    """With 95 % confidence this share of such requests changes by no more than `largest` (Wilks 1941): 0.05^(1/n)"""
    worst: int
    """number of the request with the largest change"""


class ConsistencyReport(NamedTuple):
    reference: str
    answers: Consistency | None
    """of generated texts; None where none was asked for"""
    logprobs: dict[str, Changes]
    """condition -> changes; {} where none was asked for"""
    preferred: Consistency | None
    """of which continuation of a prompt is the likeliest; None where no prompt has two"""


def measure(
    subjects: Mapping[str, Subject], requests: Sequence[GenerateRequest | LikelihoodRequest]
) -> ConsistencyReport:
    """Asks all subjects (one model under several conditions: dtype, threads, batch size, device, or the same twice) the
    same requests, and compares with the first. DataError for fewer than two subjects or no request."""
    if len(subjects) < 2 or not requests:
        raise DataError(f"{len(subjects)} conditions, {len(requests)} requests; expected two conditions and a request")
    generated = [request for request in requests if isinstance(request, GenerateRequest)]
    scored = [request for request in requests if isinstance(request, LikelihoodRequest)]
    texts: dict[str, list[str]] = {}
    logprobs: dict[str, list[float]] = {}
    for name, subject in subjects.items():
        if generated:
            answers = dict(subject.generate(generated))
            texts[name] = [answers[i].text for i in range(len(generated))]
        if scored:
            values = dict(subject.loglikelihood(scored))
            logprobs[name] = [values[i].logprob for i in range(len(scored))]
    reference = next(iter(subjects))
    return ConsistencyReport(
        reference,
        agreement(texts) if generated else None,
        {name: changes(logprobs[reference], row) for name, row in logprobs.items() if name != reference},
        _preferred(scored, logprobs),
    )


def changes(before: Sequence[float], after: Sequence[float]) -> Changes:
    """DataError for unequal numbers, or none."""
    if len(before) != len(after) or not before:
        raise DataError(f"{len(before)} and {len(after)} log-probabilities; expected as many, and at least one")
    sizes = [0.0 if a == b else abs(a - b) for a, b in zip(before, after, strict=True)]  # two infinities are equal
    ends = bootstrap(sizes)  # Wilson's interval would take sizes of 0 and 1 for shares
    low, high, method = (*ends, BOOTSTRAP) if ends else (None, None, "")
    largest = max(sizes)
    covered = (1 - COVERED) ** (1 / len(sizes))
    return Changes(Figure(sum(sizes) / len(sizes), low, high, method), largest, covered, sizes.index(largest))


def _preferred(scored: Sequence[LikelihoodRequest], logprobs: dict[str, list[float]]) -> Consistency | None:
    by_prompt: dict[str, list[int]] = {}
    for i, request in enumerate(scored):
        by_prompt.setdefault(json.dumps(request.prompt, sort_keys=True), []).append(i)
    groups = [places for places in by_prompt.values() if len(places) > 1]
    if not groups:
        return None
    return agreement({name: [max(places, key=row.__getitem__) for places in groups] for name, row in logprobs.items()})


def _last_user(messages: Sequence[Any]) -> Any:
    for message in reversed(messages):
        if message["role"] == "user":
            return message
    raise DataError("a conversation without a message of the user; add one")


def _with_text(prompt: Prompt, text: str) -> Prompt:
    if isinstance(prompt, str):
        return text
    last = _last_user(prompt)
    return [{"role": m["role"], "content": text} if m is last else m for m in prompt]


def _share(values: list[float]) -> Figure:
    return Figure(sum(values) / len(values), *interval_of(values))
