# SPDX-License-Identifier: Apache-2.0
"""What a user can do wrong: one clear line, the right exit code, and nothing that existed is lost."""

import json
import resource
import signal

import pytest

from foundling.cli import COMMANDS, main
from foundling.models import build, family
from foundling.runtime.files import lock
from foundling.weights.convert.hugging_face import import_model
from foundling.weights.directory import save
from tests.e2e.tools import TINY, corpus, environment, files, foundling


def fails(capsys, *args: str, code: int = 2) -> str:
    """Runs the command line in this process; returns its one line of complaint."""
    with pytest.raises(SystemExit) as caught:
        main([str(a) for a in args])
    error = capsys.readouterr().err
    complaints = [line for line in error.splitlines() if line.startswith("foundling")]
    assert caught.value.code == code, error
    assert len(complaints) == 1 and "Traceback" not in error and "internal error" not in error, error
    return complaints[0]


def make(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("binary.dat", b"\x00\x01\x02" * 999, "binary"),
        ("latin.txt", "h\xe9llo w\xf6rld ".encode("latin-1") * 200, "UTF-8"),
        ("empty.txt", b"", "empty"),
        ("empty.parquet", b"", "parquet"),
        ("one.txt", "word " * 3000, "repeats itself"),
        ("short.txt", "a few words only", "give 1,250 bytes"),
        ("rows.jsonl", json.dumps({"body": "x" * 50}) + "\n", "body"),
    ],
)
def test_data_that_cannot_be_learnt_from(capsys, tmp_path, name: str, content, says: str) -> None:
    line = fails(capsys, "raise", make(tmp_path / name, content), "--minutes", "1", "--out", tmp_path / "out")
    assert says.lower() in line.lower(), line


def test_no_such_path_and_empty_folder(capsys, tmp_path) -> None:
    assert "nowhere" in fails(capsys, "raise", tmp_path / "nowhere", "--out", tmp_path / "o")
    (tmp_path / "folder").mkdir()
    assert "folder" in fails(capsys, "raise", tmp_path / "folder", "--out", tmp_path / "o2")


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--minutes", "0"], "--minutes 0"),
        (["--minutes", "-1"], "--minutes -1"),
        (["--minutes", "nan"], "--minutes nan"),
        (["--tokens", "0"], "--tokens 0"),
        (["--minutes", "1e308"], "--minutes inf: expected"),
        (["--minutes", "1e300"], "--minutes 1e+300: expected a positive number of at most --minutes 5.2596e+07"),
        (["--flops", "1e308"], "at most --flops 1e+30"),
        (["--tokens", "1e308"], "at most --tokens 1e+15"),
        (["--config", "/dev/zero"], "/dev/zero: not a file"),
        (["--field", "body"], "has no field 'body': all files are plain text"),
        (["--minutes", "many"], "many"),
        (["--minutes", "1", "--tokens", "5"], "not allowed with"),
        (["--minits", "1"], "did you mean '--minutes'"),
        (["--n-layer", "4"], "did you mean '--n-layers'"),
        (["--lr=0.1"], "did you mean '--learning-rate'"),
        (["--epochs", "3"], "unknown argument '--epochs' (see"),
        (["--n-layers", "four"], "'n_layers' is 'four'; expected a whole number"),
        (["--n-layers", "0"], "'n_layers' is 0"),
        (["--vocab-size", "1000"], "multiple of 64"),
        (["--d-model", "33"], "multiple of 32"),
        (["--family", "lama"], "did you mean 'llama'"),
        (["--optimizer", "sgd"], "'optimizer' is 'sgd'"),
        (["--model.n-layer", "4"], "did you mean 'n_layers'"),
        (["--out", ""], "--out is empty"),
        (["--seed", "2020-01-02"], "'seed' is '2020-01-02', expected int"),
        (["--seed", "2020-13-45"], "'seed' is '2020-13-45', expected int"),
        (["--device", "tpu"], "device 'tpu'"),
        (["--resume"], "--resume needs --out"),
        (["--resume", "--out", "nothing-here", "--minutes", "3"], "leave out minutes"),
        (["--resume", "--out", "nothing-here"], "no run to resume"),
        (["--config", "missing.yaml"], "missing.yaml"),
    ],
)
def test_arguments(capsys, tmp_path, monkeypatch, args: list, says: str) -> None:
    monkeypatch.chdir(tmp_path)
    corpus(tmp_path / "data", documents=30)
    data = [] if "--resume" in args else ["data"]
    assert says in fails(capsys, "raise", *data, *args)


def test_recipe_files(capsys, tmp_path) -> None:
    data = corpus(tmp_path / "data", documents=30)
    for content, says in (
        ("train: {seq_le: 3}\n", "did you mean 'seq_len'"),
        ("- 1\n", "mapping"),
        ("a: [", "not YAML"),
    ):
        config = make(tmp_path / "recipe.yaml", content)
        assert says in fails(capsys, "raise", data, "--config", config, "--out", tmp_path / "out")


