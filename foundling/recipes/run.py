# SPDX-License-Identifier: Apache-2.0
"""What every kind of run shares: the output directory and its lock, the request, the resolved recipe, the prediction
written before step 1, resuming, reproducing, training, and the record that is published at the end.

A kind of run (pretrain.py, masked.py, …) is a function of a `Run`. It calls these steps in order; each is done once,
and found done after a crash. Everything in progress lies in OUT/run, which is removed when the model is published;
the journal there knows each finished file by its hash.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args

from foundling.config import dump_yaml, from_dict, load_yaml
from foundling.contracts.data import Batches
from foundling.contracts.objective import Objective
from foundling.data.datasets import open_data
from foundling.data.encoded import EncodedExamples, encode_examples
from foundling.data.examples import Examples, ingest_examples
from foundling.data.formats import DEFAULT_FIELD
from foundling.data.ingest import Corpus, ingest
from foundling.data.kinds import PREFERENCE, PROMPT, Columns
from foundling.data.tokens import Tokens, tokenize_corpus
from foundling.errors import DataError, MismatchError
from foundling.plan.energy import Meter
from foundling.plan.memory import MemoryEstimate, estimate_training_memory, spare_memory
from foundling.recipes.journal import CORPUS, ENCODED, EXAMPLES, LOG, PREDICTION, RECIPE, TOKENIZER, TOKENS, Journal
from foundling.recipes.learning import target_len
from foundling.recipes.models import build_model, check_parents, fields_read, no_prediction
from foundling.recipes.progress import Progress
from foundling.recipes.publish import Outcome, publish_run
from foundling.recipes.recipe import PREFERENCE_KINDS, REWARDED, ExampleKind, Recipe, Request, code_version
from foundling.recipes.space import check_space
from foundling.recipes.training import run_training
from foundling.recipes.validation import Validation
from foundling.runtime.clock import Clock
from foundling.runtime.device import Runtime
from foundling.runtime.files import read_json, write_bytes, write_directory, write_json
from foundling.runtime.memory import PeakMemory
from foundling.text import Tokenizer
from foundling.text.framing import Framing
from foundling.train.log import Log

SMALLEST_CALIBRATED = 949_028
"""bytes of the smallest corpus in plan/calibration.json"""
Script = Callable[["Run"], dict[str, Any]]
T = TypeVar("T")


@dataclass
class Prepared:
    """What a plan leaves for the run: built, so that nothing is made twice."""

    recipe: Recipe
    prediction: dict[str, Any]
    tokenizer: Tokenizer
    model: Any


class Run:
    """One run of one request into one directory. `recipe` is None until it is planned or found."""

    def __init__(
        self, request: Request, out: Path, progress: Progress, clock: Clock, journal: Journal | None = None
    ) -> None:
        self.request, self.out, self.progress, self.clock = request, out, progress, clock
        self.user_request = request
        """what the user asked for, where a script runs a stage of it under `request`"""
        self.directory = out / "run"
        self.journal = journal or Journal(self.directory, asdict(request), code_version())
        self.recipe: Recipe | None = None
        self.prediction: dict[str, Any] = {}
        self.prepared: Prepared | None = None
        self.log: Log | None = None
        self.seconds, self.joules_before = 0.0, 0.0
        self.steps = 0
        """that training took: fewer than the recipe has where it stopped early"""
        self.best_step: int | None = None
        """whose weights were the best, where validation chose them"""
        self.data_hash: str | None = None
        """of the data that a resumed or reproduced run must have"""
        self.stages: list[dict[str, Any]] = []
        """of a run that is reproduced, the records of those that came before (aligned.py)"""
        self.text: Corpus | None = None
        self.on_plan: Callable[[], None] = lambda: None
        """called once there is a plan, before it is written down: where it raises, nothing was decided"""
        self.amend: Callable[[Outcome], Outcome] = lambda outcome: outcome
        """what is to be published, with what another script measures"""
        if RECIPE in self.journal.files:
            self._resume()
        self.memory, self.meter = PeakMemory(), Meter()

    def _resume(self) -> None:
        if problem := self.journal.problem(RECIPE, PREDICTION):
            raise MismatchError(f"{problem}; put the original back, or move {self.directory} away and start anew")
        file = self.directory / RECIPE
        stored = read_json(self.directory / PREDICTION)
        self.data_hash, self.stages = stored.pop("data_hash"), stored.pop("stages", [])
        self.recipe, self.prediction = from_dict(Recipe, load_yaml(file), where=str(file)), stored

    def ensure(self, part: str, indexes: Sequence[str], make: Callable[[], T], *, exact: bool = True) -> T:
        """What `make` finds whole in the folder, or in the file, `part`, or writes there. What is not as the journal
        has it is removed first, and what proves to be damaged is made again; `exact`: it must come out as it was."""
        folder, problem = self.directory / part, self.journal.problem(*indexes)
        recorded = {name: digest for name, digest in self.journal.files.items() if name in indexes}
        if problem and recorded:
            self.progress.line(f"note: {problem}; it is made again")
        if problem:
            self.journal.remove(part)
        existed = folder.exists()
        try:
            value = make()
        except (DataError, MismatchError) as error:
            if not existed:
                raise
            self.progress.line(f"note: {str(error).partition(';')[0]}; it is made again")
            self.journal.remove(part)
            value = make()
        if exact and recorded and (problem := self.journal.problem(*recorded)):
            raise MismatchError(
                f"{problem}, and it could not be made again as it was; put the original back, or move "
                f"{self.directory} away and start anew"
            )
        self.journal.record(*indexes)
        return value

    # --- steps of a run, in the order that a kind calls them ---------------------------------------------------------

    def corpus(self) -> Corpus:
        """The data, read once into text shards."""
        if self.text is not None:
            return self.text
        field = (self.recipe.data.field if self.recipe else self.request.get("data.field")) or DEFAULT_FIELD
        directory = self.directory / "corpus"

        def read() -> Corpus:
            if directory.exists():
                return Corpus.load(directory)
            self.progress.line(f"reading {self.request.data}")
            return ingest(open_data(self.request.data, field, exclude=self.out), directory)

        with self.clock.phase("read"):
            corpus = self.ensure("corpus", CORPUS, read, exact=False)  # by its data_hash, below
        self.progress.line(
            f"{corpus.train_documents:,} documents, {size(corpus.train_bytes)} to train on; "
            f"{len(corpus.held_out):,} documents, {size(corpus.held_out_bytes)} held out"
        )
        if corpus.skipped:
            self.progress.line("skipped: " + ", ".join(f"{n} {reason}" for reason, n in corpus.skipped.items()))
        self._check_data(corpus.data_hash, "corpus")
        self.text = corpus
        return corpus

    def examples(self) -> Examples:
        """The examples of a finetuning, read once; what their columns hold is detected and said."""
        get = self.request.get
        kind: Any = self.recipe.objective.kind if self.recipe else get("objective.kind")
        kind = PREFERENCE if kind in PREFERENCE_KINDS else PROMPT if kind in REWARDED else kind
        columns = Columns(**{name: get(f"data.{name}") for name in ("field", "pair", "label", "target")})
        directory = self.directory / "examples"

        def read() -> Examples:
            if directory.exists():
                return Examples.load(directory)
            self.progress.line(f"reading {self.request.data}")
            return ingest_examples(
                self.request.data,
                directory,
                kind=kind,
                columns=columns,
                held_out_source=get("data.held_out"),
                exclude=self.out,
            )

        with self.clock.phase("read"):
            examples = self.ensure("examples", EXAMPLES, read, exact=False)  # by its data_hash, below
        self.progress.line(examples.note)
        if examples.skipped:
            self.progress.line("skipped: " + ", ".join(f"{n} {reason}" for reason, n in examples.skipped.items()))
        self._check_data(examples.data_hash, "examples")
        return examples

    def _check_data(self, digest: str, part: str) -> None:
        """MismatchError where the data is not what the run began with."""
        if self.data_hash in (None, digest):
            return
        self.journal.remove(part)  # or the right data would never be read
        way = "give the same data with --data" if self.journal.reproduces else "put the same data back"
        raise MismatchError(
            f"the data ({self.request.data}) hashes to {digest[:12]}, the model was raised from "
            f"{str(self.data_hash)[:12]}; {way}"
        )

    def encoded(self, examples: Examples, framing: Framing, seq_len: int) -> EncodedExamples:
        """The examples as tokens on disk."""
        with self.clock.phase("tokenize"):
            self.progress.line("encoding the examples")
            encoded = self.ensure(
                "encoded", ENCODED,
                lambda: encode_examples(self.directory / "encoded", examples, framing, seq_len=seq_len),
            )  # fmt: skip
        counts = dict(encoded.skipped) | ({f"cut to {seq_len} tokens": encoded.cut} if encoded.cut else {})
        if counts:
            self.progress.line("examples: " + ", ".join(f"{n} {reason}" for reason, n in counts.items()))
        return encoded

    def settle(
        self,
        corpus: Corpus | Examples,
        prepare: Callable[[], Prepared],
        make_tokenizer: Callable[[Recipe, Any], Tokenizer],
    ) -> tuple[Recipe, Tokenizer]:
        """The recipe and its tokenizer: found, or planned by `prepare` and written down, with the prediction, before
        the first step; so the prediction cannot be made to fit afterwards."""
        if self.recipe is None:
            self.prepared = prepared = prepare()
            self.recipe, self.prediction = prepared.recipe, prepared.prediction
            check_space(self.out, self.recipe, corpus, prepared.model)
            self.journal.forget(*TOKENIZER)  # of a plan that a crash kept from being written down
            self._keep_tokenizer(lambda: prepared.tokenizer)
            self.on_plan()
            write_plan(self.journal, self.recipe, self.prediction | {"data_hash": corpus.data_hash})
        else:
            recipe = self.recipe
            check_parents(recipe)
            self._keep_tokenizer(lambda: make_tokenizer(recipe, corpus))
            self.on_plan()
        announce(self.recipe, self.prediction, self.progress)
        return self.recipe, Tokenizer.load(self.directory / "tokenizer")

    def _keep_tokenizer(self, make: Callable[[], Tokenizer]) -> None:
        folder = self.directory / "tokenizer"
        self.ensure("tokenizer", TOKENIZER, lambda: folder.exists() or write_directory(folder, make().save))

    def tokens(self, corpus: Corpus, tokenizer: Tokenizer) -> Tokens:
        """The text as token shards, training and held-out."""
        assert self.recipe
        with self.clock.phase("tokenize"):
            data, seq_len = self.recipe.data, self.recipe.train.seq_len
            self.progress.line("encoding the text")
            return self.ensure(
                "tokens", TOKENS,
                lambda: tokenize_corpus(
                    self.directory / "tokens", corpus, tokenizer, share=data.share, fim_rate=data.fim_rate,
                    seq_len=seq_len,
                ),
            )  # fmt: skip

    def model(self, build: Callable[[Recipe], Any] | None = None) -> Any:
        """The model as training starts; `build` makes it where the recipe's model alone is not all."""
        assert self.recipe
        if self.prepared:
            return self.prepared.model
        Runtime(threads=self.recipe.runtime.threads).setup()
        if build is not None:
            return build(self.recipe)
        spare_memory(training_memory(self.recipe))
        return build_model(self.recipe)

    def train(
        self,
        model: Any,
        objective: Objective,
        batches: Batches,
        bits_per_nat: float | None = None,
        validation: Validation | None = None,
    ) -> None:
        assert self.recipe
        with self.clock.phase("train"):
            self.log, before = run_training(
                self.recipe,
                model,
                objective,
                batches,
                self.journal,
                self.progress,
                self.spent,
                bits_per_nat,
                validation,
            )
        self.steps = self.log.entries[-1]["step"] if self.log.entries else self.recipe.train.total_steps
        if validation is not None and validation.best_step is not None:
            self.best_step = validation.best_step
            which = f"of step {self.best_step}" if self.best_step else "from before training"
            self.progress.line(f"the weights {which} are kept: they were the best")
        self.seconds = before["seconds"] + self.clock.elapsed
        self.memory.peak = max(self.memory.peak, int(before["peak_bytes"]))
        self.joules_before = before["joules"]

    def solve(self, text: str, solve: Callable[[], None]) -> None:
        """In place of `train`, for what needs no steps. A run that is stopped here does it again."""
        assert self.recipe
        self.progress.line(text)
        with self.clock.phase("train"):
            solve()
        self.log = Log(self.directory / LOG)
        self.log.close()
        self.steps, self.seconds = self.recipe.train.total_steps, self.clock.elapsed

    def spent(self) -> dict[str, float]:
        """By this process so far; a checkpoint stores it, so that the costs of a resumed run add up."""
        return {
            "seconds": self.clock.elapsed, "peak_bytes": self.memory.sample() and self.memory.peak,
            "joules": self.meter.counted(),
        }  # fmt: skip

    @contextmanager
    def measuring(self, text: str) -> Iterator[None]:
        """The evaluation that the budget includes: `seconds` ends with it."""
        before = self.clock.elapsed
        self.progress.line(text)
        with self.clock.phase("evaluate"):
            yield
        self.seconds += self.clock.elapsed - before

    def publish(self, outcome: Outcome) -> dict[str, Any]:
        """Writes the model directory whole, and returns the object that --json prints."""
        return publish_run(self, self.amend(outcome))


