# SPDX-License-Identifier: Apache-2.0
"""The tables of docs/structured_choices.md are those of docs/results."""

import json
from pathlib import Path

import pytest

from benchmarks import structured_output, text_to_sql

DOCS = Path(__file__).parents[2] / "docs"
TABLES = {"structured_output": structured_output.table, "text_to_sql": text_to_sql.table}


@pytest.mark.parametrize("name", TABLES)
def test_the_table_is_that_of_the_results(name: str) -> None:
    page = (DOCS / "structured_choices.md").read_text(encoding="utf-8")
    results = json.loads((DOCS / "results" / f"{name}.json").read_text(encoding="utf-8"))
    assert results["data"]["commit"] and results["machine"] and results["date"]
    assert page.partition(f"<!-- {name} -->\n")[2].partition("\n<!-- end -->")[0] == TABLES[name](results)


def test_the_data_of_both_benchmarks_are_as_many_as_the_page_says() -> None:
    read = {name: json.loads((DOCS / "results" / f"{name}.json").read_text(encoding="utf-8")) for name in TABLES}
    assert read["structured_output"]["data"]["held out"] == 300
    assert read["structured_output"]["data"]["train"] == 400
    assert read["text_to_sql"]["data"]["held out"] == 220
    assert read["text_to_sql"]["data"]["pairs"] == 24 * len(read["text_to_sql"]["data"]["trained templates"])
