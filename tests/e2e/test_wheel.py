# SPDX-License-Identifier: Apache-2.0
"""The wheel: what is in it, and that it works where there is no repository."""

from __future__ import annotations

import email
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from tests.e2e.tools import corpus
from tests.test_layers import ROOT, tracked

pytestmark = pytest.mark.slow
SIZES = [
    "--total-steps", "4", "--batch-size", "2", "--seq-len", "32", "--d-model", "32", "--n-layers", "1", "--vocab-size",
    "320", "--compile", "false",
]  # fmt: skip


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--quiet", "-w", out, ROOT]
    subprocess.run(command, check=True, cwd=out)
    (made,) = out.glob("*.whl")
    return made


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` of an empty environment with the wheel. The packages that it needs are those of the tests."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=True)
    python = folder / "bin/python"
    command = [sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", "--quiet", wheel]
    subprocess.run(command, check=True, cwd=folder)
    site = next((folder / "lib").glob("python3*/site-packages"))
    (site / "needed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "bin"


def used(program: Path, *args: object) -> str:
    env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")}
    command = [str(program), *map(str, args)]
    done = subprocess.run(command, env=env, cwd=program.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_it_holds_the_package_and_nothing_else(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    ours = {path.relative_to(ROOT).as_posix() for path in tracked() if path.is_relative_to(ROOT / "foundling")}
    assert {name for name in names if ".dist-info/" not in name} == ours
    assert {"foundling/py.typed", "foundling/decode/native/program.cpp", "foundling/report/report.html.j2"} < ours


def test_its_metadata_say_what_is_tested(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    (prefix,) = {name.partition("/")[0] for name in archive.namelist() if ".dist-info/" in name}
    metadata = email.message_from_string(archive.read(f"{prefix}/METADATA").decode())
    assert metadata["License-Expression"] == "Apache-2.0" and metadata.get_all("License-File") == ["LICENSE"]
    assert archive.read(f"{prefix}/licenses/LICENSE") == (ROOT / "LICENSE").read_bytes()
    assert metadata["Requires-Python"] == ">=3.11" and metadata.get_payload() == (ROOT / "README.md").read_text()
    platforms = [c for c in metadata.get_all("Classifier") or [] if c.startswith(("Operating System", "Programming"))]
    assert platforms == [
        "Operating System :: POSIX :: Linux", "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.11",
    ], "what continuous integration runs"  # fmt: skip
    assert "foundling = foundling.cli:main" in archive.read(f"{prefix}/entry_points.txt").decode()


def test_it_works_outside_the_repository(installed: Path, wheel: Path, tmp_path: Path) -> None:
    program = installed / "foundling"
    assert used(program, "--version") == f"foundling {wheel.name.split('-')[1]}\n"
    where = used(installed / "python", "-c", "import foundling; print(foundling.__file__, *foundling.__all__)")
    assert where.startswith(str(installed.parent)) and "raise_model" in where
    assert "llama" in json.loads(used(program, "families", "--json"))
    model = tmp_path / "model"
    used(program, "raise", corpus(tmp_path / "text"), "--out", model, "--threads", 1, *SIZES, "--json")
    assert json.loads(used(program, "check", model, "--json"))["ok"] and (model / "report.html").exists()
    options = ["--weights", "int8"] if shutil.which("g++") else []  # compiles the C++ that the wheel carries
    said = json.loads(used(program, "generate", model, "--prompt", "the", "--max-tokens", 4, "--json", *options))
    assert said["answers"][0]["finish_reason"] in ("stop", "length")
