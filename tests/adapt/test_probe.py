# SPDX-License-Identifier: Apache-2.0
"""The probe against scikit-learn on the same features, and against training the head."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from foundling.adapt.heads import HeadOptions, add_head
from foundling.adapt.probe import Features, fit_probe, probe_features, solve
from foundling.blocks.heads import scores
from foundling.errors import AdaptError
from foundling.objectives.classify import Classify
from foundling.runtime.device import Runtime
from foundling.runtime.rng import generator
from foundling.train.loop import train
from foundling.train.options import OptimOptions, TrainOptions
from foundling.train.schedule import Schedule
from foundling.train.state import TrainState
from tests.contract.cases import case

sklearn = pytest.importorskip("sklearn")

STRENGTHS = (0.01, 0.1, 1.0)


def headed(name: str, kind: Any, labels: tuple[str, ...], **more: Any) -> Any:
    model = case(name).tiny().requires_grad_(False)
    add_head(model, HeadOptions(kind, labels, **more), generator("head"))
    return model


def batches(n: int, kind: str = "classify") -> list[dict[str, torch.Tensor]]:
    """Texts whose class is which of their tokens stand first."""
    x = torch.randint(3, 60, (n, 8), generator=torch.Generator().manual_seed(0))
    labels = (x[:, 0] > 20).long() + (x[:, 0] > 40)
    columns = {"labels": labels if kind == "classify" else x[:, 0].float()}
    if kind == "tag":
        columns = {"targets": (x > 20).long() + (x > 40), "loss_mask": x % 2 == 0}
    whole = {"tokens": x, "documents": torch.zeros_like(x), **columns}
    return [{name: column[i : i + 16] for name, column in whole.items()} for i in range(0, n, 16)]


@pytest.mark.parametrize("n", [2, 3])
def test_classes_as_scikit_learn_finds_them(n: int) -> None:
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    model = headed("bert", "classify", ("a", "b", "c")[:n])
    features = probe_features(model, batches(120))
    features = Features(features.x, features.y.clamp_max(n - 1))
    probe = solve(features, model.score, [0.1])
    scaler = StandardScaler().fit(features.x.numpy())
    theirs = LogisticRegression(C=0.1, tol=1e-9, max_iter=10000).fit(
        scaler.transform(features.x.numpy()), features.y.numpy()
    )
    expected = theirs.predict_proba(scaler.transform(features.x.numpy()))
    assert probe.bias is not None
    found = (features.x @ probe.weight.T + probe.bias).softmax(-1)
    assert np.abs(found.numpy() - expected).max() < 1e-4


def test_values_as_scikit_learn_finds_them() -> None:
    from sklearn.linear_model import Ridge
    from sklearn.preprocessing import StandardScaler

    model = headed("bert", "regress", ("v",), mean=30.0, std=15.0)
    features = probe_features(model, batches(60, "regress"))
    probe = solve(features, model.score, [0.5])
    scaled = StandardScaler().fit_transform(features.x.numpy())
    expected = Ridge(alpha=2.0).fit(scaled, features.y.numpy()).predict(scaled)
    assert probe.bias is not None
    found = features.x @ probe.weight.T + probe.bias
    assert np.abs(found.numpy() - expected.reshape(-1, 1)).max() < 1e-8


@pytest.mark.parametrize(("name", "kind"), [("llama", "classify"), ("bert", "tag"), ("mamba", "regress")])
def test_the_head_gets_it_and_the_same_examples_give_the_same_bits(name: str, kind: Any) -> None:
    labels = ("v",) if kind == "regress" else ("a", "b", "c")
    first, second = (headed(name, kind, labels) for _ in range(2))
    probe, again = (fit_probe(model, batches(96, kind), strengths=STRENGTHS) for model in (first, second))
    assert torch.equal(probe.weight, again.weight) and torch.equal(first.score.weight, second.score.weight)
    assert probe.strength == min(probe.losses, key=probe.losses.__getitem__) and len(probe.losses) == 3
    if kind != "regress":
        batch = batches(96, kind)[0]
        found = scores(first, batch).argmax(-1)
        right = found == batch["labels"] if kind == "classify" else (found == batch["targets"])[batch["loss_mask"]]
        assert right.float().mean() > 0.6


def test_it_is_what_training_the_head_converges_to() -> None:
    """Without regularisation to speak of, both minimise the same loss: gradient steps never get below the solution."""
    data = batches(64)
    whole = {name: torch.cat([batch[name] for batch in data]) for name in data[0]} | {"sample_ids": torch.arange(64)}
    probed, trained = (headed("bert", "classify", ("a", "b", "c"), pool="mean") for _ in range(2))
    fit_probe(probed, data, strengths=[1.0])
    objective = Classify()

    class Same:
        def __getitem__(self, n: int) -> dict[str, torch.Tensor]:
            return whole

    state = TrainState.build(trained, OptimOptions(optimizer="adamw", learning_rate=0.03, weight_decay=0.0))
    losses = [s.loss for s in train(state, objective, Same(), Schedule(30), TrainOptions(64), Runtime())]
    best = float(objective(probed, whole)["loss"].sum.detach()) / 64
    assert best < 0.8 * losses[0] and losses[-1] < losses[0]
    unpenalised = headed("bert", "classify", ("a", "b", "c"), pool="mean")
    fit_probe(unpenalised, data, strengths=[1e4])
    assert float(objective(unpenalised, whole)["loss"].sum.detach()) / 64 <= losses[-1] + 1e-6


def test_what_cannot_be_fitted() -> None:
    model = headed("llama", "classify", ("ham", "spam"))
    data = batches(16)
    data[0]["labels"] = torch.zeros_like(data[0]["labels"])
    with pytest.raises(AdaptError, match="label 'ham'"):
        fit_probe(model, data)
    with pytest.raises(AdaptError, match="no example"):
        fit_probe(model, [])
    with pytest.raises(AdaptError, match="add_head"):
        fit_probe(case("llama").tiny(), data)
    few = Features(torch.randn(4, 64, dtype=torch.float64), torch.tensor([0, 1, 0, 1]))
    assert solve(few, model.score).strength == 1.0, "too few to choose"


def test_rounding_of_a_constant_feature_is_not_learnt_from() -> None:
    """As in all-MiniLM-L6-v2, one of whose states is the same for every text."""
    chance = torch.Generator().manual_seed(0)
    x = torch.randn(60, 8, generator=chance).double()
    y = (x[:, 0] > 0).long()
    x[:, 5] = 3.0 + 1e-7 * (y - 0.5)  # what would tell all
    model = headed("bert", "classify", ("a", "b"))
    probe = solve(Features(x, y), model.score)
    assert probe.weight.abs().max() < 100 and probe.weight[:, 5].abs().max() < 1e-3
