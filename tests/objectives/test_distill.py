# SPDX-License-Identifier: Apache-2.0
"""Distillation and preferences, worked by hand and against the whole."""

import math

import pytest
import torch
import torch.nn.functional as F

from foundling.errors import ConfigError
from foundling.objectives import causal
from foundling.objectives.distill import Distill, distillation_sum
from foundling.objectives.preference import DPO, answer_logprobs, dpo_loss
from tests.contract.cases import build, case, family


def test_divergence_by_hand() -> None:
    teacher, student = torch.tensor([[math.log(3.0), 0.0]]), torch.tensor([[0.0, 0.0]])
    expected = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    mask = torch.tensor([True])
    assert float(distillation_sum(student, teacher, mask, 1.0)) == pytest.approx(expected)
    softer = torch.tensor([[2 * math.log(3.0), 0.0]])
    assert float(distillation_sum(student, softer, mask, 2.0)) == pytest.approx(4 * expected)
    assert float(distillation_sum(student, teacher, ~mask, 1.0)) == 0


@pytest.mark.parametrize("name", ["llama", "t5"])
def test_chunks_give_the_whole_loss_and_gradient(name: str, monkeypatch) -> None:
    monkeypatch.setattr(causal, "CHUNK_LOGITS", 1)  # 64 places at a time
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
    assert float(loss.sum) == pytest.approx(float(whole), rel=1e-5)
    for n, p in student.named_parameters():
        assert (got[n] - p.grad).norm() <= 1e-4 * p.grad.norm() + 1e-6, n


def test_a_teacher_of_another_vocabulary_is_refused() -> None:
    other = build("llama", **family("llama").module.sized(128, 64, 32, 1))
    with pytest.raises(ConfigError, match="same tokenizer"):
        Distill(other)(case("llama").tiny(), case("llama").batch(0))
    for wrong in (dict(temperature=0.0), dict(alpha=1.5)):
        with pytest.raises(ConfigError):
            Distill(other, **wrong)


def test_preference_loss_by_hand() -> None:
    found = dpo_loss(torch.tensor([2.0, 0.0]), torch.tensor([-1.0, 0.0]), 0.5)
    assert found.tolist() == pytest.approx([math.log(1 + math.exp(-1.5)), math.log(2)])
    with pytest.raises(ConfigError):
        DPO(beta=0.0)


def test_answers_are_scored_by_their_counted_places_alone(monkeypatch) -> None:
    monkeypatch.setattr(causal, "CHUNK_LOGITS", 1)
    of = case("llama")
    model, one = of.tiny(), of.batch(0)
    batch = {f"chosen_{k}": v for k, v in one.items()}
    found, _ = answer_logprobs(model, batch, "chosen")
    logits = model.logits(model(one["tokens"], documents=one["documents"]).hidden)
    each = torch.log_softmax(logits, -1).gather(-1, one["targets"][..., None])[..., 0]
    torch.testing.assert_close(found, (each * one["loss_mask"]).sum(1), rtol=1e-5, atol=1e-5)
    found.sum().backward()
    got = model.head.weight.grad.clone()
    model.zero_grad()
    (each * one["loss_mask"]).sum().backward()
    torch.testing.assert_close(got, model.head.weight.grad, rtol=1e-4, atol=1e-5)
