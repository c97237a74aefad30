# SPDX-License-Identifier: Apache-2.0
"""Classify texts: the label, the tags of the words, or the value of each."""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from foundling.cli.stdio import note, read_line, say
from foundling.errors import DataError

EXAMPLES = [
    'foundling classify runs/spam "You have won a prize" "Minutes of the meeting"',
    "foundling classify runs/spam --file mails.csv --field body --top 3",
    "foundling classify runs/names --file sentences.txt --json",
    "tail -f log.txt | foundling classify runs/severity",
]
TABLES = {".csv": ",", ".tsv": "\t"}
FIELD_CHARS = 10_000_000
"""of a field of a table"""
SHOWN_LABELS = 3


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dir", help="model directory of a classifier, or hf://ORG/NAME[@REVISION]")
    parser.add_argument("text", nargs="*", help="texts (default: the lines of --file, or of stdin)")
    parser.add_argument("--file", metavar="FILE", help="a text a line, or the rows of .jsonl, .csv or .tsv")
    parser.add_argument("--field", default="text", metavar="NAME", help="column of the rows (default text)")
    parser.add_argument("--top", type=int, metavar="N", help=f"labels to print (default {SHOWN_LABELS}; --json: all)")


def run(args: argparse.Namespace) -> dict[str, Any]:
    from foundling.decode.classify import BATCH_SIZE, Classifier, batches_of

    if args.text and args.file:
        raise DataError("texts and --file are given; leave one of them out")
    classifier = Classifier.load(args.dir)
    source = iter(args.text) if args.text else _file(Path(args.file), args.field) if args.file else _lines()
    results, live = list[dict[str, Any]](), not (args.text or args.file)
    n_cut, empty = 0, 0
    for texts in batches_of(source, 1 if live and not args.json else BATCH_SIZE):
        some = [text for text in texts if text.strip()]
        empty += len(texts) - len(some)
        for text, found in zip(some, classifier.classify(some, top=args.top), strict=True):
            n_cut += "cut" in found
            if args.json:
                results.append({"text": text, **found})
            else:
                say(f"{_shown(found, args.top or SHOWN_LABELS)}\t{text}")
    if empty:
        note(f"note: {empty} empty texts are skipped")
    if n_cut:
        note(f"note: {n_cut} texts are longer than {classifier.model.config.max_seq_len:,} tokens and were cut")
    return {"model_dir": args.dir, "task": classifier.task, "labels": list(classifier.labels), "results": results,
            "cut": n_cut, "empty": empty}  # fmt: skip


def _shown(found: dict[str, Any], top: int) -> str:
    if "value" in found:
        return f"{found['value']:.6g}"
    if "values" in found:
        return " ".join(f"{label} {value:.6g}" for label, value in found["values"].items())
    if "spans" in found:
        return "; ".join(f"{span['kind'] or 'span'}: {span['text']}" for span in found["spans"]) or "–"
    if "tags" in found:
        return " ".join(f"{tag['word']}/{tag['tag']}" for tag in found["tags"])
    return ", ".join(f"{label} {p:.1%}" for label, p in list(found["scores"].items())[:top])


def _lines() -> Iterator[str]:
    while line := read_line():
        yield line.rstrip("\r\n")


def _file(path: Path, field: str) -> Iterator[str]:
    """The texts of a file. DataError, with the line, for a row without the field."""
    try:
        with path.open(encoding="utf-8", errors="replace", newline="") as file:
            if path.suffix in TABLES:
                csv.field_size_limit(FIELD_CHARS)
                yield from _fields(csv.DictReader(file, delimiter=TABLES[path.suffix]), path, field)
            elif path.suffix in (".jsonl", ".ndjson"):
                yield from _fields((json.loads(line) for line in file if line.strip()), path, field)
            else:
                yield from (line.rstrip("\r\n") for line in file)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    except (csv.Error, ValueError, RecursionError) as error:
        raise DataError(f"{path}: damaged ({str(error).splitlines()[0]})") from None


def _fields(rows: Any, path: Path, field: str) -> Iterator[str]:
    for number, row in enumerate(rows, 1):
        text = row.get(field) if isinstance(row, dict) else None
        if not isinstance(text, str):
            names = ", ".join(str(name) for name in row) if isinstance(row, dict) else "none"
            raise DataError(
                f"{path}: row {number} has no text in '{field}'; its columns: {names} (choose with --field)"
            )
        yield text
