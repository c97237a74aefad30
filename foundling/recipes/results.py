# SPDX-License-Identifier: Apache-2.0
"""What is written when training has ended: baselines, samples, report, card, and the model directory."""

from __future__ import annotations

import shlex
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from foundling.contracts.records import Result, RunRecord
from foundling.data.corpora import CORPORA, corpus
from foundling.data.split import Split
from foundling.evaluate.baselines import measure_baselines
from foundling.evaluate.perplexity import Score
from foundling.evaluate.samples import judge_samples, sample_texts
from foundling.evaluate.tasks import tasks_for
from foundling.plan.energy import Meter
from foundling.recipes.corpus import BUILTIN, Tokens, clear
from foundling.recipes.planning import MAX_NGRAM_BYTES
from foundling.recipes.progress import Show
from foundling.recipes.recipe import Recipe, Request, code_version
from foundling.report import model_card, write_report
from foundling.runtime.machine import machine
from foundling.runtime.memory import PeakMemory, trim_memory
from foundling.text import Tokenizer
from foundling.weights.directory import MANIFEST, weights_hash, whole_parameters, write_manifest, write_weights
from foundling.weights.files import output_errors, publish, write_bytes, write_json

N_SHOWN = 5
HISTORY = ("step", "tokens", "seconds", "loss", "bits_per_byte", "lr", "grad_norm")
TEMPERATURE, TOP_P = 0.7, 0.95
"""Of the samples, and of the model's generation_config.json."""


@dataclass
class Raised:
    """All that the end of a run knows."""

    request: Request
    recipe: Recipe
    prediction: dict[str, Any]
    found: Split
    skipped: dict[str, int]
    tokenizer: Tokenizer
    tokens: Tokens
    model: Any
    history: list[dict[str, Any]]
    held_out: Score
    seconds: float
    memory: PeakMemory
    meter: Meter
    out: Path
    created: str

    @property
    def licence(self) -> str | None:
        if self.request.licence is None and self.recipe.data.startswith(BUILTIN):
            return corpus_licence(self.recipe.data.removeprefix(BUILTIN))
        return self.request.licence


def corpus_licence(name: str) -> str:
    import importlib

    corpus(name)
    return importlib.import_module(CORPORA[name]).LICENCE


def finish(raised: Raised, show: Show) -> dict[str, Any]:
    """Measures the rest, writes everything aside and publishes it, foundling.json last. Returns the --json object."""
    show.line(
        f"held-out: {raised.held_out.loss:.3f} nats a token, {raised.held_out.bits_per_byte:.3f} bits per byte "
        f"after {raised.seconds:.0f} s"
    )
    trim_memory()  # what training has freed: baselines would take theirs beside it
    with show.phase("baselines", "measuring gzip, xz and a byte 6-gram on the same text"):
        found = raised.found
        training, held_out = (d.text for d in found.train()), [d.text for d in found.held_out]
        baselines, ngram = measure_baselines(training, held_out, max_ngram_bytes=MAX_NGRAM_BYTES)
    with show.phase("samples", "sampling"):
        samples = sample_texts(
            raised.model,
            raised.tokenizer,
            max_tokens=raised.recipe.seq_len - 1,
            temperature=TEMPERATURE,
            top_p=TOP_P,
            seed=raised.recipe.seed,
        )
        tasks = tasks_for(raised.recipe.data, [d.name for d in found.held_out])
        results = judge_samples(tasks, samples, ngram=ngram, held_out=held_out, temperature=TEMPERATURE)
        texts = [sample.text for sample in samples]
    peak = max(raised.memory.sample(), raised.memory.peak)
    actual = {
        "seconds": round(raised.seconds, 1),
        "peak_bytes": peak,
        "loss": round(raised.held_out.loss, 5),
        "bits_per_byte": round(raised.held_out.bits_per_byte, 5),
        "joules": raised.meter.read(raised.seconds, raised.recipe.threads, peak),
    }
    result = {
        "model_dir": str(raised.out),
        "params": raised.prediction["params"],
        "tokens": raised.recipe.tokens,
        "predicted": {k: raised.prediction[k] for k in actual},
        "actual": actual,
        "baselines": baselines,
        "shares": shares(results),
        "phases": phases(show),
    }
    with show.phase("write"):
        _write(raised, result, results, texts, show)
    _tell(raised, result, show)
    return result


def phases(show: Show) -> dict[str, float]:
    """Seconds by what they went to."""
    total: dict[str, float] = {}
    for name, seconds in show.timeline:
        total[name] = round(total.get(name, 0.0) + seconds, 2)
    return total


def shares(results: list[Result]) -> dict[str, Any]:
    """By task: the value of each subject, and n."""
    found: dict[str, Any] = {}
    for result in results:
        found.setdefault(result.task, {"n": result.n})[result.subject] = result.value
    return found


