# SPDX-License-Identifier: Apache-2.0
"""What a run leaves behind for readers: `RunRecord`, and `Result`, one measured figure. Report and card are written
from these alone.

All of it is plain data (numbers, strings, lists, dicts), so that
`RunRecord.from_dict(json.loads(json.dumps(dataclasses.asdict(record))))` is the same record. An unknown number is None;
NaN is shown as None is. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NotRequired, TypedDict


class Setting(TypedDict):
    value: Any
    by: Literal["chosen", "given"]
    """"chosen" by the planner, or "given" by the user."""


class Energy(TypedDict):
    value: float | None
    """joules"""
    source: str
    """how the number came about: "measured by RAPL", "estimated: 28 W × wall time" """


class Cost(TypedDict):
    """What a run takes and what it reaches, predicted or actual. More keys may stand beside these; the figure of the
    main metric is under `Metric.key`, and missing or None where nobody has it."""

    seconds: float | None
    peak_bytes: float | None
    joules: Energy | None
    loss: NotRequired[float | None]
    """on held-out data, in the unit of `history`'s loss"""
    bits_per_byte: NotRequired[float | None]


@dataclass(frozen=True)
class Metric:
    """The main figure on held-out data, which baselines share."""

    key: str
    """where `predicted`, `actual` and `history` hold it: "bits_per_byte" """
    name: str
    """in words, with its unit: "bits per byte", "nats per masked token" """
    lower_is_better: bool = True
    explanation: str = ""
    """one or two sentences for a reader who meets it for the first time"""


BITS_PER_BYTE = Metric(
    "bits_per_byte",
    "bits per byte",
    True,
    "Bits per byte: the bits that it takes to write down one byte of the held-out documents. Fewer is better; 8 is no "
    "compression. The sizes of the models are not counted, and the compressors start from nothing.",
)


class StepRecord(TypedDict):
    """One line of the training log; `tokens` and `seconds` since the first step began. More keys may stand beside."""

    step: int
    tokens: int
    seconds: float
    loss: float | None
    lr: NotRequired[float]
    grad_norm: NotRequired[float | None]
    bits_per_byte: NotRequired[float | None]


class DataSummary(TypedDict):
    source: str
    """as the command named it"""
    documents: int
    bytes: int
    """kept for training; what was removed or held out is counted apart"""
    removed: dict[str, int]
    """documents by reason"""
    held_out_documents: int
    held_out_bytes: int
    hash: str
    licence: str | None
    """as given; None is "not stated", and nothing is guessed"""


class Sample(TypedDict):
    prompt: str
    text: str
    """the output alone, without the prompt"""
    note: str
    """how it was decoded; "" for nothing to say"""


class Comparison(TypedDict):
    """One held-out example, side by side."""

    prompt: str
    reference: str
    """the answer that the data has"""
    before: str
    """what the model answered before training, with a new head as a linear probe"""
    after: str


class Stage(TypedDict):
    """One of several trainings, each of which starts from the model of the one before."""

    name: str
    kind: str
    """what came out of it, in words"""
    examples: str
    """how many of what were learnt from"""
    planned_seconds: float | None
    """before the first step of the first stage"""
    seconds: float | None
    metric: str
    """with its unit"""
    value: float | None


class TokenizerView(TypedDict):
    vocab_size: int
    snippets: list[list[tuple[str, int]]]
    """each a text as its tokens, (text, id)"""
    bytes_per_token: float | None
    tokens_per_word: float | None
    longest: list[str]


class NextCommand(TypedDict):
    command: str
    purpose: str


@dataclass(frozen=True)
class Result:
    """One figure that a task measured, of one subject, with a 95 % confidence interval."""

    task: str
    """what was asked, in words"""
    metric: str
    """what `value` is: "share", "accuracy", "nats per token" """
    value: float | None
    n: int
    """items behind it"""
    subject: str = "model"
    """what was measured: "model", "ngram", "held_out" or a name of one's own"""
    low: float | None = None
    high: float | None = None
    interval: str = ""
    """how `low` and `high` were computed, with its source"""
    lower_is_better: bool = False
    scores: list[float] = field(default_factory=list)
    """of each item, in the task's order: what `evaluate.compare` pairs"""
    hashes: dict[str, str] = field(default_factory=dict)
    """SHA-256 of "model", "task" (its items), "prompt" (as rendered) and "code" (what rendered and scored); "template"
    (how prompts are framed) and "backend" (library, dtype, kernels) of a model that was asked"""
    figures: dict[str, tuple[float | None, float | None, float | None]] = field(default_factory=dict)
    """more figures of the same items: name -> (value, low, high)"""
    cost: dict[str, float] = field(default_factory=dict)
    """what the answers took: "seconds", "prompt_tokens", "new_tokens" """
    weights: list[float] = field(default_factory=list)
    """of each item in the mean; [] where all weigh the same"""


