# SPDX-License-Identifier: Apache-2.0
"""Tasks and samples in JSONL, and two commands that read them: right input, and one line for what is wrong."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from foundling.cli import verify_instructions, verify_maths
from foundling.errors import DataError
from foundling.verify import samples as samples_module
from foundling.verify.samples import Sample, judge_all, key_of, open_verdicts, read_lines, read_samples, read_tasks


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows))
    return path


def run(module: Any, tasks: Path, samples: Path, as_json: bool = True) -> dict[str, Any]:
    samples.with_suffix(".verdicts.jsonl").unlink(missing_ok=True)
    parser = argparse.ArgumentParser()
    module.add(parser)
    parser.add_argument("--json", action="store_true")
    return module.run(parser.parse_args([str(tasks), str(samples), *["--json"] * as_json]))


def as_it_is(row: dict[str, Any], name: str, where: str) -> dict[str, Any]:
    return row


def test_tasks_and_samples(tmp_path) -> None:
    tasks = read_tasks(write(tmp_path / "t", [{"task_id": "a", "x": 1}, "\n", {"task_id": 2}]), as_it_is)
    assert list(tasks) == ["a", "2"]
    samples = read_samples(write(tmp_path / "s", [{"task_id": 2, "completion": ""}] * 2), tasks, ["completion"])
    assert [sample.task_id for sample in samples] == ["2", "2"]


A = {"task_id": "a", "answer": "5"}
S = {"task_id": "a", "completion": "#### 5"}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([A, "{'a'}\n"], ":2: is no JSON"),
        ([A, A], ":2: task_id 'a' is there twice, first in line 1"),
        ([A, "\n", "[1]\n"], r":3: is \[1\]; expected one JSON object"),
        ([{"answer": 5}], ":1: has no 'task_id'"),
        ([{"task_id": True}], ":1: 'task_id' is True"),
        ([], "no tasks"),
        (["[" * 100_000 + "\n"], ":1: is None; expected one JSON object"),
    ],
)
def test_wrong_tasks(tmp_path, rows, message) -> None:
    with pytest.raises(DataError, match=message) as caught:
        read_tasks(write(tmp_path / "t", rows), as_it_is)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([S, {"task_id": "b", "completion": ""}], ":2: task_id 'b' is none of the 1 tasks"),
        ([{"task_id": "a"}], ":1: has no 'completion'"),
        ([{"task_id": "a", "completion": 5}], ":1: 'completion' is 5; expected text"),
        ([], "no samples"),
        (["\x1b[2J\n"], ":1: is no JSON"),
    ],
)
def test_wrong_samples(tmp_path, rows, message) -> None:
    tasks = read_tasks(write(tmp_path / "t", [A]), as_it_is)
    with pytest.raises(DataError, match=message):
        read_samples(write(tmp_path / "s", rows), tasks, ["completion"])


def test_files_that_cannot_be_read(tmp_path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        read_tasks(tmp_path / "none", as_it_is)
    with pytest.raises(DataError, match="not a file"):
        read_tasks(tmp_path, as_it_is)
    (tmp_path / "t").write_bytes(b'{"task_id": "\xff"}\n')
    with pytest.raises(DataError, match=":1: is no JSON"):
        read_tasks(tmp_path / "t", as_it_is)


def test_maths(tmp_path, capsys) -> None:
    tasks = write(
        tmp_path / "t",
        [
            {"task_id": 0, "answer": "12 - 7 = <<12-7=5>>5\n#### 5"},
            {"task_id": 1, "solution": r"so $\boxed{\frac{1}{2}}$."},
            {"task_id": 2, "answer": 7},
        ],
    )
    samples = write(
        tmp_path / "s",
        [
            {"task_id": 0, "completion": "The answer is $5.00."},
            {"task_id": 1, "completion": "So it is 50%."},
            {"task_id": 2, "completion": "I do not know that, to be quite honest."},
            {"task_id": 2, "completion": "#### 8"},
        ],
    )
    result = run(verify_maths, tasks, samples)
    assert (result["tasks"], result["samples"], result["passed"]) == (3, 4, 2)
    assert result["accuracy"]["value"] == 2 / 3 and result["by_task"]["2"] == {"samples": 2, "passed": 0}
    assert result["reasons"] == {"passed": 2, "no answer": 1, "another answer": 1}
    verdicts = [json.loads(line) for line in Path(result["verdicts"]).read_text().splitlines()]
    assert sorted((v["task_id"], v["answer"], v["passed"]) for v in verdicts if v["answer"]) == [
        ("0", "5", True), ("1", "50%", True), ("2", "8", False),
    ]  # fmt: skip
    run(verify_maths, tasks, samples, as_json=False)
    assert "2 of 4 samples pass" in capsys.readouterr().out
    with pytest.raises(DataError, match="no final answer in its field"):
        run(verify_maths, write(tmp_path / "u", [{"task_id": 0}]), samples)


PROMPTS = [
    {
        "key": "k", "prompt": "P", "instruction_id_list": ["punctuation:no_comma", "count:numbers"],
        "kwargs": [{}, {"N": 1.0, "n": None}],
    },
    {"key": 7, "prompt": "Q", "instruction_id_list": ["format:no_whitespace"], "kwargs": [None]},
]  # fmt: skip


def test_instructions(tmp_path, capsys) -> None:
    tasks = write(tmp_path / "t", PROMPTS)
    samples = write(tmp_path / "s", [{"prompt": "P", "response": "1, yes"}, {"key": 7, "response": "Sure:\nyes"}])
    result = run(verify_instructions, tasks, samples)
    assert result["prompt_strict"] == 0 and result["prompt_loose"] == 0.5
    assert result["instruction_strict"] == 1 / 3 and result["instruction_loose"] == 2 / 3
    verdicts = [json.loads(line) for line in Path(result["verdicts"]).read_text().splitlines()]
    assert {v["task_id"]: v["strict"] for v in verdicts} == {"k": [False, True], "7": [False]}
    assert result["tasks_without_samples"] == 0 and result["rules"] == "foundling"
    run(verify_instructions, tasks, samples, as_json=False)
    out = capsys.readouterr().out
    assert "prompts with all followed   strict   0.0%   loose  50.0%" in out and "rules: foundling" in out


def test_a_prompt_of_two_tasks_needs_the_key(tmp_path) -> None:
    tasks = write(tmp_path / "t", [PROMPTS[0], {**PROMPTS[1], "prompt": "P"}])
    with pytest.raises(DataError, match=r":1: prompt 'P' is that of 2 tasks .*give the 'key'"):
        run(verify_instructions, tasks, write(tmp_path / "s", [{"prompt": "P", "response": "1"}]))
    result = run(verify_instructions, tasks, write(tmp_path / "s", [{"prompt": "P", "key": 7, "response": "1"}]))
    assert list(result["by_task"]) == ["7"]


def test_unsettled_verdicts_are_made_again(tmp_path) -> None:
    """And settled ones are not, unless what they depend on has changed."""
    samples, path = [Sample(n, "a", "text") for n in (1, 2, 3)], tmp_path / "v.jsonl"
    reasons = iter(["time", "wrong", "undecided", "passed", "passed", "passed"])

    def judge(sample: Sample) -> dict[str, Any]:
        return {"passed": False, "reason": next(reasons)}

    def judged(keys: list[str]) -> list[str]:
        with open_verdicts(path) as verdicts:
            return [verdict["reason"] for verdict in judge_all(samples, keys, judge, verdicts, 1)]

    assert judged(["x", "y", "z"]) == ["time", "wrong", "undecided"]
    assert judged(["x", "y", "z"]) == ["passed", "wrong", "passed"]
    assert judged(["x", "y", "z"]) == ["passed", "wrong", "passed"]
    assert judged(["x", "new", "z"]) == ["passed", "passed", "passed"]
    last = {row["line"]: row["reason"] for _, row in read_lines(path)}
    assert last == {1: "passed", 2: "passed", 3: "passed"}


def test_a_key_changes_with_the_program(tmp_path, monkeypatch) -> None:
    before = key_of("maths", "5")
    assert key_of("maths", "5") == before != key_of("maths", "6")
    names = ("verify/samples.py", "verify/kinds/one.py", "text/fences.py")
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_text("x = 1")
    monkeypatch.setattr(samples_module, "__file__", str(tmp_path / names[0]))
    keys = []
    for name in names:
        (tmp_path / name).write_text("x = 2")
        samples_module._verifiers.cache_clear()
        keys.append(key_of("maths", "5"))
    monkeypatch.undo()
    samples_module._verifiers.cache_clear()
    assert len({before, *keys}) == 4 and key_of("maths", "5") == before


@pytest.mark.parametrize(
    "line", ['{"line": 1, "task_id": "a", "key": [1]}\n', '{"line": {}, "task_id": "a", "key": "x"}\n', '{"line": 1}\n',
             '{"a": 1', '{"line": 1, "task_id": 5, "key": "x"}\n'],
)  # fmt: skip
def test_a_file_that_holds_no_verdicts(tmp_path, line) -> None:
    path = write(tmp_path / "v", [line])
    with pytest.raises(DataError, match=r"is no verdict|has no end"), open_verdicts(path):
        pass
    assert path.read_text() == line


def test_a_torn_line_is_cut_off(tmp_path) -> None:
    whole = '{"line": 1, "task_id": "a", "key": "x", "reason": "passed"}\n'
    for torn in ('{"line": 2, "ta', "{", ""):
        path = write(tmp_path / "v", [whole + torn])
        with open_verdicts(path) as verdicts:
            assert list(verdicts.by_key) == ["x"]
        assert path.read_text() == whole


def _change(**fields: Any) -> Callable[[], list[Any]]:
    return lambda: [{**PROMPTS[0], **fields}]


@pytest.mark.parametrize(
    ("tasks", "samples", "message"),
    [
        (PROMPTS, [{"key": "x", "response": ""}], ":1: key 'x' is none of the 2 tasks"),
        (PROMPTS, [{"prompt": "x", "response": ""}], ":1: prompt 'x' is none of the 2 tasks"),
        (PROMPTS, [{"key": 7}], ":1: has no 'response'"),
        (PROMPTS, [], "no samples"),
        (_change(instruction_id_list=["no:kind"] * 2), [{"key": "k", "response": "a"}], "'no:kind' is unknown"),
        (_change(kwargs=[{}]), [{"key": "k", "response": "a"}], "one for each"),
        (_change(kwargs="x"), [{"key": "k", "response": "a"}], "not of IFEval's format"),
        (_change(instruction_id_list=[5, 6]), [{"key": "k", "response": "a"}], "not of IFEval's format"),
    ],
)
def test_wrong_instructions(tmp_path, tasks, samples, message) -> None:
    rows = tasks() if callable(tasks) else tasks
    with pytest.raises(DataError, match=message):
        run(verify_instructions, write(tmp_path / "t", rows), write(tmp_path / "s", samples))


def test_nothing_imports_torch() -> None:
    import subprocess
    import sys

    code = (
        "import sys, foundling.verify.maths, foundling.verify.instructions, foundling.verify.samples;"
        "print({'torch', 'sympy', 'numpy', 'jsonschema', 'llguidance'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "set()"
