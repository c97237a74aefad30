# SPDX-License-Identifier: Apache-2.0
"""The best weights are kept, training stops where they get no better, and a resumed run does as an unbroken one."""

import json
import random
from pathlib import Path

import pytest
import torch
from torch import nn

from foundling.errors import MismatchError
from foundling.recipes.journal import BEST, Journal
from foundling.recipes.validation import Validation
from tests.e2e.tools import corpus, foundling, kill_after_checkpoint, raised, weights


def journal(tmp_path: Path) -> Journal:
    made = Journal(tmp_path / "run", {}, {})
    made.save()
    return made


def run(losses: list[float], tmp_path: Path, patience: int | None = None) -> tuple[Validation, nn.Linear, Journal]:
    """A model whose weight is the number of the step, measured after each."""
    model, files = nn.Linear(1, 1), journal(tmp_path)
    model.bias.requires_grad_(False)
    left = iter(losses)
    validation = Validation(lambda _: next(left), every=1, patience=patience)
    for step in range(1, len(losses) + 1):
        with torch.no_grad():
            model.weight.fill_(step)
        validation.after(step, model, files)
        if validation.stopped:
            break
    return validation, model, files


def test_the_best_weights_come_back(tmp_path: Path) -> None:
    validation, model, files = run([3.0, 1.0, 2.0, float("nan")], tmp_path)
    assert (validation.best, validation.best_step, validation.without) == (1.0, 2, 2)
    frozen = model.bias.clone()
    validation.restore_best(model, files)
    assert model.weight.item() == 2 and torch.equal(model.bias, frozen)
    again = Validation(lambda _: 0.0, every=1)
    again.load_state(json.loads(json.dumps(validation.state())))
    assert again.state() == validation.state() and again.best == 1.0
    (files.directory / BEST).write_bytes(b"damaged")
    with pytest.raises(MismatchError, match="damaged or edited"):
        validation.restore_best(model, files)


def test_it_stops_after_so_many_without_a_better_one(tmp_path: Path) -> None:
    validation, model, _ = run([3.0, 2.0, 2.0, 2.5, 1.0], tmp_path, patience=2)
    assert validation.stopped and model.weight.item() == 4, "an equal loss is no better one"
    assert not Validation(lambda _: 0.0, every=1).stopped
    due = Validation(lambda _: 0.0, every=4)
    assert [step for step in range(1, 11) if due.is_due(step, 10)] == [4, 8, 10]


def test_nothing_finite_leaves_the_last_weights(tmp_path: Path) -> None:
    validation, model, files = run([float("inf"), float("nan")], tmp_path)
    assert validation.best_step is None and not (files.directory / BEST).exists()
    validation.restore_best(model, files)
    assert model.weight.item() == 2


def test_a_run_that_stops_early_is_resumed_to_the_same_weights(tmp_path: Path) -> None:
    """The rate is so large that the loss rises at once; the kill comes after the first measurements."""
    base, chance = tmp_path / "base", random.Random(0)
    raised(
        corpus(tmp_path / "text"), "--total-steps", "2", "--batch-size", "2", "--seq-len", "64", "--d-model", "32",
        "--n-layers", "2", "--vocab-size", "320", "--threads", "1", "--compile", "false", "--precision", "float32",
        "--out", base,
    )  # fmt: skip
    rows = [{"text": f"{'ab' if i % 2 else 'ba'} {chance.random():.3f}", "label": f"{i % 2}"} for i in range(80)]
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    args = [
        base, data, "--method", "full", "--epochs", "8", "--threads", "1", "--precision", "float32",
        "--batch-size", "4", "--learning-rate", "3", "--evaluate-every", "2", "--patience", "3",
        "--checkpoint-every", "1",
    ]  # fmt: skip
    done = foundling("finetune", *args, "--out", tmp_path / "whole", "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    planned = json.loads((tmp_path / "whole" / "foundling.json").read_text())["recipe"]["train"]["total_steps"]
    assert result["steps"] == 6 < planned and result["best_step"] == 0, (
        "nothing is better than the probe it begins with"
    )
    log = [json.loads(line) for line in (tmp_path / "whole" / "log.jsonl").read_text().splitlines()]
    assert sum("validation_loss" in entry for entry in log) == 3
    assert result["actual"]["accuracy"] == result["baselines"]["a linear probe"]
    kill_after_checkpoint([*args, "--out", tmp_path / "broken"], tmp_path / "broken", "finetune")
    assert foundling("finetune", "--out", tmp_path / "broken", "--resume").returncode == 0
    assert weights(tmp_path / "broken") == weights(tmp_path / "whole")
