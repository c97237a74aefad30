# SPDX-License-Identifier: Apache-2.0
"""Tasks of a classifier: labels of texts, tags of words, values of texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from foundling.contracts.records import Result
from foundling.decode.classify import BATCH_SIZE, Classifier
from foundling.errors import ConfigError, DataError
from foundling.evaluate import metrics
from foundling.evaluate.metrics import Figure
from foundling.evaluate.runners import result_of
from foundling.evaluate.task import Task
from foundling.text.cutting import Text
from foundling.text.tags import has_spans
from foundling.weights.directory import weights_hash


class LabelResult(NamedTuple):
    result: Result
    """the main figure, with a score an example for `compare`"""
    figures: dict[str, Figure]
    """all metrics of the task"""
    answers: list[dict[str, Any]]
    """as Classifier.classify gives them"""


def label_task(name: str, examples: Sequence[dict[str, Any]]) -> Task[dict[str, Any]]:
    """Examples {'text', 'label', 'pair'?}; the figure is accuracy."""
    return Task(name, examples, _shown, lambda example, answer: float(answer["label"] == example["label"]))


def value_task(name: str, examples: Sequence[dict[str, Any]]) -> Task[dict[str, Any]]:
    """Examples {'text', 'label', 'pair'?}, a number; the figure is the mean absolute error."""
    return Task(
        name, examples, _shown, lambda example, answer: abs(answer["value"] - example["label"]),
        metric="mean absolute error", lower_is_better=True,
    )  # fmt: skip


def tag_task(name: str, examples: Sequence[dict[str, Any]]) -> Task[dict[str, Any]]:
    """Examples {'words', 'tags'}; the score of a sentence is the F1 of its spans, 1 where there is none on either side,
    or for tags without spans its share of right words. The figure is over all spans or words."""
    spans = has_spans([tag for example in examples for tag in example["tags"]])
    return Task(
        name, examples, lambda example: " ".join(example["words"]), _sentence_f1 if spans else _sentence_accuracy,
        metric="span F1" if spans else "accuracy",
    )  # fmt: skip


def classify(
    classifier: Classifier,
    task: Task[dict[str, Any]],
    *,
    batch_size: int = BATCH_SIZE,
    subject: str = "model",
    model_hash: str | None = None,
) -> LabelResult:
    """Runs one of these tasks. ConfigError where the head is for another kind of task, DataError without examples."""
    if not task.examples:
        raise DataError(f"task {task.name!r} has no examples; give at least one")
    tags, example = classifier.task == "tag", task.examples[0]
    if tags != ("tags" in example) or (classifier.task == "regress") != isinstance(example.get("label"), int | float):
        raise ConfigError(
            f"task {task.name!r} is not for a head that is to {classifier.task}; see evaluate.tasks.labels"
        )
    if tags:
        answers = classifier.tag([example["words"] for example in task.examples], batch_size=batch_size)
    else:
        answers = classifier.classify([_text(example) for example in task.examples], batch_size=batch_size)
    scores = [float(task.score(example, answer)) for example, answer in zip(task.examples, answers, strict=True)]
    result = result_of(task, scores, subject, model_hash or weights_hash(classifier.model), classify)
    figures = figures_of(task, answers)
    main = figures[task.metric]  # of words or spans, where scores are of sentences
    result = replace(result, value=main.value, low=main.low, high=main.high, interval=main.interval)
    return LabelResult(result, figures, answers)


def figures_of(task: Task[dict[str, Any]], answers: Sequence[dict[str, Any]]) -> dict[str, Figure]:
    """All metrics of these answers, by name, the task's own one among them."""
    if task.metric == "mean absolute error":
        values = [float(e["label"]) for e in task.examples], [answer["value"] for answer in answers]
        return {
            task.metric: metrics.mae(*values), "root mean squared error": metrics.rmse(*values),
            "R²": metrics.r_squared(*values), "rank correlation": metrics.spearman(*values),
        }  # fmt: skip
    if "tags" not in task.examples[0]:
        labels = [e["label"] for e in task.examples], [answer["label"] for answer in answers]
        return {"accuracy": metrics.accuracy(*labels), "macro F1": metrics.macro_f1(*labels),
                "Matthews": metrics.matthews(*labels)}  # fmt: skip
    truth, found = [list(e["tags"]) for e in task.examples], [_tags(answer) for answer in answers]
    words = [tag for tags in truth for tag in tags], [tag for tags in found for tag in tags]
    figures = {"accuracy": metrics.accuracy(*words), "macro F1": metrics.macro_f1(*words)}
    return {"span F1": metrics.span_f1(truth, found), **figures} if task.metric == "span F1" else figures


def _text(example: dict[str, Any]) -> Text:
    return (example["text"], example["pair"]) if "pair" in example else example["text"]


def _shown(example: dict[str, Any]) -> str:
    text = _text(example)
    return text if isinstance(text, str) else "\n".join(text)


def _tags(answer: dict[str, Any]) -> list[str]:
    return [tag["tag"] for tag in answer["tags"]]


def _sentence_f1(example: dict[str, Any], answer: dict[str, Any]) -> float:
    hits, size = metrics.span_counts(example["tags"], _tags(answer))
    return 2 * hits / size if size else 1.0


def _sentence_accuracy(example: dict[str, Any], answer: dict[str, Any]) -> float:
    right = [a == b for a, b in zip(example["tags"], _tags(answer), strict=True)]
    return sum(right) / len(right) if right else 1.0