class Item(TypedDict):
    """One example of an evaluation, for a reader and for comparisons."""

    id: str
    prompt: str
    """as rendered"""
    target: str
    """what is right; "" where nothing says so"""
    answer: str
    """the generated text, or the continuation that was preferred"""
    score: float
    choices: NotRequired[list[tuple[str, float]]]
    """of a choice: the texts and their log-probabilities"""
    cut: NotRequired[bool]
    """the answer reached its length before its own end"""


@dataclass(frozen=True)
class EvaluationRecord:
    """All that one evaluation of one subject measured: `evaluation.json` of its directory, with the items beside it."""

    subject: str
    created: str
    """ISO date and time"""
    command: str
    results: list[Result]
    items: dict[str, list[Item]] = field(default_factory=dict)
    """by name of the task; in files of their own, `items/N.jsonl`"""
    settings: dict[str, Any] = field(default_factory=dict)
    machine: dict[str, Any] = field(default_factory=dict)
    about: dict[str, Any] = field(default_factory=dict)
    """of the model: family, params, bytes, directory"""
    notes: list[str] = field(default_factory=list)
    """what a reader should know: items left out, contamination, a template that is missing"""

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> EvaluationRecord:
        results = [Result(**r) if isinstance(r, Mapping) else r for r in values.get("results", [])]
        return cls(**{**values, "results": results})


@dataclass(frozen=True)
class RunRecord:
    """One run of any kind. Report and card know no kind by name: what depends on it is words and data in here."""

    kind: str
    """what came out of it, in words: "base model", "distilled model", "masked language model" """
    name: str
    command: str
    created: str
    """ISO date, or date and time"""
    directory: str
    """the model directory, as a user would name it on a command line"""
    family: str
    params: int
    settings: dict[str, Setting]
    tokens: int
    """trained on, repetitions included"""
    bytes: int
    """of text behind `tokens`, repetitions included"""
    flops: float
    """of this run's training"""
    data: DataSummary
    predicted: Cost
    actual: Cost
    history: list[StepRecord]
    metric: Metric = BITS_PER_BYTE
    loss_unit: str = "nats per token"
    """of `history`'s loss and of `loss` in `predicted` and `actual`"""
    baselines: dict[str, float | str] = field(default_factory=dict)
    """in the main metric, or in words why there is no number. `gzip`, `xz`, `xz_stream` and `ngram` are shown by their
    long names, others by their own"""
    results: list[Result] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    comparisons: list[Comparison] = field(default_factory=list)
    """answers to held-out examples before and after"""
    stages: list[Stage] = field(default_factory=list)
    """of a run that has several; the figures above are of the last one"""
    machine: dict[str, Any] = field(default_factory=dict)
    timeline: list[tuple[str, float]] = field(default_factory=list)
    """(phase, seconds), in order"""
    law_error: float | None = None
    """the share by which the loss law expects its own prediction to be off"""
    no_prediction: str = "no loss prediction for this objective"
    """shown where `predicted` has no loss"""
    tokenizer: TokenizerView | None = None
    next_commands: list[NextCommand] = field(default_factory=list)
    parents: list[str] = field(default_factory=list)
    """what this model descends from, as shown to a reader: a name, a hash"""
    pipeline_tag: str = "text-generation"
    """the hub's word for what the model does: the card shows how to use it by this"""
    limits: list[str] = field(default_factory=list)
    """sentences for the card's section on limits, besides those of every model"""
    intended_use: list[str] = field(default_factory=list)
    """sentences of whoever trained it; [] where nothing was stated"""
    out_of_scope: list[str] = field(default_factory=list)
    """uses that whoever trained it excludes, besides those of every model"""
    carbon: str = ""
    """emissions as somebody stated them, with the source; "" where nobody did"""

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RunRecord:
        """The record from `dataclasses.asdict`, through JSON or not."""
        nested = {"metric": Metric(**values["metric"])} if isinstance(values.get("metric"), Mapping) else {}
        results = [Result(**r) if isinstance(r, Mapping) else r for r in values.get("results", [])]
        timeline = [(phase, seconds) for phase, seconds in values.get("timeline", [])]
        return cls(**{**values, **nested, "results": results, "timeline": timeline})
