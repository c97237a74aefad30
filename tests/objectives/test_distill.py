# SPDX-License-Identifier: Apache-2.0
"""Distillation, worked by hand and against the whole."""

import math

import pytest
import torch
import torch.nn.functional as F

from foundling.errors import ConfigError
from foundling.objectives import causal, chunked
from foundling.objectives.distil_bert import DistilBERTLoss
from foundling.objectives.distill import Distill, distillation_sum
from tests.contract.cases import build, case, family


def test_divergence_by_hand() -> None:
    teacher, student = torch.tensor([[math.log(3.0), 0.0]]), torch.tensor([[0.0, 0.0]])
    expected = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    assert float(distillation_sum(student, teacher, 1.0)) == pytest.approx(expected)
    softer = torch.tensor([[2 * math.log(3.0), 0.0]])
    assert float(distillation_sum(student, softer, 2.0)) == pytest.approx(4 * expected)


@pytest.mark.parametrize("name", ["llama", "t5"])
def test_chunks_give_the_whole_loss_and_gradient(name: str, monkeypatch) -> None:
    monkeypatch.setattr(chunked, "CHUNK_LOGITS", 1)  # 64 places at a time
    of = case(name)
    teacher, student, batch = of.tiny(seed=2), of.tiny(), of.batch(0)
    loss = Distill(teacher, temperature=2.0, alpha=0.7)(student, batch)["loss"]
    loss.sum.backward()
    got = {n: p.grad.clone() for n, p in student.named_parameters()}
    student.zero_grad()
    logits = student.logits(causal.read(student, batch).hidden)
    theirs = teacher.logits(causal.read(teacher, batch).hidden).detach()
    soft = F.kl_div(
        torch.log_softmax(logits / 2, -1), torch.log_softmax(theirs / 2, -1), reduction="none", log_target=True
    )
    nats = F.cross_entropy(logits.flatten(0, 1), batch["targets"].flatten(), reduction="none").view_as(batch["targets"])
    whole = ((0.7 * 4 * soft.sum(-1) + 0.3 * nats) * batch["loss_mask"]).sum()
    whole.backward()
    assert float(loss.sum.detach()) == pytest.approx(float(whole.detach()), rel=1e-5)
    for n, p in student.named_parameters():
        assert (got[n] - p.grad).norm() <= 1e-4 * p.grad.norm() + 1e-6, n


def test_a_teacher_of_another_vocabulary_is_refused() -> None:
    other = build("llama", **family("llama").module.sized(128, 64, 32, 1))
    with pytest.raises(ConfigError, match="same tokenizer"):
        Distill(other)(case("llama").tiny(), case("llama").batch(0))
    for wrong in (dict(temperature=0.0), dict(alpha=1.5)):
        with pytest.raises(ConfigError):
            Distill(other, **wrong)


def test_what_the_routers_say_is_passed_on_of_the_student_alone() -> None:
    of = case("mixtral")
    teacher, student, batch = of.tiny(seed=2), of.tiny(), of.batch(0)
    loss = Distill(teacher)(student, batch)
    expected = causal.Causal()(student, batch)["router_balance"]
    assert loss.keys() == {"loss", "router_balance"}
    assert loss["router_balance"].weight == expected.weight > 0
    assert float(loss["router_balance"].sum.detach()) == float(expected.sum.detach())


@pytest.mark.parametrize("name", ["llama", "t5"])
def test_logits_are_never_whole_of_either(name: str, monkeypatch) -> None:
    monkeypatch.setattr(chunked, "CHUNK_LOGITS", 1)
    of = case(name)
    teacher, student, batch, rows = of.tiny(seed=2), of.tiny(), of.batch(0), []
    for model in (teacher, student):
        model.head.register_forward_hook(lambda m, x, y: rows.append(y.shape[:-1].numel()))
    Distill(teacher)(student, batch)["loss"].sum.backward()
    places = int(batch["loss_mask"].sum())
    assert sum(rows) == 2 * (places + -places % 64) and max(rows) <= 64 < places


@pytest.mark.parametrize("name", ["llama", "bert"])
def test_rows_are_filled_to_a_multiple_of_64_and_count_nothing(name: str, monkeypatch) -> None:
    """At any number of tokens: a compiled product and memory are used again at the next step."""
    of, rows = case(name), []
    teacher, student, batch = of.tiny(seed=2), of.tiny(), of.batch(0)
    objective = Distill(teacher, temperature=2.0) if name == "llama" else DistilBERTLoss(teacher)
    monkeypatch.setattr(chunked, "CHUNK_LOGITS", 128 * student.head.out_features)
    for model in (teacher, student):
        with torch.no_grad():
            model.head.bias = torch.nn.Parameter(torch.randn(model.head.out_features))  # the logits of a row of zeros
        model.head.register_forward_hook(lambda m, x, y: rows.append(y.shape[:-1].numel()))

    def value_and_gradients() -> tuple[float, list[torch.Tensor]]:
        rows.clear()
        student.zero_grad()
        loss = objective(student, batch)["loss"]
        loss.sum.backward()
        return float(loss.sum.detach()), [p.grad.clone() for p in student.parameters()]

    for places in (132, 120, 66):
        batch["loss_mask"] = (torch.arange(batch["tokens"].numel()) < places).view_as(batch["tokens"])
        monkeypatch.setattr(chunked, "ROWS", 64)
        value, gradients = value_and_gradients()
        assert all(n % 64 == 0 for n in rows) and sum(rows) == 2 * (places + -places % 64)
        monkeypatch.setattr(chunked, "ROWS", 1)
        unfilled, expected = value_and_gradients()
        assert sum(rows) == 2 * places and value == pytest.approx(unfilled, rel=1e-6)
        torch.testing.assert_close(gradients, expected, rtol=1e-4, atol=1e-5)
