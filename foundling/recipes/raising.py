# SPDX-License-Identifier: Apache-2.0
"""Raise a model from nothing: read, split, tokenize, plan, predict, train, measure, and write all of it down."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from foundling.blocks.init import initialise
from foundling.config import dump_yaml, from_dict, load_yaml
from foundling.data.loader import evaluation_batches
from foundling.errors import MismatchError, OutputError
from foundling.evaluate.perplexity import score
from foundling.models import build, family
from foundling.objectives.causal import Causal
from foundling.plan.energy import Meter
from foundling.recipes import corpus
from foundling.recipes.planning import plan
from foundling.recipes.pretrain import pretrain
from foundling.recipes.probing import EVALUATE_ROWS, EVALUATE_STRIDE
from foundling.recipes.progress import Show
from foundling.recipes.recipe import Recipe, Request, code_version
from foundling.recipes.results import Raised, finish
from foundling.runtime.device import Runtime
from foundling.runtime.files import lock, read_json, write_bytes, write_directory, write_json
from foundling.runtime.machine import machine
from foundling.runtime.memory import PeakMemory
from foundling.runtime.rng import generator
from foundling.text import Tokenizer
from foundling.weights.directory import MANIFEST, read_manifest


def raise_model(request: Request, out: str | Path, *, resume: bool = False, show: Show | None = None) -> dict[str, Any]:
    """Raises a model into the directory `out` and returns what `foundling raise --json` prints.

    `out` must be new or empty, or hold an unfinished run of the same request when `resume` is set. Everything in work
    lives in out/run, which is removed when the model is complete.
    """
    show, out = show or Show(False), Path(out)
    with claimed(out, resume):
        if (out / MANIFEST).exists():
            show.line(f"{out} is complete already")
            corpus.clear(out / "run")
            return read_manifest(out)["result"]
        request = _settle_request(request, out / "run", resume)
        return _raise(request, None, out, show)


def resume_model(out: str | Path, *, show: Show | None = None) -> dict[str, Any]:
    """Goes on with what `out` holds; its request is read from there."""
    file = Path(out) / "run" / "request.json"
    if not file.exists() and not (Path(out) / MANIFEST).exists():
        raise OutputError(f"{out}: there is no run to resume here; start one without --resume")
    stored = read_json(file) if file.exists() else {"data": ""}
    return raise_model(from_dict(Request, stored, where=str(file)), out, resume=True, show=show)


def reproduce(
    directory: str | Path, *, data: str | None = None, out: str | Path | None = None, show: Show | None = None
) -> dict[str, Any]:
    """Raises the model in `directory` again from its recipe, into `out`, and compares the hashes of the weights.

    MismatchError if the data or the code is not what it was raised from; another machine is said, and tried.
    """
    show, directory = show or Show(False), Path(directory)
    manifest = read_manifest(directory)
    recipe = from_dict(Recipe, manifest["recipe"], where=f"{directory / MANIFEST} recipe")
    code, here = manifest["code"], code_version()
    if code["sha256"] != here["sha256"]:
        raise MismatchError(
            f"{directory} was raised by foundling {code['version']} ({code['sha256'][:12]}), this is {here['version']} "
            f"({here['sha256'][:12]}); install that version to reproduce it"
        )
    Runtime(threads=recipe.threads).setup()
    for name, there in manifest["machine"].items():
        if name in ("torch", "cpu_capability", "threads", "device") and machine()[name] != there:
            show.line(f"note: {name} is {machine()[name]} here and was {there}; equal bits are not to be expected")
    request = Request(data or recipe.data, licence=manifest.get("licence"))
    expected = {"data_hash": manifest["data_hash"], "prediction": manifest["prediction"]}
    out = Path(out) if out else directory.with_name(directory.name + "-again")
    with claimed(out, resume=False):
        result = _raise(request, recipe, out, show, expected)
    again = read_manifest(out)["weights_hash"]
    same = again == manifest["weights_hash"]
    return {"identical": same, "weights_hash": again, "expected": manifest["weights_hash"], **result}


@contextmanager
def claimed(out: Path, resume: bool) -> Iterator[None]:
    """`out` for this process alone; refuses to touch what another run or anyone else has put there."""
    if out.exists() and not out.is_dir():
        raise OutputError(f"{out}: is a file; choose another --out")
    if out.is_dir() and not resume and any(p.name != ".lock" for p in out.iterdir()):
        unfinished = (out / "run").is_dir() and not (out / MANIFEST).exists()
        way = "add --resume to go on with it" if unfinished else "nothing in it was touched"
        raise OutputError(
            f"{out}: {'holds an unfinished run' if unfinished else 'is not empty'}; {way}, or choose another --out"
        )
    with lock(out):
        yield


def _settle_request(request: Request, run: Path, resume: bool) -> Request:
    """A resumed run keeps the request it began with."""
    if resume and (run / "request.json").exists():
        return from_dict(Request, read_json(run / "request.json"), where="request.json")
    write_json(run / "request.json", asdict(request))
    return request


def _raise(
    request: Request, recipe: Recipe | None, out: Path, show: Show, expected: dict[str, Any] | None = None
) -> dict[str, Any]:
    run, memory, meter = out / "run", PeakMemory(), Meter()
    given = recipe.field if recipe else request.given.get("field", "text")
    with show.phase("read", f"reading {request.data}"):
        found, skipped = corpus.read(request.data, given)
    show.line(
        f"{found.train_documents:,} documents, {found.train_bytes / 1e6:.1f} MB to learn from; "
        f"{len(found.held_out):,} documents, {found.held_out_bytes / 1e6:.2f} MB held out"
    )
    if skipped:
        show.line("passed over: " + ", ".join(f"{n} {reason}" for reason, n in skipped.items()))
    if expected and found.data_hash != expected["data_hash"]:
        raise MismatchError(
            f"the data hashes to {found.data_hash[:12]}, the model was raised from {expected['data_hash'][:12]}; "
            "give the same data with --data"
        )
    planned = None
    if recipe is None and (run / "recipe.yaml").exists():
        recipe = from_dict(Recipe, load_yaml(run / "recipe.yaml"), where=str(run / "recipe.yaml"))
        stored = read_json(run / "prediction.json")
        if stored.pop("data_hash") != found.data_hash:
            raise MismatchError(
                f"the data has changed since {out} was begun; restore it, or start anew in another --out"
            )
        if stored.pop("code") != code_version():
            raise MismatchError(f"{out} was begun by another version of foundling; go on with that one, or start anew")
        prediction = stored
    elif recipe is None:
        planned = plan(request, found, show, memory)
        recipe, prediction = planned.recipe, planned.prediction
    else:
        assert expected
        prediction = expected["prediction"]
    tokenizer = _tokenizer(run, found, recipe, planned.tokenizer if planned else None)
    if planned:
        # both fsynced before the first step: the prediction cannot be made to fit afterwards
        write_json(run / "prediction.json", {**prediction, "data_hash": found.data_hash, "code": code_version()})
        write_bytes(run / "recipe.yaml", dump_yaml(recipe).encode())
    announce(recipe, prediction, request, show)
    with show.phase("tokenize", "encoding the text"):
        tokens = corpus.write_tokens(
            run / "tokens", found, tokenizer, recipe.data_share, recipe.fim_rate, recipe.seq_len
        )
    if planned:
        model = planned.model
    else:
        Runtime(threads=recipe.threads).setup()
        sizes = family(recipe.family).module.sized(recipe.vocab_size, recipe.seq_len, recipe.d_model, recipe.n_layers)
        model = build(recipe.family, device=recipe.device, **sizes)
        initialise(model, generator("init", recipe.seed))
    with show.phase("train"):
        log, spent = pretrain(recipe, model, tokens.train, run, show, prediction["bytes_per_token"])
    with show.phase("evaluate", "measuring on the held-out text"):
        batches = evaluation_batches(
            tokens.held_out,
            seq_len=recipe.seq_len,
            batch_size=EVALUATE_ROWS,
            stride=max(1, recipe.seq_len // EVALUATE_STRIDE),
        )
        runtime = Runtime(recipe.device, recipe.precision, recipe.threads)
        held_out = score(model, Causal(), batches, found.held_out_bytes, runtime)
    seconds = spent + show.elapsed
    raised = Raised(
        request, recipe, prediction, found, skipped, tokenizer, tokens, model, log.entries, held_out, seconds,
        memory, meter, out,
        time.strftime("%Y-%m-%d %H:%M"),
    )  # fmt: skip
    result = finish(raised, show)
    memory.done.set()
    return result


def _tokenizer(run: Path, found: Any, recipe: Recipe, trained: Tokenizer | None) -> Tokenizer:
    directory = run / "tokenizer"
    if not (directory / "tokenizer.json").exists():
        made = trained or corpus.train_tokenizer(found, recipe.vocab_size)
        write_directory(directory, made.save)
    return Tokenizer.load(directory)


def announce(recipe: Recipe, prediction: dict[str, Any], request: Request, show: Show) -> None:
    """What it chose and what it will take, before it is spent."""
    p = prediction
    show.line(
        f"plan: {recipe.family} of {p['params'] / 1e6:.2f} M parameters, {recipe.tokens / 1e6:.2f} M tokens in "
        f"{recipe.total_steps} steps, {p['flops']:.2e} FLOPs"
    )
    chosen = [f"{k}={v}" for k, v in asdict(recipe).items() if k not in ("data", "total_steps", "family")]
    show.line("  " + " ".join(chosen))
    show.line(
        f"prediction: {p['seconds']:.0f} s, {p['peak_bytes'] / 2**30:.2f} GiB, {p['joules']['value'] / 1000:.1f} kJ "
        f"({p['joules']['source'].split(':')[0]}), held-out loss {p['loss']:.3f} nats a token = "
        f"{p['bits_per_byte']:.3f} bits per byte (the law's own error is {p['law_error']:.0%})"
    )
