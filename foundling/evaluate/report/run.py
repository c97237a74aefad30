# SPDX-License-Identifier: Apache-2.0
"""What a report is written from: one raising of a language model, as plain data.

Everything is a number, a string, a list or a dict, so that `Run(**json.loads(json.dumps(dataclasses.asdict(run))))`
is the same run. A number that nobody has is None; NaN is shown as None is.
"""

from dataclasses import dataclass, field
from typing import Any, Literal, NotRequired, TypedDict


class Setting(TypedDict):
    value: Any
    by: Literal["chosen", "given"]
    """"chosen" by the planner, or "given" by whoever raised the model."""


class Energy(TypedDict):
    value: float | None
    """Joules."""
    source: str
    """"measured by RAPL", "estimated: 28 W x wall time": what stands behind the number."""


class Cost(TypedDict):
    """What a run takes and what it reaches, predicted or measured."""

    seconds: float | None
    peak_bytes: float | None
    loss: float | None
    """Nats per token on the held-out documents."""
    bits_per_byte: float | None
    """The same, independent of the tokenizer."""
    joules: Energy | None


class StepRecord(TypedDict):
    """One line of the training log; `tokens` and `seconds` since the first step began."""

    step: int
    tokens: int
    seconds: float
    loss: float | None
    bits_per_byte: float | None
    lr: float
    grad_norm: float | None


class DataSummary(TypedDict):
    source: str
    """Where the documents came from, as the command named it."""
    documents: int
    bytes: int
    """Kept for training: what is removed or held out is counted apart."""
    removed: dict[str, int]
    """Documents, by reason."""
    held_out_documents: int
    held_out_bytes: int
    hash: str
    licence: str | None
    """As given; None is "not stated", and nothing is guessed."""


class Sample(TypedDict):
    prompt: str
    text: str
    """The continuation alone, without the prompt."""
    note: str
    """How it was decoded; "" for nothing to say."""


class TokenizerView(TypedDict):
    vocab_size: int
    snippets: list[list[tuple[str, int]]]
    """Each a text cut into (token_text, token_id)."""
    bytes_per_token: float | None
    tokens_per_word: float | None
    longest: list[str]


class NextCommand(TypedDict):
    command: str
    purpose: str


class Share(TypedDict):
    """Of `n` tries each, the share that passed."""

    model: float | None
    n: int
    ngram: NotRequired[float | None]


@dataclass(frozen=True)
class Run:
    name: str
    command: str
    created: str
    """ISO date, or date and time."""
    directory: str
    """The model directory, as the reader would name it on a command line."""
    params: int
    settings: dict[str, Setting]
    tokens: int
    """Trained on, repetitions included."""
    bytes: int
    """Of text behind `tokens`, repetitions included."""
    flops: float
    """Of this run's training."""
    data: DataSummary
    predicted: Cost
    actual: Cost
    history: list[StepRecord]
    baselines: dict[str, float | str]
    """Bits per byte on the held-out documents, or in words why there is no number. `gzip`, `xz`, `xz_stream` and
    `ngram` are shown by their long names, others by their own."""
    samples: list[Sample]
    machine: dict[str, Any]
    timeline: list[tuple[str, float]]
    """(phase, seconds), in order."""
    law_error: float | None = None
    """The share by which the loss law expects its own prediction to be off."""
    tokenizer: TokenizerView | None = None
    shares: dict[str, Share] = field(default_factory=dict)
    next_commands: list[NextCommand] = field(default_factory=list)
