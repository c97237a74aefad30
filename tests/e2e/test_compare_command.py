# SPDX-License-Identifier: Apache-2.0
"""`foundling compare` in its own process: the table, the JSON object, the page, and the exit code for a script."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from foundling.evaluate.store import write_evaluation
from tests.e2e.tools import foundling
from tests.evaluate.records import evaluation


@pytest.fixture(scope="module")
def evals(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("evals")
    before = {"arc easy": [1] * 60 + [0] * 40, "sums": [1, 0] * 50}
    for name, tasks, hashes in (
        ("before", before, {}),
        ("worse", {**before, "arc easy": [0] * 20 + [1] * 40 + [0] * 40}, {}),
        ("better", {**before, "arc easy": [1] * 80 + [0] * 20}, {}),
        ("other", before, {"template": "f" * 64, "backend": "e" * 64}),
    ):
        write_evaluation(evaluation(tasks, subject=name, **hashes), root / name)
    return root


@pytest.mark.parametrize(("name", "code"), [("worse", 3), ("better", 0), ("before", 0)])
def test_the_exit_code_is_the_verdict(evals: Path, name: str, code: int) -> None:
    done = foundling("compare", evals / "before", evals / name, "--json")
    answer = json.loads(done.stdout)
    assert done.returncode == answer["exit_code"] == code, done.stderr
    assert answer["verdict"] == (name if name != "before" else "same") and len(answer["tasks"]) == 2
    assert answer["overall"]["task"] == "mean of 2 tasks" and answer["tasks"][0]["n_changed"] == 20 * (name != "before")
    assert len(answer["tasks"][0]["changed"]) == 10 * (name != "before")


def test_too_few_items_for_a_tolerance(evals: Path) -> None:
    done = foundling("compare", evals / "before", evals / "before", "--tolerance", "0.5")
    assert done.returncode == 4 and "too few items to show that they differ by at most 0.5 points" in done.stdout
    done = foundling("compare", evals / "before", evals / "before", "--tolerance", "3")
    assert done.returncode == 0 and "the same within 3 points" in done.stdout, "200 items, of which none differs"
    done = foundling("compare", evals / "worse", evals / "before", "--tolerance", "1", "--json")
    assert json.loads(done.stdout)["verdict"] == "better"


def test_the_table_the_changed_answers_and_the_page(evals: Path, tmp_path: Path) -> None:
    out = tmp_path / "changed.html"
    done = foundling("compare", evals / "before", evals / "worse", "--changed", "all", "--html", out)
    assert done.returncode == 3 and f"page: {out}" in done.stdout
    assert done.stdout.startswith("worse against before: worse on mean of 2 tasks, arc easy\n")
    assert "60.0  40.0" in done.stdout and "-20.0 [" in done.stdout and done.stdout.count("right → wrong") == 20
    assert "arc easy: 20 changed answers\n" in done.stdout and "Question 0:" in done.stdout
    assert out.read_text().count('data-outcome="wrong"') == 20
    few = foundling("compare", evals / "before", evals / "worse", "--changed", "1").stdout
    assert few.count("right → wrong") == 2 and "20 changed answers, 2 shown" in few


def test_what_is_refused(evals: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged"
    write_evaluation(evaluation({"arc easy": [1]}), damaged)
    (damaged / "items" / "arc-easy.jsonl").write_text("")
    for args, says in (
        (("before", "other"), "different template"), (("before", "other", "--across", "template"), "different backend"),
        (("before", "none"), "no such directory; name the directory that foundling evaluate --out wrote"),
        (("before", damaged), "damaged or edited"), (("before", "other", "--across", "model"), "--across 'model'"),
        (("before", "before", "--changed", "few"), "--changed few: expected a whole number, or 'all'"),
        (("before", "before", "--tolerance", "nan"), "--tolerance"),
        (("before", "before", "--html", tmp_path / "no" / "x.html"), "cannot be written"),
    ):  # fmt: skip
        words = [evals / a if str(a) in ("before", "other", "none") else a for a in args]
        done = foundling("compare", *words)
        assert done.returncode == 2 and says in done.stderr and done.stderr.count("\n") <= 3, (args, done.stderr)
    done = foundling("compare", evals / "before", evals / "other", "--across", "template,backend", "--json", fresh=True)
    assert done.returncode == 0 and "different backend" in done.stderr