def make_run(raised: Raised, result: dict[str, Any], results: list[Result], texts: list[str], show: Show) -> RunRecord:
    recipe, found, prediction = raised.recipe, raised.found, raised.prediction
    given = {*raised.request.given, "data"}
    quoted = shlex.quote(str(raised.out))
    note = f"from nothing, temperature {TEMPERATURE}, top-p {TOP_P}"
    return RunRecord(
        kind="base model",
        family=recipe.family,
        name=raised.out.resolve().name,
        command=command(raised.request, raised.out),
        created=raised.created,
        directory=str(raised.out),
        params=prediction["params"],
        settings={k: {"value": v, "by": "given" if k in given else "chosen"} for k, v in asdict(recipe).items()},
        tokens=recipe.tokens,
        bytes=int(recipe.tokens * raised.tokens.train.n_bytes / max(1, raised.tokens.train.n_tokens)),
        flops=prediction["flops"],
        data={
            "source": recipe.data, "documents": found.train_documents, "bytes": found.train_bytes,
            "removed": dict(found.removed) | raised.skipped, "held_out_documents": len(found.held_out),
            "held_out_bytes": found.held_out_bytes, "hash": found.data_hash, "licence": raised.licence,
        },
        predicted=result["predicted"],
        actual=result["actual"],
        history=[{k: e[k] for k in HISTORY} for e in raised.history],  # pyright: ignore[reportArgumentType]
        baselines=result["baselines"],
        samples=[{"prompt": "", "text": t, "note": note} for t in texts[:N_SHOWN]],
        machine=machine(),
        timeline=show.timeline,
        law_error=prediction["law_error"],
        tokenizer=tokenizer_view(raised),
        results=results,
        next_commands=[
            {"command": f"foundling chat {quoted}", "purpose": "continue text of your own"},
            {"command": f"foundling check {quoted}", "purpose": "see that no byte has changed"},
            {"command": f"foundling reproduce {quoted}", "purpose": "raise it again, bit for bit"},
        ],
    )  # fmt: skip


def tokenizer_view(raised: Raised) -> Any:
    text = raised.found.held_out[0].text
    pieces = raised.tokenizer.pieces(text[:4000])
    words = max(1, len(text[:4000].split()))
    vocab = islice(
        sorted(raised.tokenizer.backend.get_vocab(with_added_tokens=False).items(), key=lambda kv: -len(kv[0])), 40
    )
    longest = [raised.tokenizer.decode([i]) for _, i in vocab if i >= 7][:12]
    return {
        "vocab_size": raised.tokenizer.vocab_size,
        "snippets": [raised.tokenizer.pieces(d.text[:500]) for d in raised.found.held_out[:2]],
        "bytes_per_token": raised.prediction["bytes_per_token"],
        "tokens_per_word": len(pieces) / words,
        "longest": longest,
    }


def command(request: Request, out: Path) -> str:
    """The command line that asks for the same."""
    parts = ["foundling", "raise"]
    if not request.data.startswith(BUILTIN):
        parts.append(shlex.quote(request.data))
    value = request.value / 60 if request.unit == "seconds" else request.value
    parts.append(f"--{'minutes' if request.unit == 'seconds' else request.unit} {value:g}")
    parts += [f"--{key.replace('_', '-')} {value}" for key, value in request.given.items()]
    return " ".join([*parts, f"--out {shlex.quote(str(out))}"])


def _write(raised: Raised, result: dict[str, Any], results: list[Result], texts: list[str], show: Show) -> None:
    run = make_run(raised, result, results, texts, show)
    staging = raised.out / "run" / "staging"
    with output_errors(raised.out):
        clear(staging)
        staging.mkdir(parents=True)
        write_weights(raised.model, whole_parameters(raised.model), staging)
        raised.tokenizer.save(staging)
        eos = raised.tokenizer.eos
        write_json(
            staging / "generation_config.json",
            {"bos_token_id": eos, "eos_token_id": eos, "do_sample": True, "temperature": TEMPERATURE, "top_p": TOP_P},
        )
        write_report(run, staging / "report.html")
        write_json(staging / "report.json", asdict(run))
        card = model_card(run)
        write_bytes(staging / "README.md", card.encode())
        write_bytes(staging / "log.jsonl", (raised.out / "run" / "log.jsonl").read_bytes())
        recipe = asdict(raised.recipe)
        about = {
            "kind": "base model",
            "weights_hash": weights_hash(raised.model),
            "recipe": recipe,
            "data_hash": raised.found.data_hash,
            "licence": raised.licence,
            "code": code_version(),
            "machine": machine(),
            "parents": [],
            "prediction": raised.prediction,
            "result": result,
        }
        write_manifest(staging, about)
        publish(staging, raised.out, MANIFEST)
        clear(raised.out / "run")


def _tell(raised: Raised, result: dict[str, Any], show: Show) -> None:
    predicted, actual, base = result["predicted"], result["actual"], result["baselines"]
    for name, unit, scale in (
        ("seconds", "s", 1),
        ("peak_bytes", "GiB", 2**30),
        ("loss", "nats a token", 1),
        ("bits_per_byte", "", 1),
    ):
        p, a = predicted[name] / scale, actual[name] / scale
        show.line(f"  {name}: predicted {p:.4g}, actual {a:.4g} {unit} ({a / p - 1:+.1%})")
    ours = actual["bits_per_byte"]
    show.line(
        f"bits per byte: this model {ours:.3f}, byte 6-gram {base['ngram']:.3f}, xz {base['xz']:.3f}, "
        f"gzip {base['gzip']:.3f} (one xz stream over all documents: {base['xz_stream']:.3f})"
    )
    for name, share in result["shares"].items():
        show.line(f"{name}: {share['model']:.0%} of {share['n']} samples, the 6-gram's {share['ngram']:.0%}")
    show.line(f"model:  {raised.out}\nreport: {raised.out / 'report.html'}")
    show.line(f"next:   foundling chat {shlex.quote(str(raised.out))}")
