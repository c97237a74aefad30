# SPDX-License-Identifier: Apache-2.0
"""The programs of examples/: what is quick of them, and their claims at a small setting (slow)."""

import json
import math
from pathlib import Path

import pytest
import torch

from examples import induction, superposition
from foundling.runtime.rng import generator

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted(path.stem for path in (ROOT / "examples").glob("*.py") if "__main__" in path.read_text("utf-8"))
"""those that are programs"""


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_says_how_to_call_it(name: str) -> None:
    text = (ROOT / "examples" / f"{name}.py").read_text(encoding="utf-8")
    assert f"python -m examples.{name}" in text


def test_repeated_rows_repeat_and_others_are_text() -> None:
    text = torch.arange(100_000) % 300
    rows = induction.Rows(text, 0.5)[3]
    tokens, targets = rows["tokens"], rows["targets"]
    assert tokens.shape == (induction.ROWS, induction.T) and torch.equal(tokens[:, 1:], targets[:, :-1])
    for row in tokens[: induction.ROWS // 2]:
        assert any((row[n:] == row[:-n]).all() for n in range(10, induction.T // 2))
    assert ((tokens[induction.ROWS // 2 :].diff(dim=1) % 300) == 1).all()


def test_the_phase_change_is_recognised() -> None:
    curve = {
        str(step): {"prefix matching": [[value]], "text loss": 1, "in-context score": 0, "loss of the second copy": 0}
        for step, value in ((0, 0.02), (10, 0.03), (20, 0.04), (30, 0.1), (40, 0.5), (50, 0.9))
    }
    phases = induction.summary(curve)
    assert {name: part["step"] for name, part in phases.items()} == {"before": 20, "change": 40, "after": 50}
    assert phases["before"]["best prefix matching"] == 0.04


def skip_trigram_row(row: dict) -> str:
    """A line of the table in docs/interpret.md."""

    def cell(pairs: list) -> str:
        return ", ".join(f"{shown(token)} {value:.1f}" for token, value in pairs)

    def shown(token: str) -> str:
        return f"`{token.replace(' ', '·').replace(chr(10), '↵')}`"

    before, after = row["probability"], row["probability with the source"]
    return (
        f"| {shown(row['source'])} | {row['head']} | {cell(row['destinations'])} | {cell(row['outputs'])} | "
        f"{before:.4f} | {after:.4f} |"
    )


def test_the_table_of_skip_trigrams_is_that_of_its_results() -> None:
    table = json.loads((ROOT / "docs/results/skip_trigrams.json").read_text(encoding="utf-8"))["table"]
    docs = (ROOT / "docs/interpret.md").read_text(encoding="utf-8")
    assert "\n".join(map(skip_trigram_row, table)) in docs
    effects = {row["source"]: (row["probability"], row["probability with the source"]) for row in table}
    assert all(effects[word][1] > max(0.5, 5 * effects[word][0]) for word in (" try", " is", " len"))


@pytest.mark.slow
def test_a_skip_trigram_that_is_read_is_what_the_model_predicts(tmp_path) -> None:
    """With half of the steps: `try`, some text and an indent make `except` many times as likely."""
    induction.skip_trigram_table(steps=1000, file=tmp_path / "table.json")
    table = json.loads((tmp_path / "table.json").read_text(encoding="utf-8"))["table"]
    (row,) = (row for row in table if row["source"] == " try")
    assert row["outputs"][0][0] == " except" and not row["destinations"][0][0].strip()
    assert row["probability with the source"] > 5 * row["probability"]


def test_expected_phases_are_the_losses_of_the_best_options() -> None:
    """Against the mean over samples of each option's loss."""
    draw = generator("test", 0)
    for p, importance in ((1.0, 0.3), (0.1, 1.0), (0.3, 5.0)):
        x = superposition.features(torch.tensor([p]), 2, 200_000, draw)[0]
        h = x[:, 0] - x[:, 1]
        both = torch.stack([torch.relu(h), torch.relu(-h)], 1)
        weights = torch.tensor([1.0, importance])
        losses = [importance * x[:, 1].var(), x[:, 0].var(), ((x - both) ** 2).mean(0) @ weights]
        expected = superposition.expected_phases(torch.tensor([p]), torch.tensor([importance]))
        assert int(torch.stack(losses).argmin()) == int(expected)


@pytest.mark.slow
def test_sparse_features_make_a_pentagon_and_dense_ones_do_not() -> None:
    sparse = superposition.pentagon(0.05, starts=16, steps=2500)
    assert len(sparse["angles between neighbours"]) == 5
    assert max(abs(angle - 72) for angle in sparse["angles between neighbours"]) < 4
    dense = superposition.pentagon(1.0, 0.9, starts=8, steps=2000)
    assert sum(length > superposition.REPRESENTED for length in dense["lengths"]) == 2


@pytest.mark.slow
def test_induction_appears_in_two_layers(monkeypatch) -> None:
    """On repeated random tokens alone, which is faster than beside text; the unigram loss stays in the first copy."""
    text = torch.randint(induction.VOCAB, (20_000,), generator=generator("text", 0))
    monkeypatch.setattr(induction, "text_tokens", lambda: (text, text))
    monkeypatch.setattr(induction, "EVERY", 100)
    phases = induction.summary(induction.trained(2, 700, 1.0)["curve"])
    assert phases["before"]["best prefix matching"] < 0.1 and phases["after"]["best prefix matching"] >= 0.8
    assert phases["after"]["loss of the second copy"] < 1 < math.log(induction.VOCAB) / 2
