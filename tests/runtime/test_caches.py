# SPDX-License-Identifier: Apache-2.0
"""What is compiled is kept where nobody else could have written it."""

import logging
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest

from foundling.runtime import caches
from foundling.runtime.caches import NotPrivate, cache_directory, check_private, private_directory
from tests.owners import give_away

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and an empty directory for temporary files."""
    tmp_path.chmod(0o700)
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    caches._temporary_directory.cache_clear()
    yield tmp_path / "cache"
    caches._temporary_directory.cache_clear()


def test_a_private_directory_is_made_and_kept(home: Path) -> None:
    directory = private_directory("inductor")
    assert directory == home / "foundling/inductor" == private_directory("inductor")
    assert [oct(path.stat().st_mode)[-3:] for path in (directory, directory.parent)] == ["700", "700"]


def plant_mode(directory: Path) -> None:
    directory.mkdir(parents=True)
    directory.chmod(0o777)


def plant_group(directory: Path) -> None:
    directory.mkdir(parents=True)
    directory.chmod(0o770)


def plant_link(directory: Path) -> None:
    directory.parent.mkdir(parents=True)
    (elsewhere := directory.parent / "elsewhere").mkdir(mode=0o700)
    directory.symlink_to(elsewhere)


def plant_file(directory: Path) -> None:
    directory.parent.mkdir(parents=True)
    directory.touch()


def plant_parent(directory: Path) -> None:
    directory.mkdir(parents=True, mode=0o700)
    directory.parent.chmod(0o777)


PLANTED = {
    plant_mode: "inductor is writable by other users; chmod go-w",
    plant_group: "inductor is writable by other users; chmod go-w",
    plant_link: "inductor is a symbolic link",
    plant_file: "File exists",
    plant_parent: "foundling is writable by other users; chmod go-w",
}


@pytest.mark.parametrize("plant", PLANTED, ids=lambda plant: plant.__name__)
def test_a_planted_directory_is_not_used(home: Path, plant, caplog: pytest.LogCaptureFixture) -> None:
    plant(cache_directory("inductor"))
    directory = private_directory("inductor")
    assert directory.parent == home.parent / "tmp" and directory.stat().st_mode & 0o777 == 0o700
    assert private_directory("inductor") == directory
    assert PLANTED[plant] in caplog.records[0].getMessage()


@pytest.mark.parametrize("given", [".", "deep", "deep/file"])
def test_every_file_belongs_to_the_user(home: Path, given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = private_directory("inductor")
    (directory / "deep").mkdir()
    (directory / "deep/file").touch()
    check_private(directory)
    give_away(directory / given, monkeypatch)
    with pytest.raises(NotPrivate, match="belongs to another user"):
        check_private(directory)


def test_what_another_process_renames_meanwhile_is_no_reason(home: Path) -> None:
    """A compiler writes folders beside, and renames them when they are ready."""
    directory, done = private_directory("inductor"), threading.Event()

    def write() -> None:
        while not done.is_set():
            for n in range(20):
                (directory / f"{n}.tmp").mkdir()
                (directory / f"{n}.tmp" / "file").touch()
            for n in range(20):
                (directory / f"{n}.tmp" / "file").unlink()
                (directory / f"{n}.tmp").rmdir()

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(500):
            check_private(directory)
    finally:
        done.set()
        writer.join()


def test_a_sticky_parent_is_safe_and_a_relative_variable_is_ignored(home: Path, monkeypatch) -> None:
    directory = private_directory("inductor")
    directory.parent.chmod(0o1777)  # as /tmp
    check_private(directory)
    monkeypatch.setenv("XDG_CACHE_HOME", "cache")
    assert cache_directory("inductor").is_absolute()


# A process of its own: torch is imported first, as by a user's program, and keeps what it has once read.
COMPILERS = """
import os, sys, logging, torch
logging.basicConfig(level=logging.WARNING, format="LOG %(message)s")
from foundling.runtime.caches import private_compiler_cache
print(private_compiler_cache())
from torch._inductor import codecache
from torch._inductor.runtime.runtime_utils import cache_dir, triton_cache_dir, default_cache_dir
print(cache_dir(), triton_cache_dir(0), default_cache_dir(), codecache._HEADER_DIR, codecache._HEADER_LOCK_DIR)
if "compile" in sys.argv:
    assert torch.compile(lambda x: x.sin() + 1)(torch.zeros(64)).sum() == 64
from torch.utils import cpp_extension
os.environ["CUDA_HOME"] = "/usr/local/cuda"
print(cpp_extension._find_cuda_home())
"""


def compiler_paths(tmp_path: Path, *words: str, **env: str) -> tuple[list[str], str]:
    (tmp_path / "tmp").mkdir(exist_ok=True)
    own = {"XDG_CACHE_HOME": str(tmp_path / "cache"), "TMPDIR": str(tmp_path / "tmp"), "PYTHONPATH": str(ROOT)}
    inherited = {k: v for k, v in os.environ.items() if k not in ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")}
    command = [sys.executable, "-c", COMPILERS, *words]
    found = subprocess.run(command, env=inherited | own | env, capture_output=True, text=True, check=True, cwd=tmp_path)
    return found.stdout.split(), found.stderr


def test_torchs_compiler_keeps_all_it_executes_there(tmp_path: Path) -> None:
    """Its precompiled headers too, which TORCHINDUCTOR_CACHE_DIR does not move. Without a GPU, a machine with CUDA's
    files is no reason for a warning."""
    tmp_path.chmod(0o700)
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    paths, log = compiler_paths(tmp_path, TORCHINDUCTOR_CACHE_DIR=str(shared))
    assert paths[-1] == "/usr/local/cuda" and "CUDA runtime" not in log
    ours = str(tmp_path / "cache/foundling")
    assert all(path.startswith(ours) for path in paths[:-1]), paths
    assert f"LOG TORCHINDUCTOR_CACHE_DIR is not used: {shared} is writable by other users" in log
    assert not list((tmp_path / "tmp").iterdir())


@pytest.mark.slow
def test_torchs_compiler_writes_nowhere_else(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    paths, _ = compiler_paths(tmp_path, "compile")
    built = [path for path in Path(paths[0]).rglob("*") if path.suffix in (".so", ".gch", ".cpp")]
    assert {path.suffix for path in built} >= {".so", ".cpp", ".gch"}
    left = [path.name for path in (tmp_path / "tmp").rglob("*")]
    assert not left, left


def test_the_filter_is_for_that_line_alone(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("torch.utils.cpp_extension")
    logger.addFilter(caches._is_news)
    logger.warning("No CUDA runtime is found, using CUDA_HOME='%s'", "/usr/local/cuda")
    logger.warning("something else")
    assert [record.getMessage() for record in caplog.records] == ["something else"]
