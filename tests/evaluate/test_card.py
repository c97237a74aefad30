# SPDX-License-Identifier: Apache-2.0
"""Results of evaluations in the card of a model directory."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from foundling.errors import MismatchError, WeightsError
from foundling.evaluate.card import write_card
from foundling.weights.manifest import check, write_manifest
from tests.evaluate.records import evaluation
from tests.report.runs import realistic


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "README.md").write_text("old\n")
    (tmp_path / "report.json").write_text(json.dumps(asdict(realistic())))
    write_manifest(tmp_path, {"weights_hash": "m" * 64})
    return tmp_path


def test_the_card_is_written_again_and_nothing_else(directory: Path) -> None:
    card = write_card(directory, [evaluation({"arc easy": [1, 1, 0, 1]}), evaluation({"sums": [1, 0]})])
    assert (directory / "README.md").read_text() == card and "| arc easy |" in card and "| sums |" in card
    assert "75\xa0% (30–95)" in card
    result = check(directory)
    assert result["ok"] and result["edited"] == ["README.md"]


def test_what_is_refused(directory: Path) -> None:
    with pytest.raises(MismatchError, match="is of weights ffffffffffff, these are mmmmmmmmmmmm"):
        write_card(directory, [evaluation({"t": [1]}, model="f" * 64)])
    for text in ("{}", "[", '{"kind": 3}'):
        (directory / "report.json").write_text(text)
        with pytest.raises(WeightsError, match="damaged"):
            write_card(directory, [])
    (directory / "report.json").unlink()
    with pytest.raises(WeightsError, match=r"no report.json and foundling.json of a run"):
        write_card(directory, [])
    assert (directory / "README.md").read_text() == "old\n"
