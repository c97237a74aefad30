# SPDX-License-Identifier: Apache-2.0
"""Ways to structured output compared on SmolLM2-135M-Instruct: a package of Debian -> one JSON object.

python -m benchmarks.structured_output [ROW …] [--items 300] [--minutes 60]     into docs/results/structured_output.json

    Package: libcivetweb-dev
    Installed size: 121        ->    {"section": "libdevel", "is_library": true, "size_kib": 121}
    Description: embeddable …

The section is one of the 20 largest, to be inferred, as is whether the package is a library: its section is libs or
libdevel, or its name begins with "lib". The size is copied. Valid is an answer that is such an object, alone or in one
Markdown fence. Seconds are of one processor core, so that other work on the machine changes them little; reading the
vocabulary and compiling the constraint, once for a model, are not in them (benchmarks/structured_speed.py). A call goes
on where another stopped, and begins no row after --minutes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import resource
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import json_repair

from benchmarks.chat_task import smollm2
from benchmarks.corpora import WORK
from benchmarks.datasets import described, digest, is_test, write
from benchmarks.runs import DOCS, Results, commit, foundling_json
from foundling.decode.classify import Classifier
from foundling.decode.constrain.constrainer import Constrainer
from foundling.decode.constrain.constraint import Constraint, json_schema
from foundling.decode.engine.engine import Engine, EngineOptions
from foundling.decode.request import Request
from foundling.decode.sampling import Sampling
from foundling.evaluate.intervals import interval_of
from foundling.text import Tokenizer
from foundling.text.framing import Framing
from foundling.verify.structured import json_value, matches_schema
from foundling.weights.loading import load
from foundling.weights.text_spec import read_text_spec

FOLDER = WORK / "structured"
N_TRAIN, N_TEST, N_SHOWN, N_TRIES = 400, 300, 3, 4
MAX_TOKENS = 64
BATCH = 32
FIELDS = ("section", "is_library", "size_kib")
SHORT = "Reply with the package as one JSON object."
"""the instruction of the finetuned model, which learns the rest from its examples"""
Item = dict[str, Any]
Answer = dict[str, Any]
"""{"text", "tokens": new ones of all tries, "seconds"}"""


NAMES = {
    "prompt": "a prompt",
    "examples": "a prompt with examples",
    "first valid": f"… first valid of {N_TRIES}",
    "repair": "a prompt, repaired",
    "examples and repair": "a prompt with examples, repaired",
    "constrained": "a prompt with examples, constrained",
    "finetuned": "finetuned",
    "finetuned and constrained": "finetuned, constrained",
    "head": "a classification head",
}


MISSING = "not measured yet"


def table(results: dict[str, Any]) -> str:
    """The table of docs/structured_choices.md."""
    columns = ["way", "valid", "all right", *FIELDS, "new tokens", "seconds", "training"]
    lines = [table_row(columns), table_row(["---", *["--:"] * (len(columns) - 1)])]
    for name, shown in NAMES.items():
        if name in results:
            row = results[name]
            fields = [cell(row["fields"].get(field)) for field in FIELDS]
            paid = row["cost"]
            costs = [f"{paid['tokens']:.1f}", f"{paid['seconds']:.2f}", f"{paid['training seconds']:.0f}"]
            lines.append(table_row([shown, cell(row["valid"]), cell(row["exact"]), *fields, *costs]))
        else:
            lines.append(missing_row(shown, columns))
    return "\n".join(lines)


def missing_row(shown: str, columns: Sequence[str]) -> str:
    return table_row([shown, MISSING, *[""] * (len(columns) - 2)])


def fill_table(results: Results, make: Callable[[dict[str, Any]], str], names: Iterable[str]) -> None:
    """Puts the table into the page, and notes in the results that all of it is measured, once it is."""
    if all(name in results.values for name in names) and not results.values.get("whole"):
        results.values["whole"] = True
        results.save()
    fill_page(results.file.stem, make(results.values))


def cell(value: dict[str, Any] | None) -> str:
    return "–" if value is None else f"{value['value']:.2f} ({value['low']:.2f}–{value['high']:.2f})"


def table_row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def fill_page(name: str, text: str) -> None:
    """Replaces what stands between <!-- name --> and <!-- end --> on the page."""
    page = DOCS / "structured_choices.md"
    before, mark, rest = page.read_text(encoding="utf-8").partition(f"<!-- {name} -->\n")
    page.write_text(f"{before}{mark}{text}\n<!-- end -->{rest.partition('<!-- end -->')[2]}", encoding="utf-8")


# ---------------------------------------------------------------------------------------------------------------- data


def items() -> tuple[list[Item], list[Item]]:
    """N_TRAIN to learn from and N_TEST held out, with the smallest hashes; no source package is in both."""
    file = FOLDER / "items.json"
    if not file.exists():
        packages = described()
        largest = [name for name, _ in Counter(fields["Section"] for fields in packages).most_common(20)]
        parts: tuple[list[Item], list[Item]] = [], []
        for fields in sorted(packages, key=lambda fields: digest(fields["Package"])):
            part = parts[is_test(fields["Source"])]
            usable = fields["Section"] in largest and fields.get("Installed-Size", "").isdecimal()
            if usable and len(part) < (N_TRAIN, N_TEST)[part is parts[1]]:
                part.append(item_of(fields))
        FOLDER.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps({"sections": sorted(largest), "train": parts[0], "test": parts[1]}))
    value = json.loads(file.read_text())
    return value["train"], value["test"]


def item_of(fields: dict[str, str]) -> Item:
    section, name, size = fields["Section"], fields["Package"], fields["Installed-Size"]
    return {
        "prompt": f"Package: {name}\nInstalled size: {size}\nDescription: {fields['short']}",
        "answer": {
            "section": section, "is_library": section in ("libs", "libdevel") or name.startswith("lib"),
            "size_kib": int(size),
        },
    }  # fmt: skip


def schema() -> dict[str, Any]:
    items()
    sections = json.loads((FOLDER / "items.json").read_text())["sections"]
    kinds = {
        "section": {"enum": sections},
        "is_library": {"type": "boolean"},
        "size_kib": {"type": "integer", "minimum": 0},
    }
    return {"type": "object", "properties": kinds, "required": list(FIELDS), "additionalProperties": False}


def instruction() -> str:
    sections = ", ".join(schema()["properties"]["section"]["enum"])
    return (
        f'{SHORT} Its keys: "section", one of {sections}; "is_library", true or false; "size_kib", the installed size '
        "as a number. Write nothing else."
    )


def messages_of(system: str, item: Item, shown: Sequence[Item] = ()) -> list[dict[str, str]]:
    """Messages, with solved items before the one to be solved."""
    messages = [{"role": "system", "content": system}]
    for example in shown:
        messages += [{"role": "user", "content": example["prompt"]}, _written(example)]
    return [*messages, {"role": "user", "content": item["prompt"]}]


def _written(item: Item) -> dict[str, str]:
    answer = item["answer"]
    return {"role": "assistant", "content": answer if isinstance(answer, str) else json.dumps(answer)}


# ------------------------------------------------------------------------------------------------------------- answers


LORA = ("--epochs", "1", "--evaluate-every", "0", "--batch-size", "4", "--micro-batch-size", "4")


class Generator:
    """Answers of one model directory. Those that are there are read from a file."""

    def __init__(self, directory: Path, folder: Path) -> None:
        self.directory, self.folder = directory, folder
        self.engine: Engine | None = None

    def _load(self) -> tuple[Engine, Framing, Constrainer]:
        if self.engine is None:
            model = load(self.directory, merged=True)
            self.engine = Engine(model, EngineOptions(weights="int8", max_num_seqs=BATCH))
            self.framing = Framing(Tokenizer.load(self.directory), read_text_spec(self.directory, model))
            self.constrainer = Constrainer(self.framing.tokenizer, model.config.vocab_size, self.framing.ends)
        return self.engine, self.framing, self.constrainer

    def answers(
        self, name: str, chats: list[list[dict[str, str]]], *, max_tokens: int, constraint: Constraint | None = None,
        temperature: float = 0.0, seed: int = 0, stop_strings: Sequence[str] = (),
    ) -> list[Answer]:  # fmt: skip
        file = self.folder / f"{name}.jsonl"
        file.parent.mkdir(parents=True, exist_ok=True)
        lines = file.read_text(encoding="utf-8").split("\n")[:-1] if file.exists() else []  # the last may be broken off
        done: dict[str, Answer] = {answer["key"]: answer for answer in map(json.loads, lines)}
        file.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
        facts = [self.directory.name, constraint and constraint.grammar, max_tokens, temperature, seed, [*stop_strings]]
        setting = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]
        # answers of before the setting was in the key have the chat alone
        keys = [chat if (chat := json.dumps(each)) in done else f"{setting} {chat}" for each in chats]
        todo = [(key, chat) for key, chat in zip(keys, chats, strict=True) if key not in done]
        for at in range(0, len(todo), BATCH):
            engine, framing, constrainer = self._load()
            processors = [] if constraint is None else [constrainer.processor(constraint)]
            ids = [framing.chat(chat) for _, chat in todo[at : at + BATCH]]
            requests = [
                Request(
                    row, max_tokens, Sampling(temperature), seed + at + i, [*framing.ends, *framing.stops(())],
                    stop_strings, framing.answer(row), processors=processors,
                ) for i, row in enumerate(ids)
            ]  # fmt: skip
            start = time.process_time()
            if at == 0:  # what the prompts begin with is computed once, and shared
                engine.generate([replace(requests[0], max_tokens=1)])
            completions = engine.generate(requests)
            seconds = (time.process_time() - start) / len(ids)
            with file.open("a", encoding="utf-8") as out:
                for (key, _), each in zip(todo[at : at + BATCH], completions, strict=True):
                    done[key] = {"key": key, "text": each.text or "", "tokens": len(each.tokens), "seconds": seconds}
                    out.write(json.dumps(done[key]) + "\n")
            print(f"{name}: {at + len(ids)} of {len(todo)}", flush=True)
        return [done[key] for key in keys]


def finetune(kind: str, method: str, train: Path, held_out: Path, out: Path, *options: str) -> dict[str, float]:
    """Writes a whole model; seconds of a processor core, and of the clock."""
    record = out.with_name(out.name + ".json")
    if not (out / "foundling.json").exists():
        shutil.rmtree(out, ignore_errors=True)
        before, start = _children_seconds(), time.monotonic()
        extra = ["--merged"] if method == "lora" else []
        foundling_json("finetune", smollm2(), train, "--as", kind, "--method", method, "--held-out", held_out,
                       "--out", out, "--threads", "1", "--precision", "float32", "--compile", "false", *extra,
                       *options)  # fmt: skip
        costs = {"processor": _children_seconds() - before, "clock": time.monotonic() - start}
        record.write_text(json.dumps({name: round(value, 1) for name, value in costs.items()}))
    return json.loads(record.read_text())


def _children_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def share(marks: Sequence[bool]) -> dict[str, Any]:
    low, high, method = interval_of([float(mark) for mark in marks])
    return {"value": sum(marks) / len(marks), "low": low, "high": high, "interval": method, "n": len(marks)}


def cost(answers: Sequence[Answer], training: dict[str, float] | None = None) -> dict[str, float]:
    n = len(answers)
    return {
        "tokens": round(sum(answer["tokens"] for answer in answers) / n, 2),
        "seconds": round(sum(answer["seconds"] for answer in answers) / n, 4),
        "training seconds": round((training or {}).get("processor", 0.0), 1),
    }


# ---------------------------------------------------------------------------------------------------------------- rows


class Rows:
    """Each row is a way; a method gives its answers, and the seconds of its training."""

    def __init__(self, n: int) -> None:
        self.train, test = items()
        self.test, self.schema = test[:n], schema()
        self.constraint = json_schema(self.schema)
        self.base = Generator(smollm2(), FOLDER / "answers")
        self.every: dict[str, Callable[[], tuple[list[Answer], dict[str, float] | None]]] = {
            "prompt": lambda: (self.prompted("prompt", 0), None),
            "examples": lambda: (self.prompted("examples", N_SHOWN), None),
            "first valid": lambda: (self.first_valid(), None),
            "repair": lambda: (self.repaired("prompt", 0), None),
            "examples and repair": lambda: (self.repaired("examples", N_SHOWN), None),
            "constrained": lambda: (self.prompted("constrained", N_SHOWN, self.constraint), None),
            "finetuned": lambda: self.finetuned("finetuned", None),
            "finetuned and constrained": lambda: self.finetuned("finetuned-constrained", self.constraint),
        }

    def prompted(self, name: str, shown: int, constraint: Constraint | None = None) -> list[Answer]:
        chats = [messages_of(instruction(), item, self.train[:shown]) for item in self.test]
        return self.base.answers(name, chats, max_tokens=MAX_TOKENS, constraint=constraint)

    def first_valid(self) -> list[Answer]:
        """The greedy answer to the prompt with examples, then samples until one is valid."""
        answers = [dict(answer) for answer in self.prompted("examples", N_SHOWN)]
        for attempt in range(1, N_TRIES):
            todo = [i for i, answer in enumerate(answers) if self.value(answer["text"]) is None]
            chats = [messages_of(instruction(), self.test[i], self.train[:N_SHOWN]) for i in todo]
            tries = self.base.answers(
                f"try-{attempt}", chats, max_tokens=MAX_TOKENS, temperature=0.8, seed=10_000 * attempt
            )
            for i, new in zip(todo, tries, strict=True):
                sums = {key: answers[i][key] + new[key] for key in ("tokens", "seconds")}
                answers[i] = {**new, **sums}
        return answers

    def repaired(self, name: str, shown: int) -> list[Answer]:
        answers = list[Answer]()
        for answer in self.prompted(name, shown):
            start = time.process_time()
            text = json_repair.repair_json(answer["text"])
            answers.append({**answer, "text": text, "seconds": answer["seconds"] + time.process_time() - start})
        return answers

    def finetuned(self, name: str, constraint: Constraint | None) -> tuple[list[Answer], dict[str, float]]:
        chats = [{"messages": [*messages_of(SHORT, item), _written(item)]} for item in self.train]
        write(FOLDER / "train.jsonl", chats[20:])
        write(FOLDER / "validation.jsonl", chats[:20])
        training = finetune("chat", "lora", FOLDER / "train.jsonl", FOLDER / "validation.jsonl", FOLDER / "finetuned",
                            *LORA)  # fmt: skip
        model = Generator(FOLDER / "finetuned", FOLDER / "answers")
        chats = [messages_of(SHORT, item) for item in self.test]
        return model.answers(name, chats, max_tokens=MAX_TOKENS, constraint=constraint), training

    def value(self, text: str) -> dict[str, Any] | None:
        """The object, where the answer is valid."""
        read_value = json_value(text)
        return read_value.value if read_value and matches_schema(read_value.value, self.schema) else None

    def measure(self, name: str) -> dict[str, Any]:
        answers, training = self.every[name]()
        pairs = [(self.value(answer["text"]), item["answer"]) for answer, item in zip(answers, self.test, strict=True)]
        fields = {
            field: share([value is not None and value[field] == truth[field] for value, truth in pairs])
            for field in FIELDS
        }
        return {
            "valid": share([value is not None for value, _ in pairs]),
            "exact": share([value == truth for value, truth in pairs]),
            "fields": fields, "cost": cost(answers, training), "examples": [answer["text"] for answer in answers[:2]],
        }  # fmt: skip

    def measure_head(self) -> dict[str, Any]:
        """The section alone, by a linear probe on the states of the frozen model."""
        rows = [{"text": item["prompt"], "label": item["answer"]["section"]} for item in self.train]
        write(FOLDER / "train-labels.jsonl", rows[20:])
        write(FOLDER / "validation-labels.jsonl", rows[:20])
        training = finetune("classify", "head", FOLDER / "train-labels.jsonl", FOLDER / "validation-labels.jsonl",
                            FOLDER / "head")  # fmt: skip
        classifier = Classifier.load(FOLDER / "head")
        start = time.process_time()
        labels = [each["label"] for each in classifier.classify([item["prompt"] for item in self.test])]
        seconds = (time.process_time() - start) / len(labels)
        marks = [label == item["answer"]["section"] for label, item in zip(labels, self.test, strict=True)]
        answers = [{"tokens": 0, "seconds": seconds}] * len(labels)
        return {
            "valid": share([True] * len(labels)), "exact": None, "fields": {"section": share(marks)},
            "cost": cost(answers, training), "examples": labels[:2],
        }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", metavar="ROW")
    parser.add_argument("--items", type=int, default=N_TEST)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--out", type=Path, help="another file for the results")
    parser.add_argument("--table", action="store_true", help="only put the table into docs/structured_choices.md")
    args = parser.parse_args()
    if args.table:
        fill_table(Results("structured_output", args.out), table, NAMES)
        return
    results, rows = Results("structured_output", args.out, minutes=args.minutes), Rows(args.items)
    sections = Counter(item["answer"]["section"] for item in rows.test)
    results.get("data", lambda: {
        "commit": commit(), "train": len(rows.train), "held out": len(rows.test), "shown": N_SHOWN, "tries": N_TRIES,
        "most frequent section": max(sections.values()) / len(rows.test),
    })  # fmt: skip
    for name in args.rows or [*rows.every, "head"]:
        measure = rows.measure_head if name == "head" else lambda name=name: rows.measure(name)
        results.get(name, lambda measure=measure: {**measure(), "commit": commit()})


if __name__ == "__main__":
    main()
