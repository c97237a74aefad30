# SPDX-License-Identifier: Apache-2.0
"""What a model that is raised and aligned in one run needs beside its stages (aligned.py): the questions, the plan of
the whole, and the answers of the three models to held-out questions."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from foundling.contracts.records import Stage
from foundling.data.formats import DEFAULT_FIELD
from foundling.data.ingest import Corpus
from foundling.data.question_sets import DEMONSTRATIONS, FILES, HELD_OUT, Chat, chats_of, read_chats, write_sets
from foundling.data.questions import of_rows, questions_of, rows_of
from foundling.errors import MismatchError
from foundling.evaluate.local import LocalModel
from foundling.evaluate.tasks.chats import answer_of, measure, measure_frequent
from foundling.recipes.finetune_data import MAX_SEQ_LEN
from foundling.recipes.journal import PLAN
from foundling.recipes.judging import METRICS
from foundling.recipes.progress import Progress
from foundling.recipes.publish import Outcome
from foundling.recipes.recipe import Recipe, Request
from foundling.recipes.run import Run
from foundling.runtime.files import read_json
from foundling.runtime.memory import trim_memory
from foundling.text import Tokenizer
from foundling.text.framing import Framing
from foundling.weights.directory import weights_hash
from foundling.weights.manifest import read_manifest
from foundling.weights.text_spec import read_text_spec

N_SHOWN = 12
"""held-out questions in the report"""
SPARE_TOKENS, TURN_TOKENS = 8, 8
"""of a conversation beside its texts, at most: at its end, and of a template around each message"""
RECORDED = ("kind", "recipe", "prediction", "data_hash", "weights_hash", "result")
"""of the manifest of a stage"""


def find_chats(request: Request, corpus: Corpus, exclude: Path, progress: Progress) -> list[Chat]:
    """Those that were given, or that the data yields. DataError where they are too few."""
    if request.align:
        chats, skipped = read_chats(request.align)
        say_skipped(skipped, progress)
        return chats
    progress.line("looking for questions that the text answers")
    rows = of_rows(rows_of(request.data, request.get("data.field", DEFAULT_FIELD), exclude))
    return chats_of([*rows, *questions_of(corpus.train())], request.data)


def make_questions(
    chats: Sequence[Chat], folder: Path, tokenizer: Tokenizer, recipe: Recipe, progress: Progress
) -> None:
    """Writes what the stages learn from, unless it is there. `recipe`: of the model that reads it."""
    if not folder.exists():
        longest = recipe.model.fields.get("max_seq_len", recipe.train.seq_len)
        most = min(longest, MAX_SEQ_LEN) - SPARE_TOKENS
        left_out = write_sets(
            folder, chats, lambda texts: sum(len(tokenizer.encode(text)) + TURN_TOKENS for text in texts) <= most
        )
        say_skipped(left_out, progress)
    n = {name: len(read_lines(folder / name)) for name in FILES}
    progress.line(", ".join(f"{count:,} {name.removesuffix('.jsonl').replace('_', ' ')}" for name, count in n.items()))


def say_skipped(skipped: Mapping[str, int], progress: Progress) -> None:
    if skipped:
        progress.line("skipped: " + ", ".join(f"{n:,} {reason}" for reason, n in skipped.items()))


def read_lines(file: Path) -> list[dict[str, Any]]:
    """MismatchError where a run that goes on lacks it."""
    try:
        return [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n") if line]
    except (OSError, ValueError):
        raise MismatchError(f"{file}: missing or damaged; put the original back, or start anew") from None


def with_answers(run: Run, outcome: Outcome, folder: Path, questions: Path) -> Outcome:
    """What the last stage publishes, with the answers of the base, of the model after SFT and of this one to held-out
    questions, all asked in the same chat format, and the records of the stages."""
    rows, learnt = read_lines(questions / HELD_OUT), read_lines(questions / DEMONSTRATIONS)
    run.progress.line(f"asking the three models {len(rows):,} held-out questions")
    results, answers, device = [*outcome.results], dict[str, list[str]](), next(outcome.model.parameters()).device.type
    framing = Framing(outcome.tokenizer, read_text_spec(folder / "sft", outcome.model))  # one way to ask and to end
    with run.clock.phase("answers"):
        for name, place in (("base", "base"), ("after SFT", "sft"), ("model", "")):
            model = LocalModel.load(folder / place, device=device).model if place else outcome.model
            subject = LocalModel(
                model.eval(), framing, name=name, chat=True, truncate=True,
                model_hash=weights_hash(model),
            )  # fmt: skip
            measured, answers[name] = measure(subject, rows)
            results += measured
            del subject, model
            trim_memory()
    results += measure_frequent(rows, learnt)
    shown = [
        {"prompt": str(row["messages"][-2]["content"]), "reference": answer_of(row), "before": old, "after": new}
        for row, old, new in zip(rows, answers["base"], answers["model"], strict=True)
    ][:N_SHOWN]
    plan = read_json(run.directory / PLAN)
    records = [{"name": name, **_recorded(folder / name)} for name in ("base", "sft")]
    stages = [_stage(r["name"], plan, r["kind"], r["result"]["actual"], r["result"]["metric"]) for r in records]
    figures = {"seconds": run.seconds, **outcome.figures}
    stages.append(_stage("dpo", plan, outcome.kind, figures, outcome.metric.key))
    return replace(outcome, results=results, comparisons=shown, stages=stages, about={"stages": records, "plan": plan})


def _recorded(directory: Path) -> dict[str, Any]:
    manifest = read_manifest(directory)
    return {key: manifest[key] for key in RECORDED}


def _stage(name: str, plan: Mapping[str, Any], kind: str, actual: Mapping[str, Any], metric: str) -> Stage:
    words = {"loss": METRICS["chat"].name, "bits_per_byte": "bits per byte"}.get(metric, metric)
    planned = plan["stages"][name]
    return Stage(
        name=name, kind=kind, examples=planned["text"], planned_seconds=planned["seconds"], seconds=actual["seconds"],
        metric=words, value=actual.get(metric),
    )  # fmt: skip
