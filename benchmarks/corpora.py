# SPDX-License-Identifier: Apache-2.0
"""Texts for the benchmarks that every installation has: files of Python and of the packages in constraints.txt, so that
the same versions give the same bytes."""

import ast
import json
import sysconfig
import tempfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from pydoc_data import topics

from foundling.data.datasets import load_dataset, open_data
from foundling.data.ingest import Corpus, ingest

WORK = Path(tempfile.gettempdir()) / "foundling-benchmarks"
"""What benchmarks write and use again: texts, tokens, models."""
MAX_BYTES = {"reference": 1_000_000}
DEFAULT_MAX_BYTES = 12_000_000


def _files(folder: str, *suffixes: str) -> Iterator[str]:
    root = Path(sysconfig.get_path("purelib")) / folder
    for path in sorted(root.rglob("*")):
        if path.suffix in suffixes and path.is_file():
            yield path.read_text(encoding="utf-8", errors="replace")


def _descriptions() -> Iterator[str]:
    """READMEs, licences and other metadata of the installed packages."""
    for package in sorted(metadata.distributions(), key=lambda d: d.name.lower()):
        for path in sorted(package.files or [], key=str):
            if ".dist-info" in str(path) and path.suffix in ("", ".md", ".rst", ".txt") and "RECORD" not in path.name:
                text = path.read_text(encoding="utf-8") if path.locate().is_file() else ""
                yield text or ""


def _reference() -> Iterator[str]:
    """The language reference, then the docstrings of the standard library file by file."""
    yield from topics.topics.values()
    for document in load_dataset("stdlib"):
        try:
            nodes = list(ast.walk(ast.parse(document.text)))
        except SyntaxError:
            continue
        kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        yield "\n\n".join(filter(None, (ast.get_docstring(node) for node in nodes if isinstance(node, kinds))))


def _sections() -> Iterator[str]:
    """Descriptions of packages, those of benchmarks.datasets that are not for testing."""
    from benchmarks.datasets import part, read

    yield from (row["text"] for row in read(part("sections", "train")))


GENERATORS = {
    "reference": _reference,  # English about Python, 1 MB
    "sympy": lambda: _files("sympy", ".py"),  # mathematics in Python
    "headers": lambda: _files("torch/include", ".h", ".hpp", ".cuh"),  # C++
    "stubs": lambda: _files("basedpyright", ".pyi"),  # types of Python's libraries
    "packages": _descriptions,  # English in Markdown and reStructuredText
    "sections": _sections,  # English about Debian's packages
}


def path_of(name: str) -> str:
    """The data argument of `foundling raise`: 'stdlib' is built in, the others are written once below WORK."""
    if name == "stdlib":
        return "builtin:stdlib"
    file = WORK / f"{name}.jsonl"
    if not file.exists():
        WORK.mkdir(parents=True, exist_ok=True)
        lines, size = [], 0
        for text in GENERATORS[name]():
            size += len(text)
            if size > MAX_BYTES.get(name, DEFAULT_MAX_BYTES):
                break
            if text.strip():
                lines.append(json.dumps({"text": text}) + "\n")
        file.write_text("".join(lines), encoding="utf-8")
    return str(file)


def corpus_of(name: str) -> Corpus:
    """Training and held-out documents of a corpus, ingested once below WORK."""
    directory = WORK / name / "corpus"
    return Corpus.load(directory) if directory.exists() else ingest(open_data(path_of(name)), directory)
