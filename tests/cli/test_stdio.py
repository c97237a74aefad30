# SPDX-License-Identifier: Apache-2.0
"""What the command line says, whatever the streams are and whatever the text is. (That nothing else prints is a rule of
tests/test_layers.py.)"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import foundling
from foundling.cli.stdio import say_text
from foundling.models import build, family
from foundling.text import Tokenizer
from tests.e2e.tools import environment
from tests.e2e.tools import foundling as shell

# --- streams that are closed, full, without a reader, or in another encoding -----------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    tokenizer = Tokenizer.train(["some text, any text — naïve 数\n"] * 5, 320)
    fields = family("llama").module.sized(tokenizer.vocab_size, 64, 32, 1)
    return foundling.save(build("llama", **fields), tmp_path_factory.mktemp("stdio") / "m", tokenizer=tokenizer)


def close_all() -> None:
    for number in range(3):
        os.close(number)
    sys.stdin = sys.stdout = sys.stderr = None


def close_stdout() -> None:
    os.close(1)
    sys.stdout = None


def fill_stdout() -> None:
    os.dup2(os.open("/dev/full", os.O_WRONLY), 1)


def fill_stderr() -> None:
    os.dup2(os.open("/dev/full", os.O_WRONLY), 2)


def leave_stdout(number: int = 1) -> None:
    reader, writer = os.pipe()
    os.dup2(writer, number)
    os.close(reader)
    KEPT.extend([sys.stdout, sys.stderr])
    sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)


KEPT: list[object] = []
"""streams that would close their files if they were collected"""


def leave_stderr() -> None:
    leave_stdout(2)


def speak_ascii() -> None:
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        stream.reconfigure(encoding="ascii", errors="strict")


def speak_latin() -> None:
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        stream.reconfigure(encoding="latin-1", errors="strict")


def break_installation() -> None:
    sys.modules["foundling.weights.manifest"] = None  # pyright: ignore[reportArgumentType]


def generate(model: Path, prompt: str = "naïve 数\u202e", *options: str) -> list[str]:
    return ["generate", str(model), "--prompt", prompt, "--max-tokens", "6", "--temperature", "2", *options]


def is_clean(text: str) -> bool:
    """No control characters but line ends and tabs, nothing that reorders."""
    return not any((ord(c) < 32 and c not in "\n\t") or 127 <= ord(c) < 160 or c in "\x1b\u202e" for c in text)


@pytest.mark.parametrize("before", [close_all, close_stdout])
@pytest.mark.parametrize("json_too", [(), ("--json",)])
def test_closed_streams(model, before, json_too) -> None:
    assert shell("check", model, *json_too, before=before).returncode == 0
    done = shell("check", model / "nowhere", *json_too, before=before)
    assert done.returncode == 2 and (before is close_all or done.stderr.count("\n") == 1)


@pytest.mark.parametrize("json_too", [(), ("--json",)])
def test_a_full_stdout_is_one_line_and_exit_code_2(model, tmp_path, json_too) -> None:
    for args in (["check", model], ["import", model, tmp_path / "out"]):
        done = shell(*args, *json_too, before=fill_stdout)
        lines = [line for line in done.stderr.splitlines() if not line.startswith("reading ")]
        assert done.returncode == 2 and len(lines) == 1, done.stderr
        assert "stdout cannot be written (No space left on device); files that were written are complete" in lines[0]
    assert foundling.check(tmp_path / "out")["ok"]


def test_without_a_reader(model, tmp_path) -> None:
    done = shell("check", model, before=leave_stdout)
    assert (done.returncode, done.stderr) == (0, "")
    assert shell("check", tmp_path, "--json", before=leave_stdout).returncode == 2
    foundling.save(foundling.load(model), tmp_path / "damaged")
    (tmp_path / "damaged" / "config.json").write_text("{}")
    assert shell("check", tmp_path / "damaged", "--json", before=leave_stdout).returncode == 2
    done = shell("import", model, tmp_path / "out", "--json", before=leave_stderr)
    assert done.returncode == 0 and json.loads(done.stdout)["family"] == "llama"
    done = shell("import", model, tmp_path / "out2", "--json", before=fill_stderr)
    assert done.returncode == 0 and foundling.check(tmp_path / "out2")["ok"]


@pytest.mark.parametrize("before", [speak_ascii, speak_latin])
def test_other_encodings(model, tmp_path, before) -> None:
    found = shell(*generate(model), "--json", before=before)
    assert found.returncode == 0 and json.loads(found.stdout)["prompt"] == "naïve 数\u202e"
    done = shell(*generate(model), before=before)
    assert done.returncode == 0 and done.stdout.startswith("na") and "\\u6570\\u202e" in done.stdout
    done = shell("check", tmp_path / "数\x1b[31m", before=before)
    assert done.returncode == 2 and "\\u6570" in done.stderr and is_clean(done.stderr)
    done = shell("chat", model, "--max-tokens", "2", "--json", before=before, input=b"caf\xe9 \xe6\x95\xb0\n")
    assert done.returncode == 0 and json.loads(done.stdout)["turns"][0]["prompt"].startswith("caf")


def test_stdin_that_is_not_utf_8(model) -> None:
    done = shell("chat", model, "--max-tokens", "2", "--json", input=b"caf\xe9\nna\xc3\xafve\n")
    turns = json.loads(done.stdout)["turns"]
    assert done.returncode == 0 and [turn["prompt"] for turn in turns] == ["caf\ufffd", "naïve"]


# --- text that others wrote ------------------------------------------------------------------------------------------


HOSTILE = "\x1b[2Jfoundling check: ok\x9b31m\u202e\u200b"


def test_model_text_does_nothing_to_a_terminal(monkeypatch) -> None:
    master, slave = os.openpty()
    with open(slave, "w", encoding="utf-8") as terminal:
        monkeypatch.setattr(sys, "stdout", terminal)
        say_text(f"{HOSTILE}\n")
        monkeypatch.undo()
        shown = os.read(master, 9999).decode()
    os.close(master)
    assert shown == "␛[2Jfoundling check: ok\\u009b31m\\u202e\u200b\r\n\r\n"


def test_model_text_is_itself_in_a_pipe(model) -> None:
    done = shell(*generate(model, HOSTILE))
    assert done.returncode == 0 and done.stdout.startswith(HOSTILE)
    done = shell(*generate(model, HOSTILE), "--json")
    assert done.returncode == 0 and is_clean(done.stdout) and json.loads(done.stdout)["prompt"] == HOSTILE
    done = shell("chat", model, "--max-tokens", "4", input=b"\x1b[2J\x07\xc2\x9b\n")
    assert done.returncode == 0 and done.stdout.startswith("\x1b[2J\x07\x9b")


def test_arguments_that_are_not_text(model, tmp_path) -> None:
    for args in (
        generate(model, "x\udcff"),
        generate(model, "x", "--suffix", "\udcff"),
        generate(model, "x", "--stop", "\udcff"),
        ["import", model, tmp_path / "out\udcff"],
        ["raise", tmp_path / "data\udcff", "--out", tmp_path / "out"],
        ["raise", "--out", tmp_path / "out\udcff", "--tokens", "1000"],
        ["check", tmp_path / "a\x1b[31m\nfoundling check: ok\udcff"],
        ["inspect", "/" + "n" * 5000],
        ["chek\x1b[2J"],
        ["check", "a", "--\x1b[2J\n\udcff"],
    ):
        done = shell(*args, "--json")
        assert done.returncode == 2 and done.stderr.count("\n") == 1 and is_clean(done.stderr), (args, done.stderr)
        assert json.loads(done.stdout)["exit_code"] == 2 and is_clean(done.stdout) and len(done.stdout) < 2500
    assert not (tmp_path / "out").exists()
    if sys.platform == "linux":  # the file systems of macOS have no such names
        (tmp_path / "m\udcff\x1b[2J").symlink_to(model)
        found = shell("check", tmp_path / "m\udcff\x1b[2J")
        assert found.returncode == 0 and "m\\udcff␛[2J: 5 files unchanged" in found.stdout


def test_an_internal_error_is_one_object_and_its_traceback_is_shown_on_request(model) -> None:
    done = shell("check", model, "--json", before=break_installation)
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert "(internal error; rerun with --debug)" in json.loads(done.stdout)["error"]
    done = shell("check", model / "\x1b[2J", "--json", "--debug")
    assert "Traceback" in done.stderr and is_clean(done.stderr) and json.loads(done.stdout)["exit_code"] == 2


# --- a fresh interpreter ---------------------------------------------------------------------------------------------

TALKS = """
import logging, sys, warnings
from foundling.cli import main, check
def run(args):
    import torch
    warnings.warn("grad strides do not match bucket view strides")
    logging.getLogger("torch.utils.cpp_extension").warning("No CUDA runtime is found, using CUDA_HOME='/usr'")
    logging.getLogger("jax").warning("of another library")
    logging.getLogger("foundling").warning("compiling native code\\x1b[2J: about ten seconds, once")
    return {"torch": torch.__version__}
