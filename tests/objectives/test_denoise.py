# SPDX-License-Identifier: Apache-2.0
"""The denoising loss by hand: one step with ᾱ = 0.64, so that x = 0.8 x0 + 0.6 eps and everything can be read off x."""

import pytest
import torch
from torch import Tensor

from foundling.contracts.data import Batch
from foundling.contracts.denoise import Condition
from foundling.diffusion.schedule import NoiseSchedule
from foundling.errors import ConfigError
from foundling.objectives.denoise import Denoise

ROWS = 5


def batch(rows: int = ROWS) -> Batch:
    return {
        "pixels": torch.linspace(-1, 1, rows * 6).reshape(rows, 1, 2, 3),
        "classes": torch.arange(rows) % 10,
        "sample_ids": torch.arange(rows) + 40,
    }


class Network:
    """Says what is asked for and `off` more; keeps what it was told."""

    def __init__(self, x0: Tensor, predicts: str, off: float) -> None:
        self.x0, self.predicts, self.off = x0, predicts, off

    def __call__(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        self.t, self.condition = t, condition
        self.eps = (x - 0.8 * self.x0) / 0.6
        said = {"eps": self.eps, "x0": self.x0, "v": 0.8 * self.eps - 0.6 * self.x0}[self.predicts]
        return said + self.off


@pytest.mark.parametrize("predicts", ["eps", "x0", "v"])
def test_loss_by_hand(predicts: str) -> None:
    objective, rows = Denoise(NoiseSchedule(1, "linear", 0.36, 0.36, predicts), seed=0), batch()
    assert objective.normalizers(rows) == {"loss": ROWS * 6}
    for off, each in ((0.0, 0.0), (0.5, 0.25), (-2.0, 4.0)):
        term = objective(Network(rows["pixels"], predicts, off), rows)["loss"]
        assert term.count == ROWS * 6 and term.weight == 1 and term.sum.dtype == torch.float32
        assert float(term.sum) == pytest.approx(each * ROWS * 6, rel=1e-5, abs=1e-9)


def drawn(schedule: NoiseSchedule, rows: Batch, **options) -> Network:
    network = Network(rows["pixels"], "eps", 0.0)
    Denoise(schedule, **options)(network, rows)
    return network


def test_what_is_drawn_is_distributed_as_stated() -> None:
    """Of 2,000 rows: steps uniform, noise standard and never the same, a tenth told nothing whatever its step."""
    rows = batch(2000)
    told = drawn(NoiseSchedule(), rows, seed=3)
    assert torch.equal(told.condition.classes, rows["classes"])
    assert int(told.t.min()) >= 0 and 980 < int(told.t.max()) < 1000
    tenths = torch.bincount(told.t // 100, minlength=10)
    assert float(((tenths - 200) ** 2 / 200).sum()) < 27.9  # χ² of nine degrees, 0.1 %
    kept = told.condition.keep
    assert abs(float(kept.float().mean()) - 0.9) < 4 * (0.09 / 2000) ** 0.5
    assert abs(float(told.t[~kept].float().mean()) - 500) < 4 * 289 / 200**0.5

    eps = drawn(NoiseSchedule(1, "linear", 0.36, 0.36), rows, seed=3).eps
    assert abs(float(eps.mean())) < 4 / 12000**0.5 and abs(float(eps.std()) - 1) < 4 / 24000**0.5
    assert len(eps.flatten(1).unique(dim=0)) == 2000


def test_what_is_drawn_depends_on_seed_and_sample_alone() -> None:
    rows = batch(64)
    reversed_rows = {name: column.flip(0) for name, column in rows.items()}
    first, again, other = (drawn(NoiseSchedule(), r, seed=s) for r, s in ((rows, 1), (reversed_rows, 1), (rows, 2)))
    assert torch.equal(first.t, again.t.flip(0)) and torch.equal(first.eps, again.eps.flip(0))
    assert torch.equal(first.condition.keep, again.condition.keep.flip(0))
    assert (first.t == other.t).float().mean() < 0.1 and not torch.allclose(first.eps, other.eps)


@pytest.mark.parametrize(("drop", "share"), [(0.0, 1.0), (1.0, 0.0)])
def test_conditions_always_and_never(drop: float, share: float) -> None:
    assert float(drawn(NoiseSchedule(), batch(50), seed=0, drop=drop).condition.keep.float().mean()) == share


@pytest.mark.parametrize("drop", [-0.1, 1.5, float("nan")])
def test_a_drop_that_is_no_share_is_refused(drop: float) -> None:
    with pytest.raises(ConfigError, match="drop"):
        Denoise(NoiseSchedule(), seed=0, drop=drop)
