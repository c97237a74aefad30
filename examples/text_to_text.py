# SPDX-License-Identifier: Apache-2.0
"""One T5 does several tasks, told apart by the first word of the text (Raffel et al. 2020, section 2.4).

python -m examples.text_to_text [--small] [--minutes 30]

It is pretrained on spans (examples.self_supervision) and finetuned on a mixture of four tasks at once: the section of a
package by its description, whether an e-mail is spam, and of the same dates the day, and the German month. That the
prefix decides shows where one text is asked for two ways: each date, descriptions for spam, e-mails for a section.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

import foundling
from benchmarks.corpora import WORK
from benchmarks.datasets import part, read
from benchmarks.runs import foundling_json
from examples.pairs import Dates
from examples.programs import Parser, cost_of, require_all, run, table
from examples.self_supervision import FLOPS, SMALL, directory, pretrained
from foundling.decode.plain import generate
from foundling.evaluate.intervals import wilson
from foundling.runtime.rng import generator
from foundling.text import Tokenizer

TASKS = ("section", "spam", "day", "month")
TRAIN, HELD_OUT = {"section": 1000, "spam": 1000, "day": 2000, "month": 2000}, 200
"""examples of each task"""
LETTERS, SEQ_LEN, EPOCHS = 120, 64, 8
MODEL, FREQUENT = "with prefixes", "most frequent answer"
FORMS = {"spam": "spam|ham", "day": r"\d\d?", "month": r"[^\W\d]+"}
"""task -> what its answers look like; those of `section` are the sections of the training examples"""
SWAPPED = (("section", "spam"), ("spam", "section"), ("day", "month"), ("month", "day"))
"""texts of one task that are asked for another"""
OPTIONS = ["--method", "full", "--optimizer", "muon", "--learning-rate", "0.01", "--matrix-learning-rate", "0.01"]
OPTIONS += ["--batch-size", "32", "--seq-len", str(SEQ_LEN)]
Item = tuple[str, str]
"""a text and what is to be written for it"""


def labelled(name: str, held_out: bool) -> Iterator[Item]:
    size = TRAIN["section" if name == "sections" else name]
    rows = read(part(name, "test" if held_out else f"train-{size}"))
    yield from ((" ".join(row["text"].split())[:LETTERS], row["label"]) for row in rows)


def dates(task: str, held_out: bool, n: int) -> Iterator[Item]:
    """English dates of CLDR's formats; no held-out day is trained on."""
    made = Dates(locales=("en", "de"))
    english, german = made.calendars
    days = made.parts[held_out]
    draw = generator("text to text", int(held_out))
    for _ in range(n):
        day = days[int(torch.randint(len(days), (), generator=draw))]
        pattern = int(torch.randint(len(english.patterns), (), generator=draw))
        answer = str(day.day) if task == "day" else german.write(day, "MMMM")
        yield english.write(day, english.patterns[pattern]), answer


def items(task: str, *, held_out: bool) -> list[Item]:
    n = HELD_OUT if held_out else TRAIN[task]
    if task in ("day", "month"):
        return list(dates(task, held_out, n))
    name = "sections" if task == "section" else task
    trained = {text for text, _ in labelled(name, False)} if held_out else ()  # the cut makes some texts alike
    return [item for item in labelled(name, held_out) if item[0] not in trained][:n]


def mixture() -> Path:
    file = WORK / "self-supervision" / "mixture.jsonl"
    file.parent.mkdir(parents=True, exist_ok=True)
    rows = [
        {"source": f"{task}: {text}", "target": target}
        for task in TASKS
        for text, target in items(task, held_out=False)
    ]
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return file


def answers(model: Any, tokenizer: Tokenizer, texts: list[str]) -> list[str]:
    """The likeliest tokens for each text."""
    written = []
    for at in range(0, len(texts), 50):
        sources = [[*tokenizer.encode(text)[: SEQ_LEN - 1], tokenizer.eos] for text in texts[at : at + 50]]
        answered = generate(model, sources, max_tokens=24, temperature=0, stop=[tokenizer.eos])
        written += [tokenizer.decode(completion.tokens).strip() for completion in answered]
    return written


