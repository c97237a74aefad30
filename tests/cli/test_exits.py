# SPDX-License-Identifier: Apache-2.0
"""Every exception has one exit code and one line. What the user or the system can mend is not called our fault."""

import errno
import os
import resource
from pathlib import Path

import pytest
import safetensors.torch
import tokenizers
import torch

import foundling.errors as errors
from foundling.cli.exits import OURS, SYSTEM, USER, exit_for
from foundling.errors.render import LIMIT


def raised(action) -> BaseException:
    try:
        action()
    except BaseException as error:
        return error
    raise AssertionError("nothing was raised")


def names(module) -> list[str]:
    return sorted(n for n, c in vars(module).items() if isinstance(c, type) and issubclass(c, errors.FoundlingError))


@pytest.mark.parametrize("name", names(errors))
def test_an_error_of_ours_is_one_line_that_does_nothing_to_a_terminal(name: str) -> None:
    error = getattr(errors, name)
    assert str(error("a plain — line")) == "a plain — line"
    whole = f"model\x1b[2J\nok: no byte has changed\u202e {'k' * 30_000_000}; rename it"
    shown = str(error(whole))
    assert shown.startswith("model␛[2J␊ok: no byte has changed\\u202e kkk") and shown.endswith("kkk; rename it")
    assert len(shown) < LIMIT + 100 and f"({len(whole) - LIMIT:,} characters more)" in shown
    assert exit_for(error("text")) == (error.exit_code, "text")


@pytest.mark.parametrize("number", sorted({errno.ENOENT, errno.EISDIR, errno.ENOTDIR, errno.EEXIST, *SYSTEM}))
def test_what_the_system_refuses(number: int) -> None:
    code, message = exit_for(OSError(number, os.strerror(number), "/a/fi\nle"))
    assert code == USER and message.startswith(f"'/a/fi\\nle': {os.strerror(number)}")
    assert message.endswith(SYSTEM.get(number, os.strerror(number)))


def test_real_refusals(tmp_path) -> None:
    (tmp_path / "file").write_text("")
    for action, says in (
        ((tmp_path / "nowhere").open, "nowhere': No such file"),
        (lambda: os.listdir(tmp_path / "file"), "file': Not a directory"),
        (tmp_path.open, f"{tmp_path.name}': Is a directory"),
        ((tmp_path / ("n" * 300)).open, "File name too long; choose a shorter name"),
        (lambda: os.rename(tmp_path / "file", tmp_path / "a" / "b"), "file' and '"),
        (Path("a\0b").open, "NUL"),
        (lambda: tokenizers.Tokenizer(tokenizers.models.BPE()).save("/dev/full"), "No space left on device; free"),
        (lambda: safetensors.torch.save_file({}, tmp_path / "no" / "f"), "No such file"),
        (lambda: "path\udcff".encode(), "'path\\udcff' is not Unicode"),
    ):
        code, message = exit_for(raised(action))
        assert code == USER and says in message and "internal error" not in message, message


def test_memory() -> None:
    for error in (
        MemoryError(),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        raised(lambda: torch.empty(1 << 58)),
        raised(lambda: torch.empty(1 << 46, dtype=torch.int8).fill_(0)),
        raised(lambda: bytearray(1 << 60)),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."),
    ):
        code, message = exit_for(error)
        assert code == USER and message.startswith("out of memory; choose a smaller model"), error


def test_too_many_open_files_and_threads() -> None:
    def open_many() -> None:
        for _ in range(1 << 20):
            kept.append(os.dup(0))

    kept: list[int] = []
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/dev/fd")) + 8, hard))
    try:
        error = raised(open_many)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for number in kept:
            os.close(number)
    assert exit_for(error)[0] == USER and "ulimit -n" in exit_for(error).message
    threads = RuntimeError("can't start new thread")  # what threading says; a limit on threads binds root to nothing
    assert "ulimit -u" in exit_for(threads).message


@pytest.mark.parametrize(
    "error",
    [
        KeyError("x"),
        AssertionError(),
        ValueError("1\n2"),
        RuntimeError("shape"),
        OSError("?"),
        OSError(errno.EBADF, "b"),
    ],
)
def test_what_is_left_is_ours(error: Exception) -> None:
    code, message = exit_for(error)
    assert code == OURS and message.startswith(f"{type(error).__name__}: ") and "\n" not in message
    assert message.endswith("(internal error; rerun with --debug)")


def test_stopped_and_long() -> None:
    assert exit_for(KeyboardInterrupt()) == (130, "interrupted")
    code, message = exit_for(RuntimeError("x\x1b" * 10_000_000))
    assert code == OURS and len(message) < LIMIT + 100 and "\x1b" not in message and message.endswith("--debug)")
