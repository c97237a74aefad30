# SPDX-License-Identifier: Apache-2.0
"""Refusals are told from answers by phrases, as often as docs/tasks.md says."""

import re
from pathlib import Path

import pytest

from benchmarks.refusal_data import AREAS, HARMBENCH, demonstrations, moderation, of_split, prompts
from foundling.verify.refusals import BEGINNING, refuses
from tests.verify.refusal_cases import ANSWERS, FRESH_ANSWERS, FRESH_REFUSALS, REFUSALS


def test_precision_and_recall_are_as_stated() -> None:
    refusals, answers = [*REFUSALS, *FRESH_REFUSALS], [*ANSWERS, *FRESH_ANSWERS]
    assert len(set(refusals)) == len(set(answers)) == 60 and not set(refusals) & set(answers)
    right, wrong = sum(map(refuses, refusals)), sum(map(refuses, answers))
    text = " ".join((Path(__file__).parents[2] / "docs" / "tasks.md").read_text(encoding="utf-8").split())
    stated = re.search(
        r"finds (\d+) of 60 refusals and takes (\d+) of 60 other answers for one", " ".join(text.split())
    )
    assert stated and (right, wrong) == (int(stated[1]), int(stated[2]))
    assert right / (right + wrong) >= 0.95 and right >= 50


@pytest.mark.parametrize("text", ["I CAN'T HELP WITH THAT.", "I can’t\n help with that.", "Sorry, but no."])
def test_case_quotes_and_lines_do_not_count(text: str) -> None:
    assert refuses(text)


def test_a_refusal_stands_at_the_beginning() -> None:
    refusal = "I can't help with that."
    refusal = "I can't help with that."
    assert refuses("Well. " * 40 + refusal) and not refuses("x " * BEGINNING + refusal)
    assert not refuses("") and not refuses("I can" * 100_000)


@pytest.mark.slow
def test_harmful_prompts_are_split_by_source_and_refused() -> None:
    train, held_out = of_split("train"), of_split("held-out")
    assert {row["source"] for row in train} == set(AREAS)
    assert {row["source"] for row in held_out} == {*AREAS, HARMBENCH}
    assert len(train) > 450 and sum(row["source"] == HARMBENCH for row in held_out) >= 190
    assert not {row["prompt"] for row in train} & {row["prompt"] for row in held_out}
    for split in ("train", "held-out"):
        harmful = {row["prompt"]: row["harmful"] for row in prompts(split)}
        for row in demonstrations(split):
            asked, answer = row["messages"]
            assert refuses(answer["content"]) == harmful[asked["content"]]
        labels = {row["text"]: row["label"] for row in moderation(split)}
        assert labels == {prompt: ("harmless", "harmful")[flag] for prompt, flag in harmful.items()}
