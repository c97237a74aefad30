# SPDX-License-Identifier: Apache-2.0
"""The tables of docs/structured_choices.md are those of docs/results."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import structured_output, text_to_sql
from benchmarks.runs import Results

DOCS = Path(__file__).parents[2] / "docs"
BENCHMARKS = {"structured_output": structured_output, "text_to_sql": text_to_sql}
EMPTY = structured_output.MISSING


def read(name: str) -> dict[str, Any]:
    return json.loads((DOCS / "results" / f"{name}.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", BENCHMARKS)
def test_the_table_is_that_of_the_results(name: str) -> None:
    """A way that is not measured says so; once all were, none may."""
    page, benchmark, results = (
        (DOCS / "structured_choices.md").read_text(encoding="utf-8"),
        BENCHMARKS[name],
        read(name),
    )
    assert results["data"]["commit"] and results["machine"] and results["date"]
    table = page.partition(f"<!-- {name} -->\n")[2].partition("\n<!-- end -->")[0]
    assert table == benchmark.table(results)
    rows = table.splitlines()[2:]
    assert [row.split(" | ")[0].removeprefix("| ") for row in rows] == [*benchmark.NAMES.values()]
    missing = [key for key, row in zip(benchmark.NAMES, rows, strict=True) if EMPTY in row]
    assert missing == [key for key in benchmark.NAMES if key not in results]
    assert not (results.get("whole") and missing), f"measured as a whole, and without {missing}"


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_table_is_whole_when_all_is_measured(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pages, names = list[str](), BENCHMARKS[name].NAMES
    monkeypatch.setattr(structured_output, "fill_page", lambda name, text: pages.append(text))
    results = Results(name, tmp_path / f"{name}.json")
    for n, key in enumerate(names):
        structured_output.fill_table(results, lambda values: " ".join(values), names)
        assert "whole" not in results.values and len(pages) == n + 1
        results.values[key] = {}
    structured_output.fill_table(results, lambda values: " ".join(values), names)
    assert json.loads((tmp_path / f"{name}.json").read_text(encoding="utf-8"))["whole"] is True


def test_the_data_of_both_benchmarks_are_as_many_as_the_page_says() -> None:
    both = {name: read(name) for name in BENCHMARKS}
    assert both["structured_output"]["data"]["held out"] == 150
    assert both["structured_output"]["data"]["train"] == 400
    assert both["text_to_sql"]["data"]["held out"] == 220
    assert both["text_to_sql"]["data"]["pairs"] == 24 * len(both["text_to_sql"]["data"]["trained templates"])
