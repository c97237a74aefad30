# SPDX-License-Identifier: Apache-2.0
"""What all programs share: bad input is one line and exit code 2, a second call goes on from the results of the first,
and a measurement's memory is its own."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path

import pytest

from examples import programs
from examples.programs import Parser, measured, number, require_all, run
from foundling.errors import ConfigError

EXAMPLES = Path(__file__).parents[2] / "examples"
NAMES = sorted(path.stem for path in EXAMPLES.glob("*.py") if "import Parser" in path.read_text(encoding="utf-8"))
"""all that use Parser"""
PART = {"language_models": ["bits"]}


@pytest.fixture
def error_of(capsys, monkeypatch):
    """(name, arguments) -> the one line that a program ends with"""

    def call(name: str, arguments: list[str]) -> str:
        monkeypatch.setattr("sys.argv", [name, *arguments])
        with pytest.raises(SystemExit) as ended:
            run(import_module(f"examples.{name}").main)
        printed = capsys.readouterr()
        assert ended.value.code == 2 and printed.err.count("\n") == 1 and not printed.out
        return printed.err

    return call


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--minutes", "many"], "argument --minutes: invalid float value: 'many'; --help says more"),
        (["--minutes", "-1"], "argument --minutes: it is -1, expected at least 0"),
        (["--minutes", "nan"], "argument --minutes: it is nan, expected at least 0"),
        (["--minute", "1"], "unrecognized arguments: --minute"),
        (["--out", "here"], "error: --out is 'here', expected the name of a file that ends in .json"),
        (["--out", __file__ + "/a.json"], "a.json', whose folder cannot be made: "),
    ],
)
@pytest.mark.parametrize("name", NAMES)
def test_bad_input_is_one_line_and_exit_code_2(name, arguments, message, error_of) -> None:
    assert message in error_of(name, [*PART.get(name, []), *arguments])


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("induction", ["--layers", "two"], "error: --layers is 'two', expected some of 2, 1, with commas between"),
        ("induction", ["--layers", "0"], "error: --layers is '0', expected some of 2, 1"),
        ("induction", ["--steps", "0"], "argument --steps: it is 0, expected at least 1"),
        ("induction", ["--steps", "-5"], "argument --steps: it is -5, expected at least 1"),
        ("induction", ["--repeated", "1.5"], "argument --repeated: it is 1.5, expected 0 to 1"),
        ("language_models", ["speed"], "argument part: invalid choice: 'speed'"),
        ("language_models", ["cost", "--threads", "0"], "argument --threads: it is 0, expected 1 to 64"),
        ("translation", ["--tasks", "poems"], "error: --tasks is 'poems', expected some of dates, help"),
        ("translation", ["--seeds", "0"], "argument --seeds: it is 0, expected 1 to 10"),
        ("transformer_steps", ["--seeds", "11"], "argument --seeds: it is 11, expected 1 to 10"),
        ("word_vectors", ["publishd"], "error: PART is 'publishd', expected some of generated, published"),
        ("word_vectors", ["--small", "text"], "--small has the part generated alone"),
    ],
)
def test_bad_input_of_one_program_is_one_line_too(name, arguments, message, error_of) -> None:
    assert message in error_of(name, arguments)


@pytest.mark.parametrize("name", NAMES)
def test_no_program_goes_on_from_results_of_other_settings(name, tmp_path, error_of) -> None:
    file = tmp_path / "old.json"
    for settings in ({"settings": {"steps": 1}}, {}):
        file.write_text(json.dumps(settings | {"a cell": 1}))
        error = error_of(name, [*PART.get(name, []), "--out", str(file), "--minutes", "0"])
        assert "old.json has results of other settings" in error
        assert json.loads(file.read_text()) == settings | {"a cell": 1}


def test_a_second_call_goes_on_and_machine_and_date_are_those_of_the_measurement(tmp_path) -> None:
    file = tmp_path / "a.json"
    parser = Parser("a", "")
    args = parser.parse_args(["--out", str(file)])
    results, figure = parser.results(args, {"sizes": (1, 2)})
    assert results.get("a", lambda: 7) == 7 and figure == tmp_path / "a.svg"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"machine": {"cpu": "another"}, "date": "2026-01-01"}))
    again, _ = parser.results(args, {"sizes": (1, 2)})
    assert again.get("a", lambda: pytest.fail("measured again")) == 7
    again.save()
    assert json.loads(file.read_text())["machine"] == {"cpu": "another"}
    assert again.get("b", lambda: 8) == 8 and json.loads(file.read_text())["machine"] != {"cpu": "another"}
    with pytest.raises(ConfigError, match="has results of other settings"):
        parser.results(args, {"sizes": (1, 3)})


def test_no_measurement_begins_after_the_minutes(tmp_path, capsys) -> None:
    parser = Parser("a", "")
    results, _ = parser.results(parser.parse_args(["--out", str(tmp_path / "a.json"), "--minutes", "0"]), {})
    assert results.get("a", lambda: pytest.fail("measured")) is None
    with pytest.raises(SystemExit) as ended:
        require_all(results)
    assert ended.value.code == 75 and "the same command goes on" in capsys.readouterr().err


def test_small_results_are_not_the_published_ones(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    parser = Parser("a", "", small="less")
    results, figure = parser.results(parser.parse_args(["--small"]), {}, "part")
    assert str(results.file) == "runs/a_part.json" and str(figure) == "runs/a_part.svg"
    full = parser.results(parser.parse_args([]), {})[0].file
    assert full == programs.DOCS / "results" / "a.json" and not full.exists()


def allocate(megabytes: int) -> dict[str, int]:
    return {"bytes": len(bytearray(b"\1") * (megabytes * 1_000_000))}


def test_the_memory_of_a_measurement_is_not_that_of_its_parent() -> None:
    parent = bytearray(b"\1") * 1_000_000_000
    cell = measured(allocate, 10, threads=1)
    with_more = measured(allocate, 300, threads=2)
    assert cell["bytes"] == 10_000_000 and len(parent) == 1_000_000_000
    assert cell["peak memory (MB)"] < 900 and (cell["threads"], with_more["threads"]) == (1, 2)
    assert 250 < with_more["peak memory (MB)"] - cell["peak memory (MB)"] < 330
    assert 0 <= cell["minutes"] < 5


def test_the_programs_use_one_parser() -> None:
    assert len(NAMES) >= 8 and {"bat", "induction", "language_models", "word_vectors"} <= {*NAMES}


def test_a_number_may_have_both_ends() -> None:
    assert (number(int, 1, 3)("3"), number(float)("0.5")) == (3, 0.5)
