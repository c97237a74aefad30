# SPDX-License-Identifier: Apache-2.0
"""Losses of heads, worked by hand and against torch."""

from __future__ import annotations

from math import log

import pytest
import torch
import torch.nn.functional as F

from foundling.adapt.heads import HeadOptions, add_head
from foundling.errors import ConfigError
from foundling.objectives.classify import Classify, Regress, Tag, class_nats
from foundling.objectives.distil_bert import DistilBERTLoss, cosine_loss_sum
from foundling.objectives.distill import distillation_sum
from foundling.runtime.rng import generator
from tests.contract.cases import case

LOGITS = torch.tensor([[log(3.0), 0.0], [0.0, 0.0]])  # probabilities 3/4, 1/4 and 1/2, 1/2
LABELS = torch.tensor([0, 1])


def test_classes_by_hand() -> None:
    terms = Classify().terms(LOGITS, LABELS)
    assert float(terms["loss"].sum) == pytest.approx(log(4 / 3) + log(2)) and terms["loss"].count == 2
    assert float(terms["accuracy"].sum) == 1 and terms["accuracy"].weight == 0  # of equal scores the first is taken
    smooth = 0.8 * log(4 / 3) + 0.2 * (log(4 / 3) + log(4)) / 2
    assert class_nats(LOGITS, LABELS, 0.2).tolist() == pytest.approx([smooth, log(2)])
    weighted = Classify(class_weights=(1.0, 3.0)).terms(LOGITS, LABELS)
    assert float(weighted["loss"].sum) == pytest.approx(log(4 / 3) + 3 * log(2))
    draw = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    labels, weights = torch.tensor([0, 3, 1, 1, 2]), torch.tensor([0.5, 2.0, 1.0, 1.5])
    assert torch.allclose(
        class_nats(draw, labels, 0.1), F.cross_entropy(draw, labels, label_smoothing=0.1, reduction="none")
    )
    assert torch.allclose(
        class_nats(draw, labels, 0, weights), F.cross_entropy(draw, labels, weights, reduction="none")
    )
    with pytest.raises(ConfigError, match="label_smoothing"):
        Classify(label_smoothing=1.0)
    with pytest.raises(ConfigError, match="class_weights"):
        Classify(class_weights=(1.0, -1.0))
    with pytest.raises(ConfigError, match="2 classes"):
        Classify(class_weights=(1.0,)).terms(LOGITS, LABELS)


def test_values_by_hand() -> None:
    model = case("llama").tiny()
    head = add_head(model, HeadOptions("regress", ("price",), mean=10.0, std=4.0), generator("head"))
    batch = {"tokens": torch.tensor([[5, 6], [7, 0]]), "documents": torch.tensor([[0, 0], [0, -1]]),
             "labels": torch.tensor([12.0, 2.0])}  # fmt: skip
    loss = Regress()(model, batch)["loss"]
    assert float(loss.sum.detach()) == pytest.approx(0.5**2 + 2**2) and loss.count == 2, "scores are 0: the mean, 10"
    states = model(batch["tokens"]).hidden
    with torch.no_grad():  # a projection to 1 of the first text's last state
        head.weight.copy_(states[0, 1] / states[0, 1].square().sum())
    second = float((states[1, 0] @ head.weight[0]).detach())
    assert float(Regress()(model, batch)["loss"].sum.detach()) == pytest.approx(0.5**2 + (second + 2) ** 2, rel=1e-5)


def test_tags_count_where_the_mask_says() -> None:
    model = case("bert").tiny()
    head = add_head(model, HeadOptions("tag", ("O", "B")), generator("head"))
    with torch.no_grad():
        head.bias.copy_(torch.tensor([log(3.0), 0.0]))  # pyright: ignore[reportOptionalMemberAccess]
    batch = {"tokens": torch.full((2, 3), 5), "documents": torch.zeros(2, 3, dtype=torch.int64),
             "targets": torch.tensor([[0, 1, 0], [1, 1, 0]]),
             "loss_mask": torch.tensor([[True, True, False], [False, False, True]])}  # fmt: skip
    terms = Tag()(model, batch)
    assert Tag().normalizers(batch) == {"loss": 3, "accuracy": 3}
    assert float(terms["loss"].sum.detach()) == pytest.approx(2 * log(4 / 3) + log(4))
    assert float(terms["accuracy"].sum) == 2


def test_the_three_losses_of_distilbert() -> None:
    by_hand = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([[3.0, 0.0], [2.0, 2.0]])
    assert float(cosine_loss_sum(*by_hand)) == pytest.approx(0 + 1 - 0.5**0.5)
    of = case("bert")
    teacher, student, batch = of.tiny(seed=2), of.tiny(), of.batch(0)
    objective = DistilBERTLoss(teacher, temperature=2.0, soft=5.0, hard=2.0, cosine=1.0)
    loss = objective(student, batch)
    mask, documents = batch["loss_mask"], batch["documents"]
    ours, theirs = (m.logits(m(batch["tokens"], documents=documents).hidden)[mask] for m in (student, teacher))
    nats = F.cross_entropy(ours, batch["targets"][mask], reduction="sum")
    expected = 5 * distillation_sum(ours, theirs, 2.0) + 2 * nats
    assert float(loss["loss"].sum.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    states = [m.encode(batch["tokens"], documents=documents).states.flatten(0, 1) for m in (student, teacher)]
    cosine = F.cosine_embedding_loss(
        states[0], states[1], torch.ones(len(states[0])), reduction="sum"
    )  # as the reference code
    assert float(loss["cosine"].sum.detach()) == pytest.approx(float(cosine.detach()), rel=1e-5)
    assert objective.normalizers(batch) == {"loss": int(mask.sum()), "cosine": documents.numel()}
    assert loss["cosine"].weight == 1.0 and not any(p.requires_grad for p in teacher.parameters())
    assert float(DistilBERTLoss(student)(student, batch)["cosine"].sum.detach()) == pytest.approx(0, abs=1e-3)


def test_models_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ConfigError, match="masked tokens"):
        DistilBERTLoss(case("llama").tiny())
    with pytest.raises(ConfigError, match="channels"):
        DistilBERTLoss(case("bert").tiny(d_model=32, n_heads=2))(case("bert").tiny(), case("bert").batch(0))
    with pytest.raises(ConfigError, match="add_head"):
        Classify()(case("llama").tiny(), case("llama").batch(0) | {"labels": torch.zeros(8, dtype=torch.int64)})
