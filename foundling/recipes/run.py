# SPDX-License-Identifier: Apache-2.0
"""What every kind of run shares: the output directory and its lock, the request, the resolved recipe, the prediction
written before step 1, resuming, reproducing, training, and the record that is published at the end.

A kind of run (pretrain.py, masked.py, …) is a function of a `Run`. It calls these steps in order; each is done once,
and found done after a crash. Everything in progress lies in OUT/run, which is removed when the model is published.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from foundling.config import dump_yaml, from_dict, load_yaml
from foundling.contracts.data import Batches
from foundling.contracts.objective import Objective
from foundling.data.datasets import open_data
from foundling.data.ingest import Corpus, ingest
from foundling.data.tokens import Tokens, tokenize_corpus
from foundling.errors import ConfigError, Interrupted, MismatchError, OutputError
from foundling.plan.energy import Meter
from foundling.plan.memory import MemoryEstimate, estimate_training_memory, spare_memory
from foundling.recipes.learning import target_len
from foundling.recipes.models import READS, build_model, check_parents, no_prediction, with_parents
from foundling.recipes.progress import Progress
from foundling.recipes.publish import Outcome, publish_run
from foundling.recipes.recipe import Recipe, Request, code_version, upgrade
from foundling.recipes.space import check_space
from foundling.recipes.training import run_training
from foundling.runtime.clock import Clock
from foundling.runtime.device import Runtime
from foundling.runtime.files import clear, lock, read_json, write_bytes, write_directory, write_json
from foundling.runtime.machine import machine
from foundling.runtime.memory import PeakMemory
from foundling.text import Tokenizer
from foundling.train.log import Log
from foundling.weights.directory import MANIFEST, read_manifest

REQUEST = "request.json"
"""in OUT/run: what was asked for, and the mark by which a folder `run` is known as ours"""
SMALLEST_CALIBRATED = 949_028
"""bytes of the smallest corpus in plan/calibration.json"""
RECIPE, PREDICTION = "recipe.yaml", "prediction.json"
Script = Callable[["Run"], dict[str, Any]]


@dataclass
class Prepared:
    """What a plan leaves for the run: built, so that nothing is made twice."""

    recipe: Recipe
    prediction: dict[str, Any]
    tokenizer: Tokenizer
    model: Any


class Run:
    """One run of one request into one directory. `recipe` is None until it is planned or found."""

    def __init__(self, request: Request, out: Path, progress: Progress, clock: Clock) -> None:
        self.request, self.out, self.progress, self.clock = request, out, progress, clock
        self.directory = out / "run"
        self.memory, self.meter = PeakMemory(), Meter()
        self.recipe: Recipe | None = None
        self.prediction: dict[str, Any] = {}
        self.prepared: Prepared | None = None
        self.log: Log | None = None
        self.seconds, self.joules_before = 0.0, 0.0
        self.data_hash: str | None = None
        """of the data that a resumed or reproduced run must have"""
        if (self.directory / RECIPE).exists():
            self._resume()

    def _resume(self) -> None:
        file = self.directory / RECIPE
        stored = read_json(self.directory / PREDICTION)
        if stored.pop("code") != code_version():
            raise MismatchError(
                f"{self.out} was started by another version of foundling; continue with that one, or start anew"
            )
        stored.pop("reproduces", None)
        self.data_hash = stored.pop("data_hash")
        self.recipe, self.prediction = from_dict(Recipe, load_yaml(file), where=str(file)), stored

    # --- steps of a run, in the order that a kind calls them ---------------------------------------------------------

    def corpus(self) -> Corpus:
        """The data, read once into text shards."""
        field = self.recipe.data.field if self.recipe else self.request.get("data.field", "text")
        directory = self.directory / "corpus"
        with self.clock.phase("read"):
            if not directory.exists():
                self.progress.line(f"reading {self.request.data}")
                corpus = ingest(open_data(self.request.data, field, exclude=self.out), directory)
            else:
                corpus = Corpus.load(directory)
        self.progress.line(
            f"{corpus.train_documents:,} documents, {size(corpus.train_bytes)} to train on; "
            f"{len(corpus.held_out):,} documents, {size(corpus.held_out_bytes)} held out"
        )
        if corpus.skipped:
            self.progress.line("skipped: " + ", ".join(f"{n} {reason}" for reason, n in corpus.skipped.items()))
        if self.data_hash not in (None, corpus.data_hash):
            clear(directory)  # or the right data would never be read
            raise MismatchError(
                f"the data hashes to {corpus.data_hash[:12]}, the model was raised from {str(self.data_hash)[:12]}; "
                "give the same data with --data"
            )
        return corpus

    def settle(
        self,
        corpus: Corpus,
        prepare: Callable[[], Prepared],
        make_tokenizer: Callable[[Recipe, Corpus], Tokenizer],
    ) -> tuple[Recipe, Tokenizer]:
        """The recipe and its tokenizer: found, or planned by `prepare` and written down, with the prediction, before
        the first step; so the prediction cannot be made to fit afterwards."""
        if self.recipe is None:
            self.prepared = prepare()
            self.recipe, self.prediction = self.prepared.recipe, self.prepared.prediction
            check_space(self.out, self.recipe, corpus, self.prediction["params"])
            clear(self.directory / "tokenizer")  # of a plan that a crash kept from being written down
            self._write_tokenizer(self.prepared.tokenizer)
            write_plan(self.directory, self.recipe, self.prediction | {"data_hash": corpus.data_hash})
        else:
            check_parents(self.recipe)
            if not (self.directory / "tokenizer").exists():
                self._write_tokenizer(make_tokenizer(self.recipe, corpus))
        announce(self.recipe, self.prediction, self.progress)
        return self.recipe, Tokenizer.load(self.directory / "tokenizer")

    def _write_tokenizer(self, tokenizer: Tokenizer) -> None:
        if not (self.directory / "tokenizer").exists():
            write_directory(self.directory / "tokenizer", tokenizer.save)

    def tokens(self, corpus: Corpus, tokenizer: Tokenizer) -> Tokens:
        """The text as token shards, training and held-out."""
        assert self.recipe
        with self.clock.phase("tokenize"):
            data = self.recipe.data
            self.progress.line("encoding the text")
            return tokenize_corpus(
                self.directory / "tokens", corpus, tokenizer, share=data.share, fim_rate=data.fim_rate,
                seq_len=self.recipe.train.seq_len,
            )  # fmt: skip

    def model(self) -> Any:
        """The model as training starts."""
        assert self.recipe
        if self.prepared:
            return self.prepared.model
        Runtime(threads=self.recipe.runtime.threads).setup()
        spare_memory(training_memory(self.recipe))
        return build_model(self.recipe)

    def train(self, model: Any, objective: Objective, batches: Batches, bits_per_nat: float | None = None) -> None:
        assert self.recipe
        with self.clock.phase("train"):
            self.log, before = run_training(
                self.recipe, model, objective, batches, self.directory, self.progress, self.spent, bits_per_nat
            )
        self.seconds = before["seconds"] + self.clock.elapsed
        self.memory.peak = max(self.memory.peak, int(before["peak_bytes"]))
        self.joules_before = before["joules"]

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
        return publish_run(self, outcome)


def size(n_bytes: int) -> str:
    return f"{n_bytes / 1e6:.1f} MB" if n_bytes >= 1e6 else f"{n_bytes / 1e3:.1f} kB"


def write_plan(directory: Path, recipe: Recipe, prediction: dict[str, Any]) -> None:
    """What will run and what it is predicted to cost, before the first step; the recipe last, since it says that both
    are there."""
    write_json(directory / PREDICTION, {**prediction, "code": code_version()})
    write_bytes(directory / RECIPE, dump_yaml(recipe).encode())


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
    p = prediction
    progress.line(
        f"plan: {recipe.model.family} with {p['params'] / 1e6:.2f} M parameters, "
        f"{recipe.train.tokens / 1e6:.2f} M tokens in {recipe.train.total_steps} steps, {p['flops']:.2e} FLOPs"
    )
    for name, section in asdict(recipe).items():
        if isinstance(section, dict):
            values = section | section.pop("fields", {}) if name == "model" else section
            if name == "objective":
                values = {key: values[key] for key in ("kind", *READS[recipe.objective.kind])}
            unsaid = ("source", "weights_hash", "teacher_hash")
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


# --- ways to start one ------------------------------------------------------------------------------------------------


def start(
    script: Script,
    request: Request,
    out: str | Path,
    *,
    resume: bool = False,
    progress: Progress | None = None,
    clock: Clock | None = None,
    reproduced: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Runs `script` into the directory `out` and returns what `--json` prints.

    `out` must be new or empty or, with `resume`, hold an unfinished run. `reproduced`: the manifest of a run that is to
    be done again, its recipe read. OutputError, MismatchError or BusyError where
    it cannot be; nothing that was there is touched."""
    out, progress, clock = Path(out), progress or Progress(False), clock or Clock()
    existed, run = out.exists(), out / "run"
    with claimed(out, resume):
        if (out / MANIFEST).exists():
            progress.line(f"{out} is complete")
            if (run / REQUEST).exists():  # left by a crash between publishing and clearing
                clear(run)
            return read_manifest(out).get("result", {})
        if reproduced:  # written each time, since a parent may have moved; first, so that a crash leaves it to be found
            plan = reproduced["prediction"] | {"data_hash": reproduced["data_hash"]}
            write_plan(run, reproduced["recipe"], plan | {"reproduces": reproduced["weights_hash"]})
        if not (run / REQUEST).exists():
            write_json(run / REQUEST, asdict(request))
        started = Run(request, out, progress, clock)
        try:
            return script(started)
        except Interrupted as stopped:
            way = "give the same command again" if reproduced else "continue with --resume"
            raise Interrupted(f"{stopped}; {way}") from None
        except Exception:
            if not resume and not (run / RECIPE).exists():  # refused before anything was decided: nothing to resume
                clear(run)
                if not existed and {p.name for p in out.iterdir()} == {".lock"}:
                    (out / ".lock").unlink()
                    out.rmdir()
            raise
        finally:
            started.memory.done.set()