def measure(small: bool) -> dict[str, Any]:
    flops = FLOPS * (SMALL if small else 1)
    base = directory("spans", flops)
    if not base.exists():
        pretrained("spans", flops)
    out = WORK / "self-supervision" / "text-to-text"
    shutil.rmtree(out, ignore_errors=True)
    epochs = str(1 if small else EPOCHS)
    actual = foundling_json(
        "finetune", base, mixture(), "--as", "seq2seq", *OPTIONS, "--epochs", epochs, "--out", out
    )["actual"]  # fmt: skip
    scored = evaluate(foundling.load(out).eval(), Tokenizer.load(out))
    shutil.rmtree(out, ignore_errors=True)
    cost = {"minutes": round(actual["seconds"] / 60, 2), "peak memory (MB)": round(actual["peak_bytes"] / 1e6)}
    return scored | cost


def evaluate(model: Any, tokenizer: Tokenizer) -> dict[str, Any]:
    """`right`: task -> share of whole answers; `form`: share of answers of the form of what was asked for, where the
    text is another task's; and an example of each task."""
    right, form, examples = dict[str, float](), dict[str, float](), list[list[str]]()
    for task in TASKS:
        test_items = items(task, held_out=True)
        written = answers(model, tokenizer, [f"{task}: {text}" for text, _ in test_items])
        right[task] = sum(a == b for a, (_, b) in zip(written, test_items, strict=True)) / len(test_items)
        examples.append([f"{task}: {test_items[0][0][:60]}", test_items[0][1], written[0]])
    sections = "|".join(re.escape(name) for name in {target for _, target in items("section", held_out=False)})
    for of, task in SWAPPED:
        written = answers(model, tokenizer, [f"{task}: {text}" for text, _ in items(of, held_out=True)])
        pattern = FORMS.get(task, sections)
        form[f"{of} texts, asked for {task}"] = sum(bool(re.fullmatch(pattern, a)) for a in written) / len(written)
    return {"right": right, "form": form, "examples": examples}


def most_frequent(task: str) -> float:
    """The share that the likeliest training answer gets right."""
    seen = [target for _, target in items(task, held_out=False)]
    best = max(set(seen), key=seen.count)
    test_items = items(task, held_out=True)
    return sum(target == best for _, target in test_items) / len(test_items)


def task_table(values: dict[str, Any]) -> str:
    """The share of whole answers, with its interval, by task."""
    rows: list[tuple[Any, ...]] = [("task", "right", FREQUENT)]
    for task in TASKS:
        share = values[MODEL]["right"][task]
        low, high = wilson(share, HELD_OUT)
        rows.append((task, f"{share:.3f} ({low:.3f}–{high:.3f})", f"{values[FREQUENT][task]:.3f}"))
    return table(rows)


def form_table(values: dict[str, Any]) -> str:
    return table(
        [("texts and prefix", "answers of that form"), *((k, f"{v:.3f}") for k, v in values[MODEL]["form"].items())]
    )


def main() -> None:
    parser = Parser("text_to_text", __doc__, small="one epoch, from a twentieth of the pretraining", seeds=False)
    args = parser.parse_args()
    settings = {"examples": TRAIN, "epochs": 1 if args.small else EPOCHS, "letters": LETTERS, "finetuning": OPTIONS}
    results, _ = parser.results(args, settings)
    results.get(MODEL, lambda: measure(args.small))
    results.get(FREQUENT, lambda: {task: most_frequent(task) for task in TASKS})
    require_all(results)
    print("\n" + task_table(results.values) + "\n\n" + form_table(results.values) + "\n\n" + cost_of(results))


if __name__ == "__main__":
    run(main)
