# SPDX-License-Identifier: Apache-2.0
"""Self-supervision: what a constant prediction can reach, that every objective goes below it, tasks by prefix, and what
a student keeps."""

from __future__ import annotations

from math import log

import pytest
import torch

from benchmarks.runs import DOCS
from examples import distilbert, self_supervision, text_to_text
from examples.self_supervision import KINDS, constant_nats, label_table, objective_table, pretrained
from foundling.runtime.files import read_json

PAGE = (DOCS / "self_supervision.md").read_text(encoding="utf-8")


def results(name: str):
    return read_json(DOCS / "results" / f"{name}.json")


def test_no_constant_prediction_is_better_than_the_frequencies() -> None:
    targets = torch.tensor([3, 3, 3, 7])
    assert constant_nats(targets) == pytest.approx(-0.75 * log(0.75) - 0.25 * log(0.25))
    other = torch.tensor([0.6, 0.4]).log()  # of 3 and of 7
    assert -float(other[0] * 0.75 + other[1] * 0.25) > constant_nats(targets)


def test_the_tables_of_the_docs_are_those_of_the_results() -> None:
    assert objective_table(results("self_supervision")) in PAGE
    assert label_table(results("self_supervision")) in PAGE
    assert distilbert.model_table(results("distilbert")) in PAGE
    assert distilbert.summary(results("distilbert")) in " ".join(PAGE.split())


def test_every_objective_learns_more_than_frequencies() -> None:
    values = results("self_supervision")
    cells = [values[name] for name in KINDS]
    assert all(cell["interval of after"][1] < cell["best constant"] for cell in cells)
    assert values["replaced tokens"]["AUC"] > 0.75


def test_a_student_keeps_most_of_its_teacher_at_half_of_the_cost() -> None:
    values = results("distilbert")
    for task in distilbert.LABELS:
        assert values[f"student, {task}"]["accuracy"] >= 0.95 * values[f"teacher, {task}"]["accuracy"]
    assert values["student"]["parameters"] <= 0.6 * values["teacher"]["parameters"]
    assert values[distilbert.SPEED]["teacher"] >= 1.5 * values[distilbert.SPEED]["student"]


def test_one_model_does_its_tasks_by_their_prefixes() -> None:
    values = results("text_to_text")
    right, frequent = values[text_to_text.MODEL]["right"], values[text_to_text.FREQUENT]
    assert sum(right[task] > share + 0.1 for task, share in frequent.items()) >= 3
    assert all(share > 0.6 for share in values[text_to_text.MODEL]["form"].values())


def test_sentinels_are_not_counted() -> None:
    batch = {"targets": torch.tensor([[9, 4, 5]]), "loss_mask": torch.tensor([[True, True, False]])}
    assert self_supervision.Uncounted([batch], [9, 5])[0]["loss_mask"].tolist() == [[False, True, False]]


@pytest.mark.slow
def test_the_tasks_are_those_of_the_docs_and_share_no_item() -> None:
    for table in (text_to_text.task_table, text_to_text.form_table):
        assert table(results("text_to_text")) in PAGE
    for task in text_to_text.TASKS:
        trained, asked = (text_to_text.items(task, held_out=held_out) for held_out in (False, True))
        assert len(trained) == text_to_text.TRAIN[task] and len(asked) == text_to_text.HELD_OUT
        assert not {text for text, _ in trained} & {text for text, _ in asked}
    day, month = (text_to_text.items(task, held_out=True) for task in ("day", "month"))
    assert [text for text, _ in day] == [text for text, _ in month]  # so the prefix alone decides the answer


@pytest.mark.slow
@pytest.mark.parametrize(("name", "flops"), [("next token", 3e11), ("denoising", 1e12), ("masked tokens", 1.5e12)])
def test_an_objective_learns(name, flops, monkeypatch, tmp_path) -> None:
    """The three that need little of it; spans and replaced tokens take the whole budget."""
    monkeypatch.setattr(self_supervision, "directory", lambda name, flops: tmp_path / name)
    cell = pretrained(name, flops)
    assert cell["interval of after"][1] < cell["best constant"]
