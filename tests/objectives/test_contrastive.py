# SPDX-License-Identifier: Apache-2.0
"""InfoNCE by hand, and gradient caching in the real loop: micro-batches give the gradients of the whole batch."""

import math

import pytest
import torch

from foundling.contracts.objective import ContrastiveObjective, total
from foundling.objectives.contrastive import MAX_LOG_SCALE, Contrastive, info_nce
from foundling.runtime.device import Runtime
from foundling.train.loop import train
from foundling.train.optim import Optimizer
from foundling.train.options import OptimOptions, TrainOptions
from foundling.train.schedule import Schedule
from foundling.train.state import MODEL, TrainState
from tests.contract.cases import case


def test_by_hand() -> None:
    logits = torch.tensor([[math.log(3.0), 0.0], [0.0, 0.0]])
    rows = [-math.log(3 / 4), -math.log(1 / 2)]
    columns = [-math.log(3 / 4), -math.log(1 / 2)]
    expected = [(r + c) / 2 for r, c in zip(rows, columns, strict=True)]
    assert info_nce(logits).tolist() == pytest.approx(expected)


def test_accuracy_is_reported_and_not_trained() -> None:
    anchors, positives = torch.eye(3), torch.tensor([[1.0, 0, 0], [0, 0, 0.5], [0, 0, 1]])  # the second is not found
    loss = Contrastive().loss({"anchor": anchors, "positive": positives})
    assert (float(loss["accuracy"].sum), loss["accuracy"].count, loss["accuracy"].weight) == (2.0, 3, 0)
    assert loss["loss"].weight == 1 and loss["loss"].count == 3
    assert float(total(loss, {"loss": 3, "accuracy": 3})) == pytest.approx(float(loss["loss"].sum) / 3)


def test_the_scale_is_bounded_and_learnt_through_the_images() -> None:
    of = case("clip")
    model, batch, objective = of.tiny(), of.batch(0), Contrastive()
    assert isinstance(objective, ContrastiveObjective)
    objective(model, batch)["loss"].sum.backward()
    assert model.scale.grad.abs() > 0
    with torch.no_grad():
        model.scale.fill_(MAX_LOG_SCALE + 5)
        images = objective.represent(model, batch)["anchor"]
    assert images.norm(dim=-1).tolist() == pytest.approx([100.0] * len(images), rel=1e-5)


class Once:
    def __init__(self, batch) -> None:
        self.batch = batch

    def __getitem__(self, n: int):
        return self.batch


def test_micro_batches_of_64_give_the_gradients_of_1024() -> None:
    of = case("clip")
    batch, gradients, losses = of.batch(0, 1024), [], []
    for micro in (1024, 64):
        model = of.tiny()
        optimizer = Optimizer(model, OptimOptions(optimizer="adamw"))
        kept: dict[str, torch.Tensor] = {}

        def keep(scale, found_inf, optimizer=optimizer, kept=kept) -> None:
            kept |= {name: p.grad.clone() for name, p in optimizer.params.items()}

        optimizer.step = keep  # type: ignore[method-assign]  what arrives there, and nothing else
        state = TrainState({MODEL: model}, {MODEL: optimizer})
        options = TrainOptions(micro, clip=1e9)
        losses += [s.loss for s in train(state, Contrastive(), Once(batch), Schedule(1), options, Runtime())]
        gradients.append(kept)
    whole, parts = gradients
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    # a key's bias moves all scores of a query alike: its gradient is zero, and what is there is rounding
    names = [n for n in whole if not n.endswith("mixer.k.bias")]
    worst = max(float((whole[n] - parts[n]).norm() / whole[n].norm()) for n in names)
    print(f"largest relative difference of a gradient: {worst:.1e}")
    assert worst < 2e-5
