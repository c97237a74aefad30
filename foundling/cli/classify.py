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
    'foundling classify runs/entails "A dog runs." --pair "An animal moves."',
    "foundling classify runs/entails --file pairs.tsv --field premise --pair-field hypothesis",
    "tail -f log.txt | foundling classify runs/severity",
]
TABLES = {".csv": ",", ".tsv": "\t"}
ROWS = (".jsonl", ".ndjson")
FIELD_CHARS = 10_000_000
"""of a field of a table"""
SHOWN_LABELS = 3


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dir", help="model or adapter directory of a classifier, or hf://ORG/NAME[@REVISION]")
    parser.add_argument("--base-model", metavar="DIR", help="of an adapter's directory: where its base is now")
    parser.add_argument("text", nargs="*", help="texts (default: the lines of --file, or of stdin)")
    parser.add_argument("--file", metavar="FILE", help="a text a line, or the rows of .jsonl, .csv or .tsv")
    parser.add_argument("--field", default="text", metavar="NAME", help="column of the rows (default text)")
    parser.add_argument("--pair", metavar="TEXT", help="the second text of a pair, of which each text is the first")
    parser.add_argument("--pair-field", metavar="NAME", help="column of the second texts, for a classifier of pairs")
    parser.add_argument("--top", type=int, metavar="N", help=f"labels to print (default {SHOWN_LABELS}; --json: all)")


def run(args: argparse.Namespace) -> dict[str, Any]:
    from foundling.decode.classify import BATCH_SIZE, Classifier, batches_of

    if args.text and args.file:
        raise DataError("texts and --file are given; leave one of them out")
    if args.pair_field is not None and (not args.file or args.pair is not None):
        raise DataError("--pair-field is a column of --file, and not for --pair; leave one of them out")
    classifier = Classifier.load(args.dir, base=args.base_model)
    if args.file:
        source = _file(Path(args.file), args.field, args.pair_field)
    else:
        source = iter(args.text) if args.text else _lines()
    if args.pair is not None:
        source = ((text, args.pair) for text in source)
    results, live = list[dict[str, Any]](), not (args.text or args.file)
    n_cut, empty = 0, 0
    for texts in batches_of(source, 1 if live and not args.json else BATCH_SIZE):
        some = [text for text in texts if all(part.strip() for part in _parts(text))]
        empty += len(texts) - len(some)
        for text, found in zip(some, classifier.classify(some, top=args.top), strict=True):
            n_cut += "cut" in found
            if args.json:
                results.append(dict(zip(("text", "pair"), _parts(text), strict=False)) | found)
            else:
                *first, last = [_shown(found, args.top or SHOWN_LABELS), *_parts(text)]
                for column in first:
                    say(column, end="\t")
                say(last)
    if empty:
        note(f"note: {empty} empty texts are skipped")
    if n_cut:
        note(f"note: {n_cut} texts are longer than {classifier.longest:,} tokens and were cut")
    return {"model_dir": args.dir, "task": classifier.task, "labels": list(classifier.labels), "results": results,
            "cut": n_cut, "empty": empty}  # fmt: skip


def _parts(text: str | tuple[str, str]) -> tuple[str, ...]:
    return (text,) if isinstance(text, str) else text


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


def _file(path: Path, field: str, pair: str | None) -> Iterator[Any]:
    """The texts of a file, or its pairs. DataError, with the line, for a row without a field."""
    if pair is not None and path.suffix not in (*TABLES, *ROWS):
        raise DataError(f"{path}: a file of lines has no pairs; give .jsonl, .csv or .tsv with two columns")
    try:
        with path.open(encoding="utf-8", errors="replace", newline="") as file:
            if path.suffix in TABLES:
                csv.field_size_limit(FIELD_CHARS)
                yield from _fields(csv.DictReader(file, delimiter=TABLES[path.suffix]), path, field, pair)
            elif path.suffix in ROWS:
                yield from _fields((json.loads(line) for line in file if line.strip()), path, field, pair)
            else:
                yield from (line.rstrip("\r\n") for line in file)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    except (csv.Error, ValueError, RecursionError) as error:
        raise DataError(f"{path}: damaged ({str(error).splitlines()[0]})") from None


def _fields(rows: Any, path: Path, field: str, pair: str | None) -> Iterator[Any]:
    for number, row in enumerate(rows, 1):
        text = _field(row, number, path, field, "--field")
        yield text if pair is None else (text, _field(row, number, path, pair, "--pair-field"))


def _field(row: Any, number: int, path: Path, field: str, flag: str) -> str:
    text = row.get(field) if isinstance(row, dict) else None
    if not isinstance(text, str):
        names = ", ".join(str(name) for name in row) if isinstance(row, dict) else "none"
        raise DataError(f"{path}: row {number} has no text in '{field}'; its columns: {names} (choose with {flag})")
    return text
