# SPDX-License-Identifier: Apache-2.0
"""The comparison of language models: its rows, its budgets, and which tokens each model recalls."""

from __future__ import annotations

import pytest
import torch

from examples.experts import BUDGETS, DENSE, MIXTURE, settings
from examples.language_models import FILLERS, SYMBOLS, Recall, main, recall, recall_rows
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


def test_an_unknown_part_is_one_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["language_models", "speed"])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 2 and "invalid choice: 'speed'" in capsys.readouterr().err


def test_a_mixture_multiplies_as_much_as_the_dense_model_beside_it() -> None:
    for size in BUDGETS.values():
        both = settings(*size)
        dense, mixture = (both[name].flops_per_token(*size) for name in (DENSE, MIXTURE))
        assert 1.0 < mixture / dense < 1.02, "the router alone is more"


@pytest.mark.slow
def test_a_window_forgets_and_a_state_does_not() -> None:
    near, far = "4", "16"
    found = {name: recall(name, (4, 16), 300, 1) for name in ("ffn_lm", "lstm")}
    assert found["ffn_lm"][near] > 0.95 and found["ffn_lm"][far] < 3 / SYMBOLS, found
    assert found["lstm"][near] > 0.95 and found["lstm"][far] > 0.95, found
