# SPDX-License-Identifier: Apache-2.0
"""Rates by depth and gradual unfreezing (Howard & Ruder 2018)."""

import pytest
import torch

from foundling.adapt.freeze import depth_of, freeze
from foundling.errors import ConfigError
from foundling.runtime.device import Runtime
from foundling.train.loop import train
from foundling.train.optim import Optimizer, layer_factors
from foundling.train.options import OptimOptions, TrainOptions
from foundling.train.schedule import Schedule
from foundling.train.state import TrainState
from foundling.train.unfreeze import frozen_at
from foundling.train.update import update
from foundling.weights.directory import weights_hash
from tests.contract.cases import Data, case


@pytest.mark.parametrize("kind", ["muon", "adamw"])
def test_the_rate_of_a_layer_is_that_above_it_times_the_decay(kind) -> None:
    model = case("llama").tiny()
    plain, decayed = (Optimizer(model, OptimOptions(kind, layer_decay=decay)) for decay in (1.0, 0.5))
    assert len(plain.parts) == len(decayed.parts)

    def rates(optimizer: Optimizer) -> dict[str, float]:
        names = {id(p): name for name, p in optimizer.params.items()}
        groups = [group for part in optimizer.parts for group in part.param_groups]
        return {names[id(p)]: group["lr"] for group in groups for p in group["params"]}

    depths, at_first, after = depth_of(model), rates(plain), rates(decayed)
    assert at_first.keys() == after.keys() == depths.keys()
    for name, rate in after.items():
        assert rate == pytest.approx(at_first[name] * {3: 1.0, 2: 0.5, 1: 0.25, 0: 0.125}[depths[name]], rel=1e-12)
    assert layer_factors(model, 1.0) == {}, "the default computes nothing"


def test_a_step_of_muon_by_depth_is_that_of_one_rate_in_each_layer() -> None:
    """Matrices of one shape are stepped together; by depth they are not, and each moves by its own rate."""
    moved = {}
    for decay in (1.0, 0.5):
        model = case("llama").tiny()
        before = {n: p.detach().clone() for n, p in model.named_parameters()}
        optimizer = Optimizer(model, OptimOptions(weight_decay=0.0, layer_decay=decay))
        for p in model.parameters():
            p.grad = torch.ones_like(p).cumsum(-1)
        optimizer.step(1.0, torch.tensor(0.0))
        moved[decay] = {n: p.detach() - before[n] for n, p in model.named_parameters()}
    for depth, factor in ((0, 0.5), (1, 0.25)):
        name = f"layers.{1 - depth}.mixer.q.weight"
        torch.testing.assert_close(moved[0.5][name], factor * moved[1.0][name], rtol=1e-3, atol=1e-6)


def test_what_a_step_trains_depends_on_its_number_alone() -> None:
    model = case("llama").tiny()
    depths, params = depth_of(model), dict(model.named_parameters())
    names = {id(p): n for n, p in params.items()}
    for step, least in ((0, 3), (2, 3), (3, 2), (5, 2), (6, 1), (9, 0), (100, 0)):
        frozen = {names[id(p)] for p in frozen_at(model, params, 3, step)}
        assert frozen == {n for n, depth in depths.items() if depth < least}, step
    freeze(model, "norm,head,layers.1")  # nothing is trainable above the first layer: it is trained at once
    params = {n: p for n, p in params.items() if p.requires_grad}
    assert {names[id(p)] for p in frozen_at(model, params, 3, 0)} == {"embedding.weight"}


def test_frozen_layers_get_no_gradient_and_no_state() -> None:
    of = case("llama")
    state = of.state("adamw")
    computed = set[str]()
    for name, p in state.model.named_parameters():
        p.register_post_accumulate_grad_hook(lambda p, name=name: computed.add(name))
    options, runtime = TrainOptions(8, unfreeze_every=2), Runtime()
    for step in range(8):
        computed.clear()
        update(state, of.objective(), of.batch(0), options, runtime)
        depths = depth_of(state.model)
        expected = {name for name, _ in state.model.named_parameters() if depths[name] >= 3 - step // 2}
        assert computed == expected, "all from the top down to that depth, and none below"
        assert {name.rpartition("/")[0] for name in state.optimizer.state_tensors()} == expected
        assert all(p.requires_grad for p in state.model.parameters()), "between the steps"


def test_the_default_changes_no_bit_and_a_long_unfreezing_ends_in_training_all() -> None:
    of, hashes = case("llama"), []
    for options in (OptimOptions(), OptimOptions(layer_decay=1.0)):
        state = TrainState.build(of.fresh(), options)
        list(train(state, of.objective(), Data(of), Schedule(3), TrainOptions(4), Runtime()))
        hashes.append(weights_hash(state.model))
    assert hashes[0] == hashes[1]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: OptimOptions(layer_decay=0.0), "above 0, at most 1"),
        (lambda: OptimOptions(layer_decay=2.6), "above 0, at most 1"),
        (lambda: TrainOptions(1, unfreeze_every=0), "at least 1 step"),
    ],
)
def test_values_out_of_range_are_refused(make, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


def test_several_processes_are_refused_in_one_line() -> None:
    of = case("llama")
    state = of.state()
    known = TrainOptions(8, unfreeze_every=2)
    with pytest.raises(ConfigError, match="needs one process; this run has 2"):
        update(state, of.objective(), of.batch(0), known, Runtime(world_size=2))
