# SPDX-License-Identifier: Apache-2.0
"""The tables of docs/evaluation.md are those of docs/results, and what they claim holds there."""

import json
import re
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "evaluation.md").read_text(encoding="utf-8")


def results(name: str) -> dict[str, Any]:
    return json.loads((DOCS / "results" / f"{name}.json").read_text(encoding="utf-8"))


def rows() -> list[list[str]]:
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in PAGE.splitlines() if line.startswith("| ")]


def test_the_real_model_has_the_figures_that_were_measured() -> None:
    real, shown = results("real_tasks"), {row[0]: row for row in rows()}
    languages = [name for name in real if re.fullmatch("mmlu-..", name)]
    assert len(languages) == 9
    for name in languages:
        row, value = shown[name.removeprefix("mmlu-")], real[name]
        assert row[1] == f"{value['value']:.3f}" and row[3] == str(value["n"])
        assert value["low"] < 0.25 < value["high"], "near chance, as the page says"
    for name in ("mmlu-en-text", "ifbench", "movies", "humaneval", "brown"):
        v = real[name]
        assert f"| {v['value']:.3f} | {v['low']:.3f} to {v['high']:.3f} | {v['n']} |" in PAGE


def test_the_harness_gives_the_same_scores_and_takes_twice_as_long() -> None:
    measured = results("harness")
    for name in ("text", "shots", "movies"):
        row = measured[name]
        metric = "exact_match" if name == "movies" else "acc"
        assert abs(row["theirs"][metric] - row["our runner"]) <= 1e-4, name
        assert row["theirs"] == row["ours under the harness"], name
        assert row["ratio"] >= 2 and f"**{row['ratio']}×**" in PAGE, name
