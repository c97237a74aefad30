# SPDX-License-Identifier: Apache-2.0
"""The end of a run: its record, report and model card, and the model directory, published whole."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from foundling.adapt.prune import masks
from foundling.adapt.rewrite import pattern_of
from foundling.config import flattened
from foundling.contracts.records import Metric, Result, RunRecord, Stage
from foundling.data.datasets import describe_data
from foundling.errors import MismatchError, render
from foundling.recipes.journal import LOG, STAGED, Journal
from foundling.recipes.models import no_prediction, parent_records, parents
from foundling.recipes.recipe import PREFERENCE_KINDS, REWARDED, Request, code_version
from foundling.report import write_report
from foundling.report.card import model_card
from foundling.runtime import signals
from foundling.runtime.files import fsync_path, output_errors, publish, sha256, write_bytes, write_json
from foundling.runtime.hub import place_name
from foundling.runtime.machine import machine
from foundling.weights.directory import weights_hash, whole_tensors, write_weights
from foundling.weights.manifest import MANIFEST, read_manifest, write_manifest

MAX_NGRAM_BYTES = 32_000_000
NGRAM_BYTES_PER_BYTE = 14
TRIMMED_BYTES = 330 << 20
"""Of the process once training has given back what it held."""
N_SHOWN = 5
"""samples in the report"""
FEW_SUBJECTS = 2
"""of one task that have lines of their own on the terminal; more of them share one"""
HISTORY = (
    "step", "tokens", "seconds", "loss", "validation_loss", "bits_per_byte", "lr", "grad_norm", "reward",
    "kl_per_token", "entropy", "length",
)  # fmt: skip


@dataclass(frozen=True)
class DataRead:
    """What was learnt from, as the record states it. Bytes are of the text in UTF-8."""

    documents: int
    bytes: int
    held_out_documents: int
    held_out_bytes: int
    removed: dict[str, int]
    hash: str
    source_bytes: int
    texts: list[str]
    """some of the held-out ones, for the view of the tokenizer"""
    bytes_per_token: float
    """of the training text"""

    @classmethod
    def of_corpus(cls, corpus: Any, tokens: Any) -> DataRead:
        return cls(
            corpus.train_documents, corpus.train_bytes, len(corpus.held_out), corpus.held_out_bytes,
            dict(corpus.removed) | dict(corpus.skipped), corpus.data_hash, corpus.source_bytes,
            [d.text for d in corpus.held_out[:2]], tokens.train.n_bytes / max(1, tokens.train.n_tokens),
        )  # fmt: skip


@dataclass
class Outcome:
    """What a kind of run knows at its end, and run.py does not."""

    kind: str
    """in words: "base model", "masked language model" """
    model: Any
    tokenizer: Any
    data: DataRead
    metric: Metric
    figures: dict[str, float]
    """held-out figures; `metric.key` among them"""
    loss_unit: str = "nats per token"
    baselines: dict[str, float] = field(default_factory=dict)
    results: list[Result] = field(default_factory=list)
    samples: list[dict[str, Any]] = field(default_factory=list)
    comparisons: list[dict[str, Any]] = field(default_factory=list)
    """what the model made of an example before and after (records.Comparison)"""
    write_model: Callable[[Any, Path], dict[str, Any]] = lambda model, directory: write_whole(model, directory)
    """writes the weights and their configuration; returns what the manifest says of them, `weights_hash` at least"""
    generation: dict[str, Any] | None = None
    """generation_config.json, where the model generates"""
    pipeline_tag: str = "text-generation"
    next_commands: list[tuple[str, str]] = field(default_factory=list)
    """(command with {} for the directory, purpose)"""
    stages: list[Stage] = field(default_factory=list)
    """of a run of several, in order, this one last"""
    about: dict[str, Any] = field(default_factory=dict)
    """more keys of foundling.json"""


def publish_run(run: Any, outcome: Outcome) -> dict[str, Any]:
    """Writes everything aside and publishes it, foundling.json last. Returns the --json object. `run`: a Run"""
    progress, prediction, recipe = run.progress, run.prediction, run.recipe
    peak = max(run.memory.sample(), run.memory.peak)
    actual = {
        "seconds": round(run.seconds, 1),
        "peak_bytes": peak,
        "joules": run.meter.read(run.seconds, recipe.runtime.threads, peak, run.joules_before),
        **{name: round(value, 5) for name, value in outcome.figures.items()},
    }
    result = {
        "model_dir": str(run.out),
        "kind": outcome.kind,
        "params": prediction["params"],
        "tokens": tokens_read(run),
        "steps": run.steps,
        "best_step": run.best_step,
        "predicted": {key: prediction[key] for key in actual if key in prediction},
        "actual": actual,
        "metric": outcome.metric.key,
        "baselines": {name: round(value, 5) for name, value in outcome.baselines.items()},
        "results": [asdict(r) | {"scores": []} for r in outcome.results],
        "source_bytes": outcome.data.source_bytes,
        "phases": run.clock.seconds_by_phase(),
    }
    with run.clock.phase("write"):
        _write(run, outcome, make_record(run, outcome, result), result)
    _print_result(run, outcome, result, progress)
    return result


def make_record(run: Any, outcome: Outcome, result: dict[str, Any]) -> RunRecord:
    recipe, data, prediction = run.recipe, outcome.data, run.prediction
    settings, given = flattened(asdict(recipe)), {*flattened(run.request.given), "data.source"}
    name, quoted = run.out.resolve().name, render.shell(str(run.out))
    commands = [*outcome.next_commands, ("foundling check {}", "check every file against its hash"),
                ("foundling reproduce {}", "raise it again, bit for bit")]  # fmt: skip
    return RunRecord(
        kind=outcome.kind,
        name=name,
        command=command(run.user_request, run.out),
        created=time.strftime("%Y-%m-%d %H:%M"),
        directory=str(run.out),
        family=recipe.model.family,
        params=prediction["params"],
        settings={
            key: {"value": value, "by": "given" if key in given else "chosen"}
            for key, value in settings.items()
            if value is not None
        },
        tokens=tokens_read(run),
        bytes=int(tokens_read(run) * data.bytes_per_token),
        flops=prediction["flops"] * run.steps / recipe.train.total_steps,
        data={
            "source": recipe.data.source, "documents": data.documents, "bytes": data.bytes,
            "removed": data.removed, "held_out_documents": data.held_out_documents,
            "held_out_bytes": data.held_out_bytes, "hash": data.hash, "licence": licence(run),
        },
        predicted=result["predicted"],
        actual=result["actual"],
        history=[{key: e[key] for key in HISTORY if key in e} for e in run.log.entries],  # pyright: ignore
        metric=outcome.metric,
        loss_unit=outcome.loss_unit,
        baselines=result["baselines"],
        results=outcome.results,
        samples=outcome.samples[:N_SHOWN],  # pyright: ignore[reportArgumentType]
        comparisons=outcome.comparisons,  # pyright: ignore[reportArgumentType]
        machine=machine(),
        timeline=run.clock.timeline,
        law_error=prediction.get("law_error"),
        no_prediction=no_prediction(recipe),
        tokenizer=tokenizer_view(outcome),
        next_commands=[{"command": c.format(quoted), "purpose": purpose} for c, purpose in commands],
        parents=[f"{place_name(d)} ({h[:12]})" for d, h in parents(recipe).items()],
        pipeline_tag=outcome.pipeline_tag,
        stages=outcome.stages,
    )  # fmt: skip


def tokens_read(run: Any) -> int:
    t = run.recipe.train
    return run.steps * t.batch_size * t.seq_len


def licence(run: Any) -> str | None:
    """As stated, or of a built-in data set as it states itself."""
    known = describe_data(run.user_request.data)
    return run.request.licence or (known.licence if known else None)


def tokenizer_view(outcome: Outcome) -> Any:
    tokenizer, texts = outcome.tokenizer, outcome.data.texts
    pieces = [tokenizer.pieces(text[:4000]) for text in texts]
    vocabulary = tokenizer.backend.get_vocab(with_added_tokens=False).items()
    longest = islice(sorted(vocabulary, key=lambda item: -len(item[0])), 40)
    n_tokens, n_words = sum(map(len, pieces)), sum(len(text[:4000].split()) for text in texts)
    return {
        "vocab_size": tokenizer.vocab_size,
        "snippets": [tokenizer.pieces(text[:500]) for text in texts],
        "bytes_per_token": sum(len(text[:4000].encode()) for text in texts) / max(1, n_tokens),
        "tokens_per_word": n_tokens / max(1, n_words),
        "longest": [tokenizer.decode([i]) for _, i in longest if i not in tokenizer.special][:12],
    }


OPTIONS = {"objective.kind": "as", "adapt.method": "method", "train.seq_len": "seq-len"}
"""dotted key -> its option of finetune, where that is another"""


def command(request: Request, out: Path) -> str:
    """The command line that asks for the same."""
    given, parts = request.given, ["foundling", request.command]
    if (stage := request.get("objective.kind")) in (*PREFERENCE_KINDS, *REWARDED):
        parts, given = ["foundling", "align", stage], {**given, "objective": {**given["objective"], "kind": None}}
    if request.command == "finetune":
        parts.append(render.shell(given["model"]["directory"]))
        given = {section: values for section, values in given.items() if section != "model"}
    if not request.data.startswith("builtin:"):
        parts.append(render.shell(request.data))
    value = request.budget.value / 60 if request.budget.unit == "seconds" else request.budget.value
    parts.append(f"{request.budget.option} {value:.12g}")
    if request.align is not None:
        parts.append(f"--align {render.shell(request.align)}" if request.align else "--align")
    if request.licence:
        parts.append(_option("licence", request.licence))
    for key, value in flattened(given).items():
        if value is None:
            continue
        if key == "rollout.reward":
            parts += [_option("reward", name) for name in value]
            continue
        known = OPTIONS if request.command == "finetune" else {}
        option = known.get(key, key.replace("model.fields.", "model.").replace("_", "-"))
        text = value if isinstance(value, str) else json.dumps(value)
        parts.append(_option(option, text))
    return " ".join([*parts, f"--out {render.shell(str(out))}"])


def _option(name: str, value: str) -> str:
    return f"--{name}{'=' if value.startswith('-') else ' '}{render.shell_text(value)}"


def write_whole(model: Any, directory: Path) -> dict[str, Any]:
    """config.json and all weights."""
    write_weights(model, whole_tensors(model), directory)
    return {"weights_hash": weights_hash(model)}


def _write(run: Any, outcome: Outcome, record: RunRecord, result: dict[str, Any]) -> None:
    staging, recipe = run.directory / "staging", run.recipe
    with output_errors(run.out):
        run.journal.remove("staging")  # of a publication that was cut off
        staging.mkdir(parents=True)
        of_weights = outcome.write_model(outcome.model, staging)
        outcome.tokenizer.save(staging)
        if outcome.generation:
            write_json(staging / "generation_config.json", outcome.generation)
        write_report(record, staging / "report.html")
        write_json(staging / "report.json", asdict(record))
        card = model_card(record)
        write_bytes(staging / "README.md", card.encode())
        write_bytes(staging / "log.jsonl", (run.directory / LOG).read_bytes())
        about = {
            "kind": outcome.kind,
            **of_weights,
            "recipe": asdict(recipe),
            "request": asdict(run.user_request),
            "data_hash": outcome.data.hash,
            "licence": licence(run),
            "code": code_version(),
            "machine": machine(),
            "parents": parent_records(recipe),
            "prediction": run.prediction,
            "result": result,
            **outcome.about,
        }
        if pruned := [name.removesuffix(".weight") for name in masks(outcome.model)]:
            about["pruned"] = {"pattern": pattern_of(pruned, pruned)}
        if run.journal.reproduces:
            about["reproduces"] = run.journal.reproduces
        write_manifest(staging, about)
        for file in staging.rglob("*"):
            fsync_path(file)
    run.journal.record(STAGED)
    _move(run.journal, run.out, read_manifest(staging), run.progress)


def _move(journal: Journal, out: Path, manifest: dict[str, Any], progress: Any) -> None:
    """Moves what is complete in run/staging to `out`, and removes what the run has left.

    config.json, without which nothing loads the directory, goes last, and foundling.json before it; so weights are
    never there to be loaded without their manifest."""
    with signals.deferred():
        hashes = {**manifest["files"], MANIFEST: journal.files[STAGED]}
        publish(journal.directory / "staging", out, hashes, last=(MANIFEST, "adapter_config.json", "config.json"))
        journal.remove()
    if journal.directory.exists():
        progress.line(f"note: {journal.directory} holds files that are not of the run, and was left")


def finish_publishing(journal: Journal, out: Path, progress: Any) -> dict[str, Any] | None:
    """Publishes what a process that was killed had completed in run/staging. Returns its --json object; None where
    there is none, or where it is damaged, so that the run has to make it again."""
    staging = journal.directory / "staging"
    if STAGED not in journal.files:
        return None
    places = [d for d in (staging, out) if _is(d / MANIFEST, journal.files[STAGED])]
    manifest = read_manifest(places[0]) if places else {"files": {}}
    damaged = [n for n, h in manifest["files"].items() if not _is(staging / n, h) and not _is(out / n, h)]
    if damaged or not places:
        progress.line(f"note: {staging / (damaged or [MANIFEST])[0]}: damaged; it is made again")
        journal.forget(STAGED)
        return None
    progress.line(f"publishing what was complete in {staging}")
    _move(journal, out, manifest, progress)
    return manifest["result"]


def _is(file: Path, digest: str) -> bool:
    try:
        return sha256(file) == digest
    except OSError:
        return False


def is_complete(out: Path) -> bool:
    """Whether `out` is a model directory of which nothing is left to be published."""
    if not (out / MANIFEST).exists():
        return False
    try:
        journal = Journal.load(out / "run")
    except MismatchError:  # a folder of the user's
        return True
    return journal is None or not _is(out / MANIFEST, journal.files.get(STAGED, ""))


def _interval(r: Result) -> str:
    return "" if r.low is None else f" (95 %: {r.low:.3f} to {r.high:.3f})"


def _print_result(run: Any, outcome: Outcome, result: dict[str, Any], progress: Any) -> None:
    predicted, actual = result["predicted"], result["actual"]
    progress.line(f"  {'':14}{'predicted':>12}{'actual':>12}")
    rows = {"seconds": ("s", 1), "peak_bytes": ("GiB", 2**30), "loss": (outcome.loss_unit, 1)}
    for name, (unit, scale) in (rows | {outcome.metric.key: (outcome.metric.name, 1)}).items():
        if name not in actual:  # a loss that says nothing of rewards
            continue
        value = actual[name] / scale
        if predicted.get(name) is None:
            progress.line(f"  {name:14}{'–':>12}{value:>12.4g} {unit}")
        else:
            p = predicted[name] / scale
            progress.line(f"  {name:14}{p:>12.4g}{value:>12.4g} {unit} ({value / p - 1:+.1%})")
    figures = {"this model": outcome.figures[outcome.metric.key]} | outcome.baselines
    if outcome.baselines:
        progress.line(f"{outcome.metric.name}: " + ", ".join(f"{name} {value:.3f}" for name, value in figures.items()))
    by_task = dict[tuple[str, str], list[Result]]()
    for r in outcome.results:
        by_task.setdefault((r.task, r.metric), []).extend([r] if r.value is not None else [])
    for (task, metric), results in by_task.items():
        if len(results) > FEW_SUBJECTS:
            values = ", ".join(f"{r.subject} {r.value:.3f}{_interval(r)}" for r in results)
            progress.line(f"{task}, {metric} of {results[0].n}: {values}")
            continue
        for r in results:
            progress.line(f"{task}, {r.subject}: {metric} {r.value:.3f} of {r.n}{_interval(r)}")
    progress.line(f"model:  {run.out}")
    progress.line(f"report: {os.path.join(run.out, 'report.html')}")
    if outcome.next_commands:
        progress.line(f"next:   {outcome.next_commands[0][0].format(render.shell(str(run.out)))}")
