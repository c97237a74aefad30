# SPDX-License-Identifier: Apache-2.0
"""Native code is compiled where it is asked for, and announced; an engine that nobody asked uses what is built."""

import logging
import os
import shutil
from pathlib import Path

import pytest

import foundling
from foundling.decode.engine import engine as engine_module
from foundling.decode.engine.engine import Engine, EngineOptions
from foundling.decode.native import build
from foundling.decode.request import Request
from foundling.decode.sampling import Sampling
from foundling.errors import GenerationError
from tests.contract.cases import case
from tests.owners import give_away

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler here")
REQUEST = Request([5, 6], 5, Sampling(0))


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """As on a machine where nothing was built."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(engine_module, "_announced", set())
    build.load_library.cache_clear()
    yield tmp_path / "foundling" / "native"
    build.load_library.cache_clear()


@pytest.fixture
def failing_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Tells its version, compiles nothing, and leaves a trace."""
    compiler, trace = tmp_path / "compiler", tmp_path / "trace"
    compiler.write_text(
        f'#!/bin/sh\n[ "$1" = --version ] && echo 1 && exit\ntouch {trace}\necho "no disk" >&2\nexit 1\n'
    )
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    return trace


def test_an_engine_that_nobody_asked_compiles_nothing_and_says_so_once(empty_cache, failing_compiler, caplog) -> None:
    model = case("llama").tiny()
    engines = [Engine(model), Engine(model, EngineOptions(max_num_seqs=2)), Engine(case("mamba2").tiny())]
    assert not any(engine.native for engine in engines) and not failing_compiler.exists() and not empty_cache.exists()
    (record,) = caplog.records
    assert record.name == "foundling" and record.levelno == logging.WARNING
    assert "uses torch; EngineOptions(native=True) builds it" in record.getMessage()
    assert engines[0].reason == engine_module.NOT_BUILT
    assert engines[0].generate([REQUEST])[0].tokens == engines[1].generate([REQUEST])[0].tokens


@pytest.mark.parametrize("options", [EngineOptions(native=True), EngineOptions(weights="int8")])
def test_who_asks_is_told_that_it_compiles(empty_cache, failing_compiler, caplog, options: EngineOptions) -> None:
    with pytest.raises(GenerationError, match="could not compile: no disk") as caught:
        Engine(case("llama").tiny(), options)
    assert failing_compiler.exists() and "\n" not in str(caught.value)
    (record,) = caplog.records
    assert record.getMessage().startswith("compiling native code with") and str(empty_cache) in record.getMessage()
    with pytest.raises(GenerationError, match="could not compile"):
        foundling.native_encoder(case("bert").tiny())


def test_what_is_built_is_used(empty_cache, monkeypatch, caplog) -> None:
    cache = os.environ["XDG_CACHE_HOME"]
    monkeypatch.delenv("XDG_CACHE_HOME")
    build.load_library()
    built = build._library_file(build._compiler(), build._sources())
    caplog.clear()
    monkeypatch.setenv("XDG_CACHE_HOME", cache)
    build.load_library.cache_clear()
    empty_cache.mkdir(mode=0o700, parents=True)
    shutil.copy(built, empty_cache)
    model = case("llama").tiny()
    engine = Engine(model)
    assert engine.native and not caplog.records
    assert (
        engine.generate([REQUEST])[0].tokens == Engine(model, EngineOptions(native=False)).generate([REQUEST])[0].tokens
    )
    empty_cache.chmod(0o777)
    build.load_library.cache_clear()
    assert "writable by other users" in Engine(model).reason


def never_loaded(path: str) -> None:
    raise AssertionError(f"{path} was loaded")


def group_writable(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.chmod(0o770)


def a_link(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.rename(file.with_suffix(".elsewhere"))
    file.symlink_to(file.with_suffix(".elsewhere"))


def of_another_user(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    give_away(file, monkeypatch)


@pytest.mark.parametrize("spoil", [group_writable, a_link, of_another_user])
def test_a_library_that_others_could_have_written_is_not_loaded(
    empty_cache: Path, failing_compiler: Path, monkeypatch, caplog, spoil
) -> None:
    """It counts as not built; who asks for native code has it compiled anew, which here fails."""
    empty_cache.mkdir(mode=0o700, parents=True)
    file = build._library_file(build._compiler(), build._sources())
    file.write_bytes(b"not a library")
    file.chmod(0o700)
    assert build.is_built()
    spoil(file, monkeypatch)
    monkeypatch.setattr(build.ctypes, "CDLL", never_loaded)
    if spoil is of_another_user:  # then the whole directory is not to be trusted
        assert not build.is_built()
        with pytest.raises(build.NativeUnavailable, match="belongs to another user"):
            build.load_library()
        return
    assert not build.is_built() and not Engine(case("llama").tiny()).native
    with pytest.raises(build.NativeUnavailable, match="could not compile: no disk"):
        build.load_library()
    assert "since others could have written" in caplog.records[-1].getMessage()


def test_what_is_compiled_is_private_whatever_the_umask(empty_cache: Path, tmp_path: Path, monkeypatch) -> None:
    compiler = tmp_path / "compiler"  # copies something, as a compiler that takes no time
    compiler.write_text(
        f'#!/bin/sh\nfor last; do :; done\necho 1\ncp {shutil.which("true")} "$last"\nchmod 777 "$last"\n'
    )
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    monkeypatch.setattr(build.ctypes, "CDLL", lambda path: path)
    before = os.umask(0)
    try:
        file = Path(str(build.load_library()))
    finally:
        os.umask(before)
    assert file.parent == empty_cache
    assert [path.stat().st_mode & 0o777 for path in (file, empty_cache, empty_cache.parent)] == [0o700] * 3
    assert build.is_built() and sorted(empty_cache.iterdir()) == [file], "nothing else is left"


def test_an_untrusted_directory_is_refused_with_the_way_out(empty_cache: Path, failing_compiler: Path) -> None:
    empty_cache.mkdir(mode=0o777, parents=True)
    empty_cache.chmod(0o777)
    with pytest.raises(GenerationError, match="native is writable by other users; chmod go-w it") as caught:
        Engine(case("llama").tiny(), EngineOptions(native=True))
    assert "\n" not in str(caught.value) and not failing_compiler.exists()
