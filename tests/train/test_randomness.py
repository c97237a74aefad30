# SPDX-License-Identifier: Apache-2.0
"""Dropout and what else modules draw: the same bits for one seed, whatever else has happened."""

import pytest
import torch
from torch import Tensor

from foundling.runtime.device import Runtime
from foundling.train.checkpoint import load_checkpoint, save_checkpoint
from foundling.train.loop import train
from foundling.train.options import OptimOptions, TrainOptions
from foundling.train.randomness import module_seed
from foundling.train.schedule import Schedule
from foundling.train.state import TrainState
from foundling.weights.directory import weights_hash
from tests.train.conv_family import Classify, Pictures, fresh

ADAMW = OptimOptions("adamw")


def run(state: TrainState, steps: int = 4, until: int | None = None, **options) -> list[Tensor]:
    """The masks of the first layer's dropout, one a micro-batch."""
    masks = []
    hook = state.model.layers[0].dropout.register_forward_hook(lambda m, args, out: masks.append(out != 0))
    for step in train(state, Classify(), Pictures(), Schedule(steps), TrainOptions(4, **options), Runtime()):
        if step.n == until:
            break
    hook.remove()
    return masks


def test_every_micro_batch_of_every_step_draws_numbers_of_its_own() -> None:
    masks = run(TrainState.build(fresh(), ADAMW)) + run(TrainState.build(fresh(), ADAMW), seed=1)
    assert len(masks) == 16 and all(0.7 < float(mask.float().mean()) < 0.9 for mask in masks)
    assert not any(torch.equal(a, b) for i, a in enumerate(masks) for b in masks[:i])
    seeds = {module_seed(*at) for at in [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 1, 1)]}
    assert len(seeds) == 5


def test_what_ran_before_changes_nothing_and_is_left_as_it_was() -> None:
    first, second = (TrainState.build(fresh(), ADAMW) for _ in range(2))
    torch.manual_seed(1)
    masks = run(first)
    torch.manual_seed(2)
    torch.rand(77)
    before = torch.get_rng_state()
    again = run(second)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(masks, again, strict=True))
    assert weights_hash(first.model) == weights_hash(second.model)


def test_resumed_bit_for_bit(tmp_path) -> None:
    unbroken, first, second = (TrainState.build(fresh(), ADAMW) for _ in range(3))
    masks = run(unbroken)
    run(first, until=2)
    load_checkpoint(save_checkpoint(tmp_path, first, {}), second)
    assert all(torch.equal(a, b) for a, b in zip(masks[4:], run(second), strict=True))
    assert weights_hash(second.model) == weights_hash(unbroken.model)


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_a_recomputed_layer_drops_what_it_dropped(optimizer) -> None:
    plain, recomputed = (TrainState.build(fresh(), OptimOptions(optimizer)) for _ in range(2))
    run(plain)
    masks = run(recomputed, activation_checkpointing=True)
    assert weights_hash(plain.model) == weights_hash(recomputed.model)
    assert len(masks) == 16 and all(torch.equal(a, b) for a, b in zip(masks[::2], masks[1::2], strict=True))
