# SPDX-License-Identifier: Apache-2.0
"""The comparison of language models: its rows, its budgets, and which tokens each model recalls."""

from __future__ import annotations

import pytest
import torch

from benchmarks.runs import DOCS, Results
from examples.experts import DENSE, GROWING, MIXTURE, compared, grids, printed, settings
from examples.language_models import FILLERS, PARTS, SYMBOLS, Recall, recall, recall_rows, recall_table
from foundling.runtime.files import read_json
from foundling.runtime.rng import generator


def test_a_row_asks_for_its_first_symbol() -> None:
    rows = recall_rows(50, 4, 1, generator("rows"))
    assert rows.shape == (50, 7) and torch.equal(rows[:, 0], rows[:, -1])
    assert (rows[:, 0] < SYMBOLS).all() and (rows[:, 5] == SYMBOLS + FILLERS).all()
    assert ((rows[:, 1:5] >= SYMBOLS) & (rows[:, 1:5] < SYMBOLS + FILLERS)).all()
    batch = Recall((4, 9), 1)[1]
    assert batch["tokens"].shape[1] == 11 and batch["loss_mask"].sum() == len(batch["tokens"])
    assert batch["loss_mask"][:, -1].all()
    several = recall_rows(3, 2, 5, generator("rows"))
    assert several.shape == (3, 13) and torch.equal(several[:, :5], several[:, -5:])


@pytest.mark.parametrize("part", PARTS)
def test_the_tables_of_the_docs_are_those_of_the_results(part) -> None:
    values = read_json(DOCS / "results" / f"language_models_{part}.json")
    assert PARTS[part](values) in (DOCS / "language_models.md").read_text(encoding="utf-8")


def test_a_table_says_what_was_not_measured() -> None:
    values = {"settings": {"distances": [1, 4]}, "lstm 8": {"1": 1.0, "4": 0.256, "minutes": 3}}
    table, missing = recall_table(values).split("\n\n")
    assert table.splitlines()[2:] == ["| LSTM | 8 | 1.00 | 0.26 |"]
    assert missing.startswith("Not measured: ") and missing.count(";") == 8 and "LSTM, 8" not in missing
    assert "LSTM, 1 symbol;" in missing and missing.endswith("state space, Mamba-2, 8 symbols.")


@pytest.mark.parametrize(("name", "device"), [("experts", "cpu"), ("experts_gpu", "cuda")])
def test_the_tables_of_the_mixture_are_those_of_the_results(name, device) -> None:
    results, page = Results(name, minutes=0), (DOCS / "language_models.md").read_text(encoding="utf-8")
    for grid in grids(device).values():
        rows = compared(results, grid, range(3), device)
        assert printed(rows) in page and len(rows) >= 2


def test_a_mixture_multiplies_as_much_as_the_dense_model_beside_it() -> None:
    for size in GROWING.values():
        both = settings(*size)
        dense, mixture = (both[name].flops_per_token(*size) for name in (DENSE, MIXTURE))
        assert 1.0 < mixture / dense < 1.02, "the router alone is more"


@pytest.mark.slow
def test_a_window_forgets_and_a_state_does_not() -> None:
    near, far = "4", "16"
    shares = {name: recall(name, (4, 16), 300, 1) for name in ("ffn_lm", "lstm")}
    assert shares["ffn_lm"][near] > 0.95 and shares["ffn_lm"][far] < 3 / SYMBOLS, shares
    assert shares["lstm"][near] > 0.95 and shares["lstm"][far] > 0.95, shares
