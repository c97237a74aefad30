# SPDX-License-Identifier: Apache-2.0
"""An evaluation on disk is the same one when it is read, and a damaged one is refused with the way out."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from foundling.contracts.records import EvaluationRecord, Item, Result
from foundling.errors import DataError, OutputError
from foundling.evaluate.store import read_evaluation, write_evaluation
from tests.evaluate.records import evaluation

RECORD = evaluation({"arc easy": [1, 0, 1], "Ärger / ../../etc": [0, 0], "wiki": [1.25, 0.5]}, lower=["wiki"])


def test_what_is_written_is_read(tmp_path) -> None:
    directory = write_evaluation(RECORD, tmp_path / "deep" / "eval")
    assert read_evaluation(directory) == RECORD and read_evaluation(directory / "evaluation.json") == RECORD
    names = sorted(str(p.relative_to(directory)) for p in directory.rglob("*.jsonl"))
    assert names == ["items/arc-easy.jsonl", "items/rger-etc.jsonl"]
    stored = json.loads((directory / "evaluation.json").read_text())
    assert stored["format_version"] == 1 and "items" not in stored
    assert [r["scores"] for r in stored["results"]] == [[], [], [1.25, 0.5]], "scores stand with the items"
    assert (directory / "index.html").read_text().startswith("<!DOCTYPE html>")


def test_names_that_are_one_in_a_file_system_stay_apart(tmp_path) -> None:
    record = evaluation({"A b": [1], "a-b": [0], "…": [1], "a_b": [0]})
    assert read_evaluation(write_evaluation(record, tmp_path / "e")) == record
    assert len(list((tmp_path / "e" / "items").iterdir())) == 4


def test_another_evaluation_takes_its_place_and_answers_stay(tmp_path) -> None:
    write_evaluation(RECORD, tmp_path)
    (tmp_path / "answers.jsonl").write_text("{}\n")
    other = evaluation({"winogrande": [1, 1]})
    write_evaluation(other, tmp_path, page=False)
    assert read_evaluation(tmp_path) == other and (tmp_path / "answers.jsonl").read_text() == "{}\n"
    assert [p.name for p in (tmp_path / "items").iterdir()] == ["winogrande.jsonl"]


def test_numbers_that_are_none(tmp_path) -> None:
    item = Item(
        id="1", prompt="p\ud800", target="", answer="\x1b", score=math.nan, choices=[("x", -math.inf)], cut=True
    )
    result = Result("t", "score", None, 1, scores=[math.nan], figures={"ECE": (0.5, None, math.nan)})
    record = EvaluationRecord("s", "", "", [result], {"t": [item]})
    back = read_evaluation(write_evaluation(record, tmp_path))
    assert math.isnan(back.items["t"][0]["score"]) and math.isnan(back.results[0].scores[0])
    assert back.items["t"][0].get("choices") == [("x", -math.inf)] and back.items["t"][0].get("cut") is True
    assert list(back.results[0].figures["ECE"]) == [0.5, None, None]
    assert "NaN" not in "".join(p.read_text() for p in tmp_path.rglob("*.json*"))


def test_scores_of_a_second_metric_are_its_own(tmp_path) -> None:
    first = RECORD.results[0]
    other = replace(first, metric="accuracy by byte", scores=[0.0, 0.0, 1.0])
    record = replace(RECORD, results=[*RECORD.results, other])
    assert read_evaluation(write_evaluation(record, tmp_path)).results[-1].scores == [0.0, 0.0, 1.0]


def edit(directory: Path, **changes) -> None:
    path = directory / "evaluation.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_a_damaged_evaluation_is_refused(tmp_path) -> None:
    def refused(says: str, way: str = "run foundling evaluate again") -> None:
        with pytest.raises(DataError) as caught:
            read_evaluation(tmp_path)
        assert says in str(caught.value) and way in str(caught.value), caught.value

    refused("no evaluation.json", "foundling evaluate --out")
    with pytest.raises(DataError, match="no such directory"):
        read_evaluation(tmp_path / "none")
    file = tmp_path / "items" / "arc-easy.jsonl"
    write_evaluation(RECORD, tmp_path)
    file.write_text(file.read_text().replace('"score": 0.0', '"score": 1.0'))
    refused("damaged or edited")
    file.unlink()
    refused("cannot be read")
    write_evaluation(RECORD, tmp_path)
    edit(tmp_path, format_version=2)
    refused("newer than 1", "upgrade")
    for changes, says in (
        ({"format_version": "1"}, "no format_version"), ({"format_version": 1, "files": None}, "no list of files"),
        ({"files": {"../x.jsonl": {"task": "t"}}}, "names no file"), ({"files": {"items/x.jsonl": 3}}, "names no file"),
        ({"files": {"items/../x.jsonl": {"task": "t"}}}, "names no file"), ({"files": {}, "results": [3]}, "damaged"),
        ({"results": [{"task": "x"}]}, "damaged"), ({"results": 7}, "damaged"), ({"unknown": 1}, "damaged"),
        ({"unknown": 1, "subject": None}, "damaged"),
    ):  # fmt: skip
        write_evaluation(RECORD, tmp_path)
        edit(tmp_path, **changes)
        refused(says)
    for field, value in (
        ("scores", "abc"),
        ("value", "1"),
        ("hashes", {"task": 3}),
        ("figures", {"x": 1}),
        ("n", None),
    ):
        write_evaluation(RECORD, tmp_path)
        results = json.loads((tmp_path / "evaluation.json").read_text())["results"]
        results[0][field] = value
        edit(tmp_path, results=results)
        refused("damaged")
    (tmp_path / "evaluation.json").write_text("[" * 100_000)
    refused("nested deeper")


def test_lines_that_are_no_items(tmp_path) -> None:
    for line in (
        "{}", "3", '{"id": 1, "prompt": "", "target": "", "answer": "", "score": 1}', "[1", '"text"',
        '{"id": "", "prompt": "", "target": "", "answer": "", "score": "1"}',
    ):  # fmt: skip
        write_evaluation(RECORD, tmp_path)
        data = (line + "\n").encode()
        (tmp_path / "items" / "arc-easy.jsonl").write_bytes(data)
        stored = json.loads((tmp_path / "evaluation.json").read_text())
        stored["files"]["items/arc-easy.jsonl"]["sha256"] = hashlib.sha256(data).hexdigest()
        edit(tmp_path, files=stored["files"])
        with pytest.raises(DataError, match="line 1: no item of an evaluation"):
            read_evaluation(tmp_path)


def test_it_cannot_be_written(tmp_path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        write_evaluation(RECORD, tmp_path / "file")
