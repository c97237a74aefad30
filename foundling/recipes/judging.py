# SPDX-License-Identifier: Apache-2.0
"""What a finetuning is measured by: the metric of the task on held-out examples, and answers before and after."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from foundling.contracts.records import Metric, Result
from foundling.data.encode import prompt_ids
from foundling.data.encoded import EncodedExamples, EncodedSplit
from foundling.data.examples import Example, Examples
from foundling.data.subset import Subset
from foundling.data.transforms.examples import example_batches
from foundling.data.transforms.preference import comparison_batches, comparisons_of, subset_of
from foundling.decode import plain
from foundling.decode.classify import Classifier
from foundling.decode.request import Request, build_sampling
from foundling.evaluate.metrics import span_f1
from foundling.evaluate.perplexity import score
from foundling.evaluate.runners import judge
from foundling.evaluate.subject import GeneratedText
from foundling.evaluate.task import Task, exact_match
from foundling.evaluate.tasks.labels import classify, label_task, tag_task, value_task
from foundling.recipes.finetune_data import with_virtual
from foundling.recipes.preferences import POLICIES, accuracy_of, preferences
from foundling.recipes.recipe import PREFERENCE_KINDS
from foundling.runtime.device import Runtime
from foundling.runtime.files import read_json
from foundling.runtime.hub import local_directory
from foundling.runtime.memory import trim_memory
from foundling.text.framing import Framing
from foundling.text.tags import has_spans
from foundling.weights.directory import hash_of
from foundling.weights.generation import default_generation_config

ROWS, ROW_TOKENS, PROBED = 16, 16384, 4
"""examples that are read at once, at most, and tokens; tokens of an answer that are timed"""
N_ANSWERED, N_COMPARED, MAX_ANSWER, SPARE_TOKENS = 50, 5, 256, 8
"""held-out examples that are answered, and shown; the most tokens of an answer, and how many more than the reference
has: one that is longer is not the same"""
METRICS = {
    "chat": Metric("loss", "nats per answer token", True, "The mean negative log-probability of a token of the "
                   "answers, given all that stands before it."),
    "text": Metric("loss", "nats per token", True, "The mean negative log-probability of a token of held-out text."),
    "seq2seq": Metric("loss", "nats per target token", True, "The mean negative log-probability of a token of the "
                      "target, given its source."),
    "classify": Metric("accuracy", "accuracy", False, "The share of held-out texts whose label is right."),
    "tag": Metric("accuracy", "accuracy", False, "The share of held-out words whose tag is right."),
    "reward": Metric("accuracy", "accuracy", False, "The share of held-out comparisons whose better completion has the "
                     "larger reward."),
    **dict.fromkeys(("dpo", "ipo"), Metric("accuracy", "accuracy", False, "The share of held-out comparisons whose "
                    "better completion has become more likely than the other, relative to the model before.")),
    "regress": Metric("root mean squared error", "root mean squared error", True, "Of the values of held-out "
                      "examples, in their unit."),
}  # fmt: skip
SPAN_F1 = Metric("span F1", "F1 of spans", False, "The harmonic mean of precision and recall of whole spans, as "
                 "conlleval counts them.")  # fmt: skip
PIPELINES = {"classify": "text-classification", "tag": "token-classification", "regress": "text-classification",
             "seq2seq": "text2text-generation", "reward": "text-classification"}  # fmt: skip
TASKS = {"classify": label_task, "tag": tag_task, "regress": value_task}
BEFORE, AFTER = "before", "model"
"""subjects of results"""


@dataclass
class Measured:
    figures: dict[str, float]
    results: list[Result] = field(default_factory=list)
    asked: list[Example] = field(default_factory=list)
    """the first held-out examples that can be answered"""
    answers: list[str] = field(default_factory=list)
    """to these"""


@dataclass
class Judge:
    examples: Examples
    encoded: EncodedExamples
    framing: Framing
    objective: Any
    runtime: Runtime
    start_id: int = 0
    """what a decoder that reads a source begins with"""
    kind: Any = ""
    """what is learnt (default: the kind of the examples)"""

    def __post_init__(self) -> None:
        self.kind = self.kind or self.examples.kind
        places = self.encoded.held_out.places.tolist()
        if self.kind in PREFERENCE_KINDS:  # a text for each completion
            places = list(dict.fromkeys(places))
        self.held_out: list[Example] = [self.examples.held_out[i] for i in places]
        spans = self.kind == "tag" and has_spans([tag for e in self.held_out for tag in e.fields["tags"]])
        self.metric = SPAN_F1 if spans else METRICS[self.kind]
        self.loss_unit = (
            self.metric.name
            if self.metric.key == "loss"
            else f"nats per {'prompt' if self.kind in PREFERENCE_KINDS else 'example'}"
        )
        self.pipeline_tag = PIPELINES.get(self.kind, "text-generation")
        n = max(map(len, comparisons_of(self.encoded.held_out))) if self.kind in PREFERENCE_KINDS else 1
        self.rows = max(1, min(ROWS, ROW_TOKENS // self.encoded.seq_len) // n)

    def loss_on(self, split: EncodedSplit) -> Callable[[Any], float]:
        if self.kind in PREFERENCE_KINDS:
            batches = comparison_batches(split, batch_size=self.rows, whole=self.kind == "reward")
        else:
            batches = example_batches(split, batch_size=self.rows, start_id=self.start_id)

        def measure(model: Any) -> float:
            read = with_virtual(batches, model)
            trim_memory()  # what training has freed would be held beside what this takes, and the other way round
            loss = score(model, self.objective, (read[n] for n in range(len(batches))), None, self.runtime).loss
            trim_memory()
            return loss

        return measure

    def measure(self, model: Any, subject: str = AFTER) -> Measured:
        """The figures of the held-out examples. The model is in evaluation mode afterwards."""
        model.eval()
        measured = Measured({"loss": self.loss_on(self.encoded.held_out)(model)})
        with torch.inference_mode(), self.runtime.autocast(), torch.compiler.set_stance("force_eager"):
            if self.kind in ("chat", "seq2seq"):
                self._answer(model, measured, subject)
            elif self.kind in PREFERENCE_KINDS:
                self._compare(model, measured, subject)
            elif self.kind != "text":
                self._classify(model, measured, subject)
        trim_memory()
        return measured

    def probe(self, model: Any) -> tuple[float, float]:
        """(seconds of `measure`, seconds of the loss of one example), by some held-out examples."""
        model.eval()
        n = min(len(self.held_out), 2 * self.rows)
        choose = subset_of if self.kind in PREFERENCE_KINDS else Subset
        loss = self.loss_on(choose(self.encoded.held_out, range(n)))
        loss(model)
        start = time.perf_counter()
        loss(model)
        per_example = (time.perf_counter() - start) / n
        passes = 2 if self.kind in (*TASKS, *PREFERENCE_KINDS) else 1
        answers = 0.0
        if self.kind in ("chat", "seq2seq", *POLICIES):
            asked = self._asked(model)[: N_COMPARED if self.kind in POLICIES else None]
            with torch.inference_mode(), self.runtime.autocast(), torch.compiler.set_stance("force_eager"):
                marks = list[float]()
                for n_tokens in (1, 1, 1 + PROBED):  # the first warms up
                    requests = [request for _, request in asked[: self.rows]]
                    requests = [replace(r, max_tokens=min(n_tokens, r.max_tokens)) for r in requests]
                    plain.complete(model, requests)
                    marks.append(time.perf_counter())
            read, read_and_answered = marks[1] - marks[0], marks[2] - marks[1]
            a_token = max(0.0, read_and_answered - read) / PROBED
            for at in range(0, len(asked), self.rows):
                longest = max(request.max_tokens for _, request in asked[at : at + self.rows])
                answers += read + a_token * (longest - 1)
        trim_memory()
        return passes * per_example * len(self.held_out) + answers, per_example

    def _classify(self, model: Any, measured: Measured, subject: str) -> None:
        task = TASKS[self.kind](f"held-out examples of {self.kind}", [_plain(e) for e in self.held_out])
        classifier = Classifier(model, self.framing.tokenizer, max_len=self.encoded.seq_len)
        digest = hash_of((name, p.detach()) for name, p in sorted(model.named_parameters()) if p.requires_grad)
        done = classify(classifier, task, subject=subject, model_hash=digest)
        measured.results.append(replace(done.result, scores=[]))
        measured.figures |= {name: figure.value for name, figure in done.figures.items() if figure.value is not None}
        measured.asked, measured.answers = self.held_out, [_said(answer) for answer in done.answers[:N_COMPARED]]

    def _compare(self, model: Any, measured: Measured, subject: str) -> None:
        """Which completions the model prefers; of a policy also what it answers."""
        values = preferences(model, self.encoded.held_out, self.kind, self.rows, self.runtime)
        if self.kind in POLICIES:  # as its Bradley-Terry model has them
            values = [self.objective.beta * each for each in values]
        result = accuracy_of(values, subject, expects=self.kind != "ipo")
        measured.results.append(result)
        measured.figures |= {"accuracy": result.value or 0.0, "margin": result.figures["margin"][0] or 0.0}
        if self.kind in POLICIES:
            asked = self._asked(model)[:N_COMPARED]
            measured.asked = [example for example, _ in asked]
            measured.answers = [c.text or "" for c in plain.complete(model, [request for _, request in asked])]

    def _asked(self, model: Any) -> list[tuple[Example, Request]]:
        """The first held-out examples that an answer ends, and what asks for it greedily."""
        sampling = build_sampling(None, {"temperature": 0.0})
        sampling = replace(sampling, logit_bias=dict.fromkeys(self.framing.unnamed_rows(), float("-inf")))
        asked = []
        for example in self.held_out:
            if prompt_of(example) is None:
                continue
            ids = prompt_ids(example, self.examples.kind, self.framing)
            if self.framing.spec.reads_source:
                ids = ids[: self.encoded.seq_len]  # as in training
            n_left = model.config.max_seq_len - (0 if self.framing.spec.reads_source else len(ids))
            if n_left < 1:
                continue
            most = len(self.framing.tokenizer.encode(reference_of(example))) + SPARE_TOKENS
            most = max(1, min(MAX_ANSWER, most, n_left))
            asked.append((example, Request(ids, most, sampling, 0, self.framing.ends, (), self.framing.answer(ids))))
            if len(asked) == N_ANSWERED:
                break
        return asked

    def _answer(self, model: Any, measured: Measured, subject: str) -> None:
        """Answers some held-out examples; the share of them that the data has word for word."""
        asked, texts = self._asked(model), list[GeneratedText]()
        for at in range(0, len(asked), self.rows):
            done = plain.complete(model, [request for _, request in asked[at : at + self.rows]])
            texts += [GeneratedText(c.text or "", c.finish_reason == "length") for c in done]
        measured.asked = [example for example, _ in asked]
        task = Task(
            "answers as in the data, word for word", measured.asked, _shown_prompt, exact_match(reference_of),
            metric="share",
        )  # fmt: skip
        measured.results.append(replace(judge(task, texts, subject=subject), scores=[]))
        measured.answers = [text.text for text in texts[:N_COMPARED]]

    def sentence(self, before: Measured, after: Measured, when: str = "before") -> str:
        key = self.metric.key
        return f"held out: {self.metric.name} {after.figures[key]:.4g}, {when} {before.figures[key]:.4g}"

    def baselines(self, before: Measured, probed: bool = False) -> dict[str, float]:
        """The model before, or where it had no head, what needs no model: the most frequent label, the mean value; and
        a linear probe, where the head began as one."""
        probe = {"a linear probe": before.figures[self.metric.key]} if probed else {}
        return self._without_model(before) | probe

    def _without_model(self, before: Measured) -> dict[str, float]:
        if self.metric.key == "loss":
            return {"before": before.figures["loss"]}
        if self.kind in PREFERENCE_KINDS:
            return {"chance": 0.5}
        if self.kind == "regress":
            values = [float(e.fields["value"]) for e in self.examples.train]
            mean = statistics.fmean(values)
            squares = [(float(e.fields["value"]) - mean) ** 2 for e in self.held_out]
            return {"the mean value": statistics.fmean(squares) ** 0.5}
        counts = self.examples.label_counts
        most = max(counts, key=counts.__getitem__)
        if self.metric is SPAN_F1:
            tags = [e.fields["tags"] for e in self.held_out]
            return {f"always '{most}'": span_f1(tags, [[most] * len(one) for one in tags]).value or 0.0}
        true = [
            label for e in self.held_out for label in ([e.fields["label"]] if "label" in e.fields else e.fields["tags"])
        ]
        return {f"always '{most}'": true.count(most) / len(true)}

    def comparisons(self, before: Measured, after: Measured) -> list[dict[str, str]]:
        return [
            {"prompt": _shown_prompt(example), "reference": reference_of(example), "before": old, "after": new}
            for example, old, new in zip(after.asked, before.answers, after.answers, strict=False)
        ]

    @property
    def next_command(self) -> tuple[str, str]:
        if self.kind == "reward":
            return "foundling classify {} 'a question' --pair 'an answer'", "score an answer"
        if self.kind in PIPELINES and self.kind != "seq2seq":
            return "foundling classify {} 'a text'", "label a text"
        if self.kind == "seq2seq":
            return "foundling generate {} --prompt 'a source'", "answer a source"
        return "foundling chat {}", "talk to it"


def generation_of(model: Any, framing: Framing, directory: str) -> dict[str, Any] | None:
    """generation_config.json: the base's own, or what the tokenizer says, with the ends of the answers."""
    if not model.capabilities.generates:
        return None
    file = local_directory(directory) / "generation_config.json"
    values = read_json(file) if file.exists() else default_generation_config(model, framing.tokenizer)
    return values | {"eos_token_id": list(framing.ends)}


