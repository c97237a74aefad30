# SPDX-License-Identifier: Apache-2.0
"""Layers computed twice instead of kept: memory alone changes."""

import pytest
import torch

from foundling.contracts.model import layers_of
from foundling.models import FAMILIES
from foundling.runtime.device import Runtime
from foundling.train.loop import train
from foundling.train.options import TrainOptions
from foundling.train.schedule import Schedule
from tests.contract.cases import Data, case
from tests.contract.matrix import UNLIKE, families


@pytest.mark.parametrize("name", families(FAMILIES, (*UNLIKE, "bert", "clip")))
def test_layers_computed_twice_give_the_same_bits(name: str) -> None:
    ends, passes = [], []
    for twice in (False, True):
        of, calls = case(name), []
        state = of.state()
        layers_of(state.model)[0].register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        options = TrainOptions(2, activation_checkpointing=twice)
        losses = [step.loss for step in train(state, of.objective(), Data(of), Schedule(3), options, Runtime())]
        ends.append((losses, [p.detach().clone() for p in state.model.parameters()]))
        passes.append(len(calls))
    assert ends[0][0] == ends[1][0]
    assert all(torch.equal(a, b) for a, b in zip(ends[0][1], ends[1][1], strict=True))
    assert passes[0] == passes[1], "what watches a layer sees one pass"


def test_less_is_kept() -> None:
    def kept(twice: bool) -> int:
        of, sizes = case("llama"), {}
        state, objective = of.state(), of.objective()
        next(train(state, objective, Data(of), Schedule(1), TrainOptions(2, activation_checkpointing=twice), Runtime()))
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t: sizes.setdefault(t.untyped_storage().data_ptr(), t), lambda t: t
        ):
            loss = objective(state.model, of.batch(0))
        del loss
        return sum(t.untyped_storage().nbytes() for t in sizes.values())

    assert kept(True) < 0.7 * kept(False)
