# SPDX-License-Identifier: Apache-2.0
"""`foundling evaluate` in its own process on models that generate nothing: one task file of each kind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from foundling.evaluate.store import read_evaluation
from tests.e2e.tools import foundling
from tests.evaluate.encoders import LABELS, TEXTS, bert, classifier, task_file
from tests.evaluate.test_images import DIGITS, directory  # noqa: F401
from tests.evaluate.test_retrieval import banking


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("kinds")
    classifier(root / "classifier")
    bert(root / "masked", "ForMaskedLM")
    rows = [{"text": text, "label": LABELS[i % 3]} for i, text in enumerate(TEXTS)]
    task_file(root, rows, name="moods", kind="classify", prompt="{text}", answer="{label}")
    task_file(root, rows, name="texts", kind="perplexity", prompt="{text}")
    banking(root)
    (root / "digits.yaml").write_text(json.dumps(DIGITS))
    return root


def evaluated(*args: object) -> dict[str, Any]:
    done = foundling("evaluate", *args, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_classifier(work: Path) -> None:
    answer = evaluated(work / "classifier", work / "moods.yaml", "--out", work / "a")
    (result,) = answer["results"]
    assert result["metric"] == "accuracy" and result["n"] == 4 and {"macro F1", "ECE"} < set(result["figures"])
    again = evaluated(work / "classifier", work / "moods.yaml", "--out", work / "a")
    assert again["notes"] == ["12 answers were recorded before"] and again["results"][0]["value"] == result["value"]
    page = (work / "a" / "index.html").read_text()
    assert "macro F1" in page and TEXTS[0] in page
    done = foundling("compare", work / "a", work / "a", "--json")
    assert json.loads(done.stdout)["verdict"] == "same"


def test_a_masked_encoder_and_retrieval(work: Path) -> None:
    tasks = work / "texts.yaml", work / "task.yaml"
    answer = evaluated(work / "masked", *tasks, "--positions", 5, "--out", work / "b")
    texts, documents = answer["results"]
    assert texts["metric"] == "pseudo bits per byte"
    assert texts["figures"]["masked positions"][0] == sum(min(5, n) for n in (7, 7, 2, 7))
    assert documents["metric"] == "nDCG@10" and "BM25: recall@10" in documents["figures"]
    assert read_evaluation(work / "b").items["task"][0]["answer"].startswith("1. d")


def test_pictures(work: Path, directory: Path) -> None:  # noqa: F811
    answer = evaluated(directory, work / "digits.yaml", "--limit", 50, "--out", work / "c")
    assert answer["results"][0]["n"] == 50 and answer["results"][0]["value"] > 0.5


@pytest.mark.parametrize(
    ("model", "task", "options", "message"),
    [
        ("classifier", "task.yaml", (), "classifier is a classifier: tasks of kind retrieve need a model that embeds"),
        ("classifier", "digits.yaml", (), "tasks of kind images need a model that embeds pictures"),
        ("masked", "moods.yaml", (), "it does tasks of kind perplexity, retrieve"),
        ("masked", "moods.yaml", ("--chat",), "masked generates no text; leave out chat"),
        ("classifier", "moods.yaml", ("--plan",), "--plan measures models that generate text on this machine"),
        ("masked", "texts.yaml", ("--positions", "0"), "positions is 0"),
    ],
)
def test_what_does_not_fit_is_one_line_and_exit_code_2(
    work: Path, tmp_path: Path, model: str, task: str, options: tuple[str, ...], message: str
) -> None:
    done = foundling("evaluate", work / model, work / task, *options, "--out", tmp_path / "out")
    assert done.returncode == 2 and message in done.stderr and done.stderr.strip().count("\n") == 0