def prompt_of(example: Example) -> str | None:
    """What is asked, where an answer of the assistant ends the example."""
    messages = example.fields.get("messages")
    if messages is None:
        return example.fields.get("source")
    if "completions" in example.fields:
        return str(messages[-1]["content"])
    return str(messages[-2]["content"]) if len(messages) > 1 and messages[-1]["role"] == "assistant" else None


def reference_of(example: Example) -> str:
    """The answer that the data has."""
    fields = example.fields
    if "completions" in fields:
        return str(fields["completions"][0])
    if "messages" in fields:
        return str(fields["messages"][-1]["content"])
    answer = next(fields[name] for name in ("target", "label", "value", "tags", "text") if name in fields)
    return " ".join(answer) if isinstance(answer, list) else str(answer)


def _plain(example: Example) -> dict[str, Any]:
    """As the tasks of labels read it."""
    fields = example.fields
    return {**fields, "label": fields["value"]} if "value" in fields else dict(fields)


def _said(answer: dict[str, Any]) -> str:
    if "tags" in answer:
        return " ".join(tag["tag"] for tag in answer["tags"])
    return f"{answer['value']:.4g}" if "value" in answer else f"{answer['label']} ({answer['probability']:.0%})"


def _shown_prompt(example: Example) -> str:
    fields = example.fields
    return prompt_of(example) or str(fields.get("text") or " ".join(fields.get("words", [])))