def size(n_bytes: int) -> str:
    return f"{n_bytes / 1e6:.1f} MB" if n_bytes >= 1e6 else f"{n_bytes / 1e3:.1f} kB"


def write_plan(journal: Journal, recipe: Recipe, prediction: dict[str, Any]) -> None:
    """What will run and what it is predicted to cost, before the first step."""
    write_json(journal.directory / PREDICTION, prediction)
    write_bytes(journal.directory / RECIPE, dump_yaml(recipe).encode())
    journal.record(RECIPE, PREDICTION)


def training_memory(recipe: Recipe) -> MemoryEstimate:
    train = recipe.train
    return estimate_training_memory(
        recipe.model.family, recipe.model.fields, micro_batch_size=train.micro_batch_size, seq_len=train.seq_len,
        precision=recipe.runtime.precision, optim=recipe.optim, accumulates=train.micro_batch_size < train.batch_size,
        checkpointing=train.activation_checkpointing, target_len=target_len(recipe.objective, train.seq_len),
        ema=train.ema_decay is not None,
    )  # fmt: skip


def announce(recipe: Recipe, prediction: dict[str, Any], progress: Progress) -> None:
    """What will run, and what it will cost, before it is spent."""
    p, tuned = prediction, recipe.objective.kind in (*get_args(ExampleKind), *REWARDED)
    progress.line(
        f"plan: {recipe.model.family} with {p['params'] / 1e6:.2f} M parameters, "
        f"{recipe.train.tokens / 1e6:.2f} M tokens in {recipe.train.total_steps} steps, {p['flops']:.2e} FLOPs"
    )
    for name, section in asdict(recipe).items():
        if isinstance(section, dict):
            values = section | section.pop("fields", {}) if name == "model" else section
            if name == "objective":
                values = {
                    key: values[key] for key in ("kind", *fields_read(recipe.objective.kind, recipe.model.family))
                }
            unsaid = ("source", "weights_hash", "teacher_hash", "chat_template", "pretraining_hash", "reward_hashes")
            unsaid += ("share", "fim_rate", "field") if tuned else ()
            if (name == "adapt" and not tuned) or (name == "rollout" and recipe.objective.kind not in REWARDED):
                continue
            line = " ".join(f"{k}={v}" for k, v in values.items() if v is not None and k not in unsaid)
            progress.line(f"  {name}: {line}")
    loss = no_prediction(recipe)
    if "loss" in p:
        loss = (
            f"held-out loss {p['loss']:.3f} nats a token = {p['bits_per_byte']:.3f} bits per byte "
            f"(error of the loss law: {p['law_error']:.0%})"
        )
        if p["train_bytes"] < SMALLEST_CALIBRATED:
            progress.line(
                f"note: the loss law was fitted to corpora of {size(SMALLEST_CALIBRATED)} and more; this one has "
                f"{size(p['train_bytes'])}, so the predicted loss may be far off"
            )
    progress.line(
        f"prediction: {p['seconds']:.0f} s, peak memory {p['peak_bytes'] / 2**30:.2f} GiB, "
        f"{p['joules']['value'] / 1000:.1f} kJ ({p['joules']['source'].split(':')[0]}), {loss}"
    )
