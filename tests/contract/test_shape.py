# SPDX-License-Identifier: Apache-2.0
"""Families stay readable: at most 200 lines without presets and maps, and no two share a long run of lines."""

import ast
import importlib
from itertools import combinations
from pathlib import Path

import pytest

from foundling.models import FAMILIES

DATA = {"PRESETS", "KEYS", "CONFIG"}
MOST_LINES, MOST_ALIKE = 200, 12


def program(name: str) -> list[str]:
    """The family's own lines: without docstring, imports, tables and what only makes tables."""
    path = Path(importlib.import_module(FAMILIES[name].module).__file__ or "")
    lines, tree = path.read_text(encoding="utf-8").splitlines(), ast.parse(path.read_text(encoding="utf-8"))
    tables = [n for n in tree.body if isinstance(n, ast.Assign | ast.AnnAssign) and _name(n).isupper()]
    assert {_name(n) for n in tables} >= DATA, f"{name} has no {DATA}"
    used = {n.id for table in tables for n in ast.walk(table) if isinstance(n, ast.Name)}
    left_out = tables + [
        n
        for n in tree.body
        if isinstance(n, ast.Import | ast.ImportFrom)
        or (isinstance(n, ast.FunctionDef) and n.name.startswith("_") and n.name in used)
    ]
    gone = {line for n in left_out for line in range(n.lineno, (n.end_lineno or n.lineno) + 1)}
    return [text for number, text in enumerate(lines, 1) if number not in gone and text.strip()]


def _name(node: ast.Assign | ast.AnnAssign) -> str:
    target = node.targets[0] if isinstance(node, ast.Assign) else node.target
    return target.id.lstrip("_") if isinstance(target, ast.Name) else ""


def longest_run(a: list[str], b: list[str]) -> int:
    """The most lines in a row that both have."""
    best, before = 0, [0] * (len(b) + 1)
    for line in a:
        now = [0] * (len(b) + 1)
        for j, other in enumerate(b):
            if line.strip() == other.strip():
                now[j + 1] = before[j] + 1
        best, before = max(best, *now), now
    return best


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_is_read_in_one_sitting(name: str) -> None:
    assert len(program(name)) <= MOST_LINES


def test_no_two_families_are_copies() -> None:
    programs = {name: program(name) for name in FAMILIES}
    alike = {pair: longest_run(*(programs[name] for name in pair)) for pair in combinations(FAMILIES, 2)}
    assert {pair: n for pair, n in alike.items() if n > MOST_ALIKE} == {}


def test_a_copy_is_found() -> None:
    text = [f"line {i}" for i in range(20)]
    assert longest_run(["x", *text[3:17], "y"], text) == 14