def stored_request(out: Path) -> Request:
    """The request that an unfinished run was started with."""
    file = out / "run" / REQUEST
    if not file.exists():
        raise OutputError(f"{out}: there is no run to resume here; start one without --resume")
    values = read_json(file)
    if "unit" in values:
        raise MismatchError(f"{out} was started by foundling 0.1; continue with that version, or start anew")
    return from_dict(Request, values, where=str(file))


def reproduce(
    script_of: Callable[[str], Script],
    directory: str | Path,
    *,
    data: str | None = None,
    parents: Sequence[str] = (),
    out: str | Path | None = None,
    progress: Progress | None = None,
    clock: Clock | None = None,
) -> dict[str, Any]:
    """Runs the recipe of the model in `directory` again, into `out`, and compares the hashes of the weights.
    `script_of`: the script of an objective's name. `parents`: where the models are now that it starts from, if they
    have moved; which is which is known by their weights.

    MismatchError where the data, the code or a parent is not what it was; another machine is reported, and tried."""
    progress, directory = progress or Progress(False), Path(directory)
    manifest = read_manifest(directory)
    for key in ("recipe", "code", "machine", "prediction", "data_hash"):
        if key not in manifest:
            raise ConfigError(
                f"{directory / MANIFEST} has no '{key}': the model was not raised here; nothing to reproduce"
            )
    code, here = manifest["code"], code_version()
    if code["sha256"] != here["sha256"]:
        raise MismatchError(
            f"{directory} was raised by foundling {code['version']} ({code['sha256'][:12]}), this is {here['version']} "
            f"({here['sha256'][:12]}); install that version to reproduce it"
        )
    recipe = from_dict(Recipe, upgrade(manifest["recipe"]), where=f"{directory / MANIFEST} recipe")
    recipe = with_parents(recipe, parents)
    Runtime(threads=recipe.runtime.threads).setup()
    for name, there in manifest["machine"].items():
        if name in ("torch", "cpu_capability", "threads", "device") and machine()[name] != there:
            progress.line(f"note: {name} is {machine()[name]} here and was {there}; equal bits are not to be expected")
    asked = from_dict(Request, manifest["request"], where=f"{directory / MANIFEST} request")
    request = replace(asked, data=data or asked.data)
    out = Path(out) if out else directory.with_name(directory.name + "-again")
    unfinished = out / "run" / PREDICTION  # of the same reproduction: it is continued
    resume = unfinished.exists() and read_json(unfinished).get("reproduces") == manifest["weights_hash"]
    script = script_of(recipe.objective.kind)
    result = start(
        script, request, out, resume=resume, progress=progress, clock=clock,
        reproduced=manifest | {"recipe": recipe},
    )  # fmt: skip
    again = read_manifest(out)["weights_hash"]
    same = again == manifest["weights_hash"]
    return {"identical": same, "weights_hash": again, "expected": manifest["weights_hash"], **result}


@contextmanager
def claimed(out: Path, resume: bool) -> Iterator[None]:
    """`out` for this process alone; refuses to touch what another run or anyone else has put there."""
    if out.exists() and not out.is_dir():
        raise OutputError(f"{out}: is a file; choose another --out")
    if out.is_dir() and not resume and any(p.name != ".lock" and not _is_empty(p) for p in out.iterdir()):
        unfinished = (out / "run" / REQUEST).exists() and not (out / MANIFEST).exists()
        if unfinished:
            raise OutputError(f"{out}: holds an unfinished run; continue it with --resume, or choose another --out")
        raise OutputError(f"{out}: is not empty, and was not changed; choose another --out")
    with lock(out):
        yield


def _is_empty(path: Path) -> bool:
    return path.name == "run" and path.is_dir() and not any(path.iterdir())