check.run = run
main(["check", "x", *sys.argv[1:]])
"""


@pytest.mark.slow
def test_warnings_of_libraries_are_for_their_developers() -> None:
    env = {k: v for k, v in environment().items() if not k.startswith("TORCH_")}
    done = subprocess.run([sys.executable, "-c", TALKS], capture_output=True, text=True, env=env, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stderr == "note: compiling native code␛[2J: about ten seconds, once\n"
    done = subprocess.run(
        [sys.executable, "-c", TALKS, "--debug"], capture_output=True, text=True, env=env, timeout=120
    )
    assert "No CUDA runtime is found" in done.stderr and "bucket view strides" in done.stderr


@pytest.mark.slow
def test_without_docstrings_and_assertions(model, tmp_path) -> None:
    """python -OO: the same results, the same refusals."""
    data = tmp_path / "data"
    data.mkdir()
    for i in range(40):
        (data / f"{i}.txt").write_text("\n".join(f"{i}.{j} some words of a text {i * j}" for j in range(20)))
    from tests.e2e.tools import TINY

    def both(*args: object, code: int = 0) -> tuple[str, str]:
        command = [sys.executable, "-OO", "-m", "foundling", *map(str, args)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=600)
        assert done.returncode == code and "Traceback" not in done.stderr, done.stderr
        return done.stdout, done.stderr

    for args in (["inspect", model, "--json"], ["check", model, "--json"], [*generate(model), "--json"]):
        assert json.loads(both(*args)[0]) == json.loads(shell(*args).stdout)
    assert both("raise", "--help")[0] == shell("raise", "--help", env=environment(COLUMNS="80")).stdout
    assert "did you mean '--minutes'" in both("raise", "--minits", "1", code=2)[1]
    assert "no foundling.json" in both("check", tmp_path, code=2)[1]
    made = json.loads(both("raise", data, "--tokens", "3072", *TINY, "--out", tmp_path / "out", "--json")[0])
    again = shell("raise", data, "--tokens", "3072", *TINY, "--out", tmp_path / "again", "--json")
    assert made["actual"]["loss"] == json.loads(again.stdout)["actual"]["loss"]
    both("import", tmp_path / "out", tmp_path / "imported")
    both("export", tmp_path / "imported", tmp_path / "exported")
    assert "llama" in json.loads(both("families", "--json")[0])
