# SPDX-License-Identifier: Apache-2.0
"""Batches that come from rollouts of the model in training: their state is saved and restored with the rest."""

import multiprocessing
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from foundling.contracts.data import ResumableBatches
from foundling.contracts.objective import Term
from foundling.errors import ConfigError, WeightsError
from foundling.runtime.device import Runtime
from foundling.train.checkpoint import latest_checkpoint, load_checkpoint, save_checkpoint
from foundling.train.loop import train
from foundling.train.options import OptimOptions, TrainOptions
from foundling.train.schedule import Schedule
from foundling.train.state import TrainState
from foundling.weights.directory import weights_hash

STEPS = 8


class Rollouts:
    """A bandit with four arms: the policy draws arms, the better ones pay more. What is left of one rollout serves the
    next batch too."""

    def __init__(self, policy: nn.Module, seed: int = 0) -> None:
        self.policy, self.generator = policy, torch.Generator().manual_seed(seed)
        self.waiting: list[Tensor] = []
        self.mean, self.n = 0.0, 0

    @torch.no_grad()
    def __getitem__(self, n: int) -> dict[str, Tensor]:
        assert n == self.n, "asked for in order"
        while len(self.waiting) < 6:
            chances = self.policy(torch.ones(1, 1)).softmax(-1).expand(5, 4)
            self.waiting += list(torch.multinomial(chances, 1, generator=self.generator)[:, 0])
        arms = torch.stack(self.waiting[:6])
        reward = arms.float() + torch.randn(6, generator=self.generator) * 0.1
        self.waiting, self.n = self.waiting[6:], n + 1
        self.mean = 0.9 * self.mean + 0.1 * float(reward.mean())
        return {"arms": arms, "advantage": reward - self.mean}

    def state_dict(self) -> dict:
        return {"generator": self.generator.get_state(), "waiting": self.waiting, "mean": self.mean, "n": self.n}

    def load_state_dict(self, state: dict) -> None:
        self.generator.set_state(state["generator"])
        self.waiting, self.mean, self.n = state["waiting"], state["mean"], state["n"]


class Reinforce:
    """−Σ advantage · log π(arm) (Williams 1992)."""

    def normalizers(self, batch) -> dict[str, int]:
        return {"loss": len(batch["arms"])}

    def __call__(self, model, batch) -> dict[str, Term]:
        logprobs = model(torch.ones(1, 1)).log_softmax(-1)[0, batch["arms"]]
        return {"loss": Term(-(batch["advantage"] * logprobs).sum(), len(batch["arms"]))}


def start() -> tuple[TrainState, Rollouts]:
    policy = nn.Linear(1, 4)
    nn.init.zeros_(policy.weight)
    nn.init.zeros_(policy.bias)
    return TrainState.build(policy, OptimOptions("adamw", learning_rate=0.05)), Rollouts(policy)


def go(directory: Path, kill_at: int = -1) -> tuple[TrainState, Rollouts]:
    """Trains from the newest checkpoint, saving every third step; dies at the begin of step `kill_at`."""
    state, rollouts = start()
    path, _ = latest_checkpoint(directory)
    if path:
        load_checkpoint(path, state, batches=rollouts)
    for step in train(state, Reinforce(), rollouts, Schedule(STEPS), TrainOptions(3), Runtime()):
        if step.n % 3 == 0:
            save_checkpoint(directory, state, {}, batches=rollouts)
        if step.n == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
    return state, rollouts


def test_killed_and_resumed_is_bitwise_the_same(tmp_path) -> None:
    unbroken, source = go(tmp_path / "unbroken")
    process = multiprocessing.get_context("spawn").Process(target=go, args=(tmp_path / "broken", 5))
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    assert [p.name for p in (tmp_path / "broken").glob("step-*")] == ["step-00000003"]
    resumed, again = go(tmp_path / "broken")
    assert resumed.step == unbroken.step == STEPS
    assert weights_hash(resumed.model) == weights_hash(unbroken.model)
    assert again.n == source.n and again.mean == source.mean
    assert torch.equal(again.generator.get_state(), source.generator.get_state())
    assert len(source.waiting) > 0 and torch.equal(torch.stack(again.waiting), torch.stack(source.waiting))


def test_a_checkpoint_holds_no_pickle(tmp_path) -> None:
    state, rollouts = start()
    assert isinstance(rollouts, ResumableBatches)
    path = save_checkpoint(tmp_path, state, {}, batches=rollouts)
    assert sorted(p.name for p in path.iterdir()) == ["foundling.json", "state.safetensors"]


def test_batches_by_number_need_no_state_and_those_with_one_ask_for_it(tmp_path) -> None:
    state, rollouts = start()
    path = save_checkpoint(tmp_path, state, {}, batches=[{"arms": torch.zeros(1)}])
    load_checkpoint(path, state, batches=[{"arms": torch.zeros(1)}])
    with pytest.raises(WeightsError, match="no state of the batches"):
        load_checkpoint(path, state, batches=rollouts)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.zeros(2), r"state_dict\(\)\.mean is ndarray"),
        (float("nan"), r"\.mean is float nan"),
        ({1: 2}, r"\.mean is dict"),
    ],
)
def test_a_state_that_neither_json_nor_safetensors_can_hold_is_refused(tmp_path, value, message) -> None:
    state, rollouts = start()
    rollouts.mean = value
    with pytest.raises(ConfigError, match=message):
        save_checkpoint(tmp_path, state, {}, batches=rollouts)
    assert not list(tmp_path.iterdir())
