# SPDX-License-Identifier: Apache-2.0
"""Texts for the benchmarks that every installation has: made of files of Python and of the packages of
constraints.txt, so that the same versions give the same bytes."""

import ast
import json
import sysconfig
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from pydoc_data import topics

from foundling.data.datasets import load_dataset

MOST_BYTES = {"reference": 1_000_000}
OTHERWISE = 12_000_000


def _files(folder: str, *endings: str) -> Iterator[str]:
    root = Path(sysconfig.get_path("purelib")) / folder
    for path in sorted(root.rglob("*")):
        if path.suffix in endings and path.is_file():
            yield path.read_text(encoding="utf-8", errors="replace")


def _descriptions() -> Iterator[str]:
    """READMEs, licences and the like of what is installed."""
    for found in sorted(metadata.distributions(), key=lambda d: d.name.lower()):
        for path in sorted(found.files or [], key=str):
            if ".dist-info" in str(path) and path.suffix in ("", ".md", ".rst", ".txt") and "RECORD" not in path.name:
                text = path.read_text(encoding="utf-8") if path.locate().is_file() else ""
                yield text or ""


def _reference() -> Iterator[str]:
    """The language reference and, file by file, what the standard library's docstrings say."""
    yield from topics.topics.values()
    for document in load_dataset("stdlib"):
        try:
            nodes = list(ast.walk(ast.parse(document.text)))
        except SyntaxError:
            continue
        kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        yield "\n\n".join(filter(None, (ast.get_docstring(node) for node in nodes if isinstance(node, kinds))))


MADE = {
    "reference": _reference,  # English about Python, 1 MB
    "sympy": lambda: _files("sympy", ".py"),  # mathematics in Python
    "headers": lambda: _files("torch/include", ".h", ".hpp", ".cuh"),  # C++
    "stubs": lambda: _files("basedpyright", ".pyi"),  # types of Python's libraries
    "packages": _descriptions,  # English in Markdown and reStructuredText
}


def path_of(name: str, directory: Path) -> str:
    """What `foundling raise` takes as data: 'stdlib' is built in, the others are written below `directory` once."""
    if name == "stdlib":
        return "builtin:stdlib"
    file = directory / f"{name}.jsonl"
    if not file.exists():
        directory.mkdir(parents=True, exist_ok=True)
        lines, size = [], 0
        for text in MADE[name]():
            size += len(text)
            if size > MOST_BYTES.get(name, OTHERWISE):
                break
            if text.strip():
                lines.append(json.dumps({"text": text}) + "\n")
        file.write_text("".join(lines), encoding="utf-8")
    return str(file)
