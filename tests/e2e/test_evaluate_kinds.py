# SPDX-License-Identifier: Apache-2.0
"""`foundling evaluate` in its own process on models that generate nothing: one task file of each kind."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from foundling.evaluate.store import read_evaluation
from tests.e2e.tools import foundling
from tests.evaluate.encoders import LABELS, TEXTS, bert, classifier, clip, task_file
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
    clip(root / "clip")
    for i in range(3):
        Image.new("RGB", (12, 9), (90 * i, 20, 0)).save(root / f"{i}.png")
    pictures = [{"image": f"{i}.png", "label": LABELS[i]} for i in range(3)]
    task_file(root, pictures, name="pictures", kind="images", options=list(LABELS), answer="{label}")
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


def test_pictures(work: Path) -> None:
    (result,) = evaluated(work / "clip", work / "pictures.yaml", "--out", work / "c")["results"]
    assert result["n"] == 3 and result["metric"] == "accuracy" and "macro F1" in result["figures"]
    items = read_evaluation(work / "c").items["pictures"]
    for item in items:
        assert sum(math.exp(logprob) for _, logprob in item["choices"]) == pytest.approx(1)


def test_a_plan_counts_what_will_be_read(work: Path) -> None:
    moods, texts, documents, pictures = (
        evaluated(work / model, work / f"{task}.yaml", "--plan", "--positions" if task == "texts" else "--limit", 3)[
            "tasks"
        ][0]
        for model, task in (("classifier", "moods"), ("masked", "texts"), ("masked", "task"), ("clip", "pictures"))
    )
    # words, full stop, [CLS] and [SEP] of three texts; three or two masked tokens of each of four
    assert moods["tokens"] == 9 + 9 + 4 and texts["tokens"] == 3 * (9 + 9 + 9) + 2 * 4
    assert documents["tokens"] > 40 * 9 and pictures["tokens"] > 3 * 2
    assert all(task["seconds"] > 0 and task["new_tokens"] == 0 for task in (moods, texts, documents, pictures))


@pytest.mark.parametrize(
    ("model", "task", "options", "message"),
    [
        ("classifier", "task.yaml", (), "classifier is a classifier: tasks of kind retrieve need a model that embeds"),
        ("classifier", "pictures.yaml", (), "tasks of kind images need a model that embeds pictures"),
        ("masked", "moods.yaml", (), "it does tasks of kind perplexity, retrieve"),
        ("masked", "moods.yaml", ("--chat",), "masked generates no text; leave out chat"),
        ("classifier", "task.yaml", ("--plan",), "tasks of kind retrieve need a model that embeds"),
        ("masked", "texts.yaml", ("--positions", "0"), "positions is 0"),
    ],
)
def test_what_does_not_fit_is_one_line_and_exit_code_2(
    work: Path, tmp_path: Path, model: str, task: str, options: tuple[str, ...], message: str
) -> None:
    done = foundling("evaluate", work / model, work / task, *options, "--out", tmp_path / "out")
    assert done.returncode == 2 and message in done.stderr and done.stderr.strip().count("\n") == 0
