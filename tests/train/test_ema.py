# SPDX-License-Identifier: Apache-2.0
"""The moving average of parameters against its recurrence written out."""

import pytest
import torch

from foundling.errors import ConfigError, WeightsError
from foundling.runtime.device import Runtime
from foundling.train.checkpoint import load_checkpoint, save_checkpoint
from foundling.train.loop import train
from foundling.train.options import OptimOptions, TrainOptions
from foundling.train.schedule import Schedule
from foundling.train.state import TrainState
from foundling.train.update import update
from tests.train.conv_family import Classify, Pictures, fresh

ADAMW, DECAY = OptimOptions("adamw"), 0.75


def steps(state: TrainState, n: int, **options):
    return train(state, Classify(), Pictures(), Schedule(n), TrainOptions(8, **options), Runtime())


def test_equals_the_recurrence() -> None:
    state = TrainState.build(fresh(), ADAMW, ema_decay=DECAY)
    wanted = {name: p.detach().double() for name, p in state.model.named_parameters()}
    for _ in steps(state, 6):
        wanted = {n: DECAY * wanted[n] + (1 - DECAY) * p.detach().double() for n, p in state.model.named_parameters()}
    for name, average in state.ema["model"].averages.items():
        torch.testing.assert_close(average.double(), wanted[name], atol=1e-6, rtol=1e-6)
        assert not torch.equal(average, state.model.get_parameter(name))


def test_an_update_that_is_not_finite_moves_no_average() -> None:
    state = TrainState.build(fresh(), ADAMW, ema_decay=DECAY)
    list(steps(state, 2))
    before = {name: t.clone() for name, t in state.ema["model"].averages.items()}
    batch = Pictures()[2]
    batch = batch | {"pixels": batch["pixels"] * float("nan")}
    update(state, Classify(), batch, TrainOptions(8), Runtime())
    assert all(torch.equal(t, before[name]) for name, t in state.ema["model"].averages.items())
    update(state, Classify(), Pictures()[2], TrainOptions(8), Runtime())
    assert not any(torch.equal(t, before[name]) for name, t in state.ema["model"].averages.items())


def test_frozen_parameters_are_not_averaged() -> None:
    model = fresh()
    model.head.requires_grad_(False)
    state = TrainState.build(model, ADAMW, ema_decay=DECAY)
    assert (
        state.ema["model"].averages.keys()
        == state.optimizer.params.keys()
        == {name for name, _ in model.named_parameters() if not name.startswith("head")}
    )


def test_checkpointed_and_resumed(tmp_path) -> None:
    unbroken = TrainState.build(fresh(), ADAMW)
    list(steps(unbroken, 5, ema_decay=DECAY))
    first = TrainState.build(fresh(), ADAMW)
    next(steps(first, 5, ema_decay=DECAY))
    path = save_checkpoint(tmp_path, first, {})
    for second in (TrainState.build(fresh(), ADAMW), TrainState.build(fresh(), ADAMW, ema_decay=DECAY)):
        load_checkpoint(path, second)
        list(steps(second, 5, ema_decay=DECAY))
        for name, average in unbroken.ema["model"].averages.items():
            assert torch.equal(average, second.ema["model"].averages[name])
    with pytest.raises(ConfigError, match=r"0\.5.*0\.75"):
        list(steps(first, 5, ema_decay=0.5))


def test_a_checkpoint_without_an_average_is_refused_where_one_is_asked_for(tmp_path) -> None:
    path = save_checkpoint(tmp_path, TrainState.build(fresh(), ADAMW), {})
    with pytest.raises(WeightsError, match="EMA"):
        load_checkpoint(path, TrainState.build(fresh(), ADAMW, ema_decay=DECAY))
    with pytest.raises(ConfigError, match=r"1\.5.*between 0 and 1"):
        TrainOptions(1, ema_decay=1.5)
