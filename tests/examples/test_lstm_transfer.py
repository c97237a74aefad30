# SPDX-License-Identifier: Apache-2.0
"""Finetuning a pretrained LSTM: which options each cell has, and that pretraining helps."""

import pytest

from benchmarks.runs import DOCS
from examples.lstm_transfer import FLOPS_SMALL, ULMFIT, WITHOUT, accuracy_table, cells, measure, ulmfit
from foundling.runtime.files import read_json


def test_the_table_of_the_docs_is_that_of_the_results() -> None:
    values = read_json(DOCS / "results" / "lstm_transfer.json")
    assert accuracy_table(values) in (DOCS / "language_models.md").read_text(encoding="utf-8")
    assert {*cells()} <= values.keys()


def test_each_part_is_left_out_once() -> None:
    whole = ulmfit()
    assert all(flags[0] in whole for flags in ULMFIT.values())
    for name, flags in ULMFIT.items():
        family, from_scratch, options = cells()[f"ULMFiT without {name}"]
        assert (family, from_scratch) == ("lstm", False)
        expected = WITHOUT.get(name, [])
        for flag, value in zip(flags[::2], flags[1::2], strict=True):
            assert (flag in options) == (flag in expected) and value not in options
        assert [o for o in options if o not in expected] == [o for o in whole if o not in flags]


def test_the_best_from_scratch_is_not_held_back() -> None:
    scratch = [options for name, (_, random, options) in cells().items() if random and name.startswith("from scratch")]
    assert len(scratch) == 4
    for options in scratch:
        assert not {"--layer-decay", "--unfreeze-every"} & {*options} and "concat" in options


@pytest.mark.slow
def test_a_pretrained_lstm_beats_one_from_scratch(tmp_path) -> None:
    """All weights at once, with a twentieth of the pretraining, and six epochs."""
    names = "all weights at once, concat pooling", "from scratch, all weights at once, concat pooling"
    epochs = ["--epochs", "6"]
    pretrained, scratch = (measure(name, FLOPS_SMALL, tmp_path, epochs)["accuracy"] for name in names)
    assert pretrained > scratch + 0.02, (pretrained, scratch)
