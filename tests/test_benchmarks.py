# SPDX-License-Identifier: Apache-2.0
"""The benchmarks take too long to run here; but what they import exists, and so do the files that they name."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.mutants import NEAREST
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


def test_the_longest_run_of_lines_that_two_files_share() -> None:
    assert longest_shared(list("abcdeXfg"), list("Zcdeabf")) == 3  # cde
    assert longest_shared(list("abab"), list("babab")) == 4
    assert longest_shared(list("ab"), list("cd")) == longest_shared([], list("a")) == 0
