# SPDX-License-Identifier: Apache-2.0
"""The benchmarks take too long to run here; but what they import exists, and so do the files that they name."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.mutants import NEAREST, limits, mutants, outcome
from benchmarks.structure import longest_shared

ROOT = Path(__file__).parents[1]
MODULES = sorted(path.stem for path in (ROOT / "benchmarks").glob("*.py") if not path.stem.startswith("__"))


@pytest.mark.parametrize("name", MODULES)
def test_a_benchmark_imports(name: str) -> None:
    importlib.import_module(f"benchmarks.{name}")


def test_the_gpu_benchmark_needs_core_dependencies_alone() -> None:
    """GPU images have torch, and no pytest."""
    code = "import sys, benchmarks.gpu; print({'pytest', 'hypothesis', 'scipy', 'transformers'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "set()"


def test_mutants_names_files_that_exist() -> None:
    tests = [argument for runs in NEAREST.values() for run in runs for argument in run if argument.startswith("tests/")]
    assert [file for file in [*NEAREST, *tests] if not (ROOT / file).exists()] == []


def test_mutants_change_one_expression_each() -> None:
    changes = {(old, new) for _, old, new, _ in mutants("def f(a: int = 1):\n    return a < 2 and not a + 1\n")}
    assert changes >= {("1", "(2)"), ("2", "(3)"), ("a < 2", "(a <= 2)"), ("a + 1", "(a - 1)")}
    assert ("a < 2 and not a + 1", "(a < 2 or not a + 1)") in changes


@pytest.mark.slow
def test_only_failed_tests_kill_a_mutant(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # some import torch
    monkeypatch.setitem(NEAREST, "a.py", [["test_a.py"]])
    (tmp_path / "test_a.py").write_text("import a\n\ndef test_a():\n    assert a.f() == 3\n")

    def result(source: str, cpu_seconds: int = 60) -> str:
        (tmp_path / "a.py").write_text(source)
        return outcome(tmp_path, "a.py", [cpu_seconds])

    assert result("def f(): return 2 + 1\n") == "survived"
    assert limits(tmp_path, "a.py") > [60]
    assert result("def f():\n    while True: pass\n", 3) == "killed: over 3 s of CPU"
    assert result("def f():\n    import os; os._exit(9)\n") == "no verdict: pytest ended with 9"
    assert result("f = 1 / 0\n") == "killed: ERROR test_a.py"
    assert result("def f(): return 4\n") == "killed: FAILED test_a.py::test_a"
    with pytest.raises(SystemExit, match=r"test_a\.py fails without a mutant"):
        limits(tmp_path, "a.py")


def test_the_longest_run_of_lines_that_two_files_share() -> None:
    assert longest_shared(list("abcdeXfg"), list("Zcdeabf")) == 3  # cde
    assert longest_shared(list("abab"), list("babab")) == 4
    assert longest_shared(list("ab"), list("cd")) == longest_shared([], list("a")) == 0
