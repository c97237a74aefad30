# SPDX-License-Identifier: Apache-2.0
"""Chunked cross-entropy against arithmetic, and against the whole."""

import math

import pytest
import torch
import torch.nn.functional as F

from foundling.contracts import Term, total
from foundling.objectives import causal
from foundling.objectives.causal import chunked_cross_entropy, cross_entropy_sum


class Head(torch.nn.Module):
    """What the loss asks of a model."""

    def __init__(self, head: torch.nn.Linear) -> None:
        super().__init__()
        self.head = self.logits = head


def test_by_hand() -> None:
    logits = torch.tensor([[math.log(1.0), math.log(3.0)], [0.0, 0.0], [5.0, 1.0]])
    value = cross_entropy_sum(logits, torch.tensor([1, 0, 0]), torch.tensor([True, True, False]))
    assert float(value) == pytest.approx(-math.log(3 / 4) - math.log(1 / 2))


@pytest.mark.parametrize("chunk", [64, 640, 1 << 20])
def test_chunks_give_the_whole_loss_and_gradient(chunk: int, monkeypatch) -> None:
    monkeypatch.setattr(causal, "CHUNK_LOGITS", chunk)
    head = torch.nn.Linear(16, 10, bias=True).double()
    hidden = torch.randn(5, 41, 16, dtype=torch.float64, requires_grad=True)
    targets, mask = torch.randint(0, 10, (5, 41)), torch.rand(5, 41) > 0.4
    value = chunked_cross_entropy(Head(head), hidden, targets, mask)
    (value * 0.7).backward()
    got = [hidden.grad.clone(), head.weight.grad.clone(), head.bias.grad.clone()]
    hidden.grad = None
    head.zero_grad()
    nats = F.cross_entropy(head(hidden).flatten(0, 1), targets.flatten(), reduction="none")
    whole = (nats * mask.flatten()).sum()
    (whole * 0.7).backward()
    torch.testing.assert_close(value.double(), whole, rtol=1e-5, atol=1e-4)
    for a, b in zip(got, [hidden.grad, head.weight.grad, head.bias.grad], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        again = chunked_cross_entropy(Head(head), hidden, targets, mask)
    torch.testing.assert_close(again, value, rtol=1e-5, atol=1e-4)


def test_a_frozen_head_still_passes_the_gradient_on() -> None:
    head = torch.nn.Linear(4, 6).requires_grad_(False)
    hidden = torch.randn(1, 3, 4, requires_grad=True)
    loss = chunked_cross_entropy(Head(head), hidden, torch.zeros(1, 3).long(), torch.ones(1, 3).bool())
    loss.backward()
    assert hidden.grad.abs().sum() > 0


def test_total_divides_by_the_global_count() -> None:
    loss = {"loss": Term(torch.tensor(6.0), 3, 1.0), "balance": Term(torch.tensor(8.0), 4, 0.5)}
    assert float(total(loss, {"loss": 12})) == 6 / 12 + 0.5 * 8 / 4