def test_what_exists_is_not_touched(capsys, tmp_path) -> None:
    data = corpus(tmp_path / "data", documents=30)
    make(tmp_path / "thesis" / "thesis.txt", "years of work")
    before = files(tmp_path / "thesis")
    assert "not empty" in fails(capsys, "raise", data, "--minutes", "1", "--out", tmp_path / "thesis")
    assert files(tmp_path / "thesis") == before
    make(tmp_path / "note", "text")
    assert "is a file" in fails(capsys, "raise", data, "--minutes", "1", "--out", tmp_path / "note")


def test_a_second_process_on_the_same_directory(capsys, tmp_path) -> None:
    data = corpus(tmp_path / "data", documents=30)
    with lock(tmp_path / "out"):
        assert "another process" in fails(capsys, "raise", data, "--minutes", "1", "--out", tmp_path / "out")


def small_files() -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))


def test_a_full_disk_says_so_and_what_was_saved_stays(tmp_path) -> None:
    """RLIMIT_FSIZE stands for it: files beyond 60 kB cannot be written, so a checkpoint cannot."""
    data = corpus(tmp_path / "data")
    done = foundling("raise", data, "--tokens", "3072", *TINY, "--out", tmp_path / "out", before=small_files)
    assert done.returncode == 2 and "cannot be written" in done.stderr, done.stderr
    assert "Traceback" not in done.stderr and "internal error" not in done.stderr
    assert (tmp_path / "out" / "run" / "prediction.json").exists()
    assert foundling("raise", "--out", tmp_path / "out", "--resume").returncode == 0


def test_directories_that_are_no_models(capsys, tmp_path) -> None:
    for command in ("check", "reproduce", "generate", "chat"):
        assert str(tmp_path / "none") in fails(capsys, command, tmp_path / "none")
        (tmp_path / "bare").mkdir(exist_ok=True)
        assert str(tmp_path / "bare") in fails(capsys, command, tmp_path / "bare")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_examples_and_json(capsys, command: str) -> None:
    with pytest.raises(SystemExit) as caught:
        main([command, "--help"])
    text = capsys.readouterr().out
    assert caught.value.code == 0 and "examples:" in text and "--json" in text


def test_errors_are_one_json_object_too(capsys, tmp_path) -> None:
    with pytest.raises(SystemExit):
        main(["check", str(tmp_path), "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["exit_code"] == 2 and str(tmp_path) in found["error"]


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["check"], "dir"),
        (["raise", "--minits", "1"], "did you mean '--minutes'"),
        (["chek", "x"], "'check'"),
        (["fill", "x", "--lr", "1"], "unknown argument '--lr'"),
    ],
)
def test_usage_errors_are_one_json_object_too(capsys, args: list[str], says: str) -> None:
    with pytest.raises(SystemExit) as caught:
        main([*args, "--json"])
    out, err = capsys.readouterr()
    assert caught.value.code == 2 and says in json.loads(out)["error"]
    assert err.startswith("foundling") and err.count("\n") == 1 and "..." not in err, err


def test_a_budget_below_one_step_names_the_least_and_an_empty_run_directory_blocks_nothing(capsys, tmp_path) -> None:
    data = corpus(tmp_path / "data", documents=30)
    (tmp_path / "out" / "run").mkdir(parents=True)
    line = fails(capsys, "raise", data, "--tokens", "5", "--threads", "1", "--out", tmp_path / "out")
    assert "less than one step; the least that works here is" in line
    assert not any((tmp_path / "out").glob("run/*"))


def test_an_imported_directory_cannot_be_reproduced(capsys, tmp_path) -> None:
    fields = family("llama").module.sized(320, 64, 32, 1)
    save(build("llama", **fields), tmp_path / "plain")
    import_model(tmp_path / "plain", tmp_path / "imported")
    assert "was not raised here" in fails(capsys, "reproduce", tmp_path / "imported")


def test_without_a_compiler_it_says_so_and_goes_on(tmp_path) -> None:
    """A PATH without g++: asked to compile, raise trains uncompiled with a plain notice."""
    data = corpus(tmp_path / "data")
    arguments = [a if a != "false" else "true" for a in TINY]
    (tmp_path / "bin").mkdir()
    env = environment(PATH=str(tmp_path / "bin"))
    env.pop("CXX", None)
    done = foundling("raise", data, "--tokens", "3072", *arguments, "--out", tmp_path / "out", env=env)
    assert done.returncode == 0, done.stderr[-1500:]
    assert "no C++ compiler (g++) found, so layers are not compiled" in done.stderr
    recipe = json.loads((tmp_path / "out" / "foundling.json").read_text())["recipe"]
    assert recipe["runtime"]["compile"] is False


@pytest.mark.parametrize("family", ["clip", "unet"])
def test_a_family_that_raise_cannot_raise_leaves_nothing(family: str, tmp_path) -> None:
    done = foundling("raise", "--family", family, "--tokens", "1000", "--out", tmp_path / "out")
    assert done.returncode == 2 and "gpt2, llama, " in done.stderr and done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()
