# SPDX-License-Identifier: Apache-2.0
"""What is written when training has ended: baselines, samples, report, card, and the model directory."""

from __future__ import annotations

import io
import shlex
import tokenize
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from foundling.data.corpora import CORPORA, corpus
from foundling.data.split import Split
from foundling.decode.plain import generate
from foundling.evaluate import compression
from foundling.evaluate.card import model_card
from foundling.evaluate.ngram import ByteNGram
from foundling.evaluate.perplexity import Score
from foundling.evaluate.report import Run, write_report
from foundling.plan.energy import Meter
from foundling.recipes.corpus import BUILTIN, Tokens, clear
from foundling.recipes.planning import MAX_NGRAM_BYTES
from foundling.recipes.progress import Show
from foundling.recipes.recipe import Recipe, Request, code_version
from foundling.runtime.machine import machine
from foundling.runtime.memory import PeakMemory, trim_memory
from foundling.text import Tokenizer
from foundling.weights.directory import MANIFEST, weights_hash, whole_parameters, write_manifest, write_weights
from foundling.weights.files import output_errors, publish, write_bytes, write_json

N_SAMPLES = 50
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
        baselines, ngram = measure_baselines(raised)
    with show.phase("samples", "sampling"):
        samples = sample(raised)
        shares = python_shares(raised, samples, ngram)
        texts = [text for text, _ in samples]
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
        "shares": shares,
        "phases": phases(show),
    }
    with show.phase("write"):
        _write(raised, result, texts, show)
    _tell(raised, result, show)
    return result


def phases(show: Show) -> dict[str, float]:
    """Seconds by what they went to."""
    total: dict[str, float] = {}
    for name, seconds in show.timeline:
        total[name] = round(total.get(name, 0.0) + seconds, 2)
    return total


def measure_baselines(raised: Raised) -> tuple[dict[str, float], ByteNGram]:
    """Held-out bits per byte of compressors and of a byte 6-gram fitted to the training text (its first 32 MB)."""
    held_out = [d.text.encode() for d in raised.found.held_out]
    training, left = [], MAX_NGRAM_BYTES
    for document in raised.found.train():
        text = document.text.encode()[:left]
        training.append(text)
        left -= len(text)
        if left <= 0:
            break
    ngram = ByteNGram.fit(training)
    figures = {**compression.bits_per_byte(held_out), "ngram": ngram.bits_per_byte(held_out)}
    return {name: round(value, 5) for name, value in figures.items()}, ngram


def sample(raised: Raised) -> list[tuple[str, bool]]:
    """Texts from nothing but the opening token, and whether each was cut off before its own end."""
    room = raised.recipe.seq_len - 1
    with torch.compiler.set_stance("force_eager"):
        rows = generate(
            raised.model.eval(),
            [[raised.tokenizer.eos]] * N_SAMPLES,
            max_tokens=room,
            temperature=TEMPERATURE,
            top_p=TOP_P,
            seed=raised.recipe.seed,
            stop=[raised.tokenizer.eos],
        )
    return [(raised.tokenizer.decode(row.tokens), row.finish_reason == "length") for row in rows]


def tokenizes(text: str, *, cut: bool) -> tuple[bool, bool]:
    """Whether Python's tokenizer meets no error (before the end, at all) in the text, less a last line cut short.

    A text that was `cut` may stand inside a string or bracket at its end: so do the openings of good programs, which is
    why that is told apart from an error before the end.
    """
    whole = (text[: text.rfind("\n") + 1] or text) if cut else text
    try:
        for _ in tokenize.generate_tokens(io.StringIO(whole).readline):
            pass
    except tokenize.TokenError as error:  # 3.11 and 3.12 word it differently
        at_the_end = "EOF in multi-line" in str(error) or "unterminated triple-quoted" in str(error)
        return cut and at_the_end, False
    except (SyntaxError, ValueError):
        return False, False
    return True, True


def python_shares(raised: Raised, samples: list[tuple[str, bool]], ngram: ByteNGram) -> dict[str, Any]:
    """Where the corpus is Python: the share of samples its tokenizer reads, of the model, of the 6-gram at
    the same lengths, and (strictly, for scale) of the held-out text itself cut to them."""
    found = raised.found.held_out
    if sum(d.name.endswith(".py") for d in found) < len(found) / 2:
        return {}
    lengths = [max(1, len(text.encode())) for text, _ in samples]
    theirs = [ngram.sample(i, n, TEMPERATURE) for i, n in enumerate(lengths)]
    real = [found[i % len(found)].text.encode()[:n] for i, n in enumerate(lengths)]
    ours = [tokenizes(text, cut=cut) for text, cut in samples]
    ngrams = [tokenizes(t.decode(errors="replace"), cut=len(t) >= n) for t, n in zip(theirs, lengths, strict=True)]
    texts_cut = [tokenizes(t.decode(errors="ignore"), cut=True) for t in real]
    n = len(samples)
    return {
        "passes Python's tokenize up to the cut": {"model": share(ours, 0), "ngram": share(ngrams, 0), "n": n},
        "passes it with nothing left open either": {
            "model": share(ours, 1), "ngram": share(ngrams, 1), "n": n, "held_out_text": share(texts_cut, 1),
        },
    }  # fmt: skip


def share(results: list[tuple[bool, bool]], which: int) -> float:
    return round(sum(result[which] for result in results) / len(results), 4)


def make_run(raised: Raised, result: dict[str, Any], texts: list[str], show: Show) -> Run:
    recipe, found, prediction = raised.recipe, raised.found, raised.prediction
    given = {*raised.request.given, "data"}
    quoted = shlex.quote(str(raised.out))
    note = f"from nothing, temperature {TEMPERATURE}, top-p {TOP_P}"
    return Run(
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
        shares={k: {n: v[n] for n in ("model", "ngram", "n")} for k, v in result["shares"].items()},  # pyright: ignore
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


def _write(raised: Raised, result: dict[str, Any], texts: list[str], show: Show) -> None:
    run = make_run(raised, result, texts, show)
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
        card = model_card(
            run,
            model_id=run.name,
            family=raised.recipe.family,
            data_licence=raised.licence,
            flops=run.flops,
            parents=[],
        )
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
