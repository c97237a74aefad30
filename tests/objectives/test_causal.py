# SPDX-License-Identifier: Apache-2.0
"""Chunked cross-entropy against arithmetic, and against the whole."""

import math

import pytest
import torch
import torch.nn.functional as F

from foundling.contracts.objective import Term, total
from foundling.objectives import chunked
from foundling.objectives.causal import Causal, read
from foundling.objectives.chunked import chunked_cross_entropy, cross_entropy_sum
from tests.contract.cases import case


class Head(torch.nn.Module):
    """What the loss asks of a model."""

    def __init__(self, head: torch.nn.Linear) -> None:
        super().__init__()
        self.head = self.logits = head


def test_by_hand() -> None:
    logits = torch.tensor([[math.log(1.0), math.log(3.0)], [0.0, 0.0]])
    value = cross_entropy_sum(logits, torch.tensor([1, 0]))
    assert float(value) == pytest.approx(-math.log(3 / 4) - math.log(1 / 2))


@pytest.mark.parametrize("chunk", [64, 640, 1 << 20])
def test_chunks_give_the_whole_loss_and_gradient(chunk: int, monkeypatch) -> None:
    monkeypatch.setattr(chunked, "CHUNK_LOGITS", chunk)
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


def test_a_row_that_is_one_document_needs_no_mask() -> None:
    """The model is told of documents only where there is something to keep apart: SDPA is faster without a mask."""
    seen = []

    def model(tokens, documents=None) -> None:
        seen.append(documents)

    tokens = torch.zeros(2, 4, dtype=torch.int64)
    rows = {"one": [0, 0, 0, 0], "two": [0, 0, 1, 1], "padded": [0, 0, 0, -1], "nothing": [-1, -1, -1, -1]}
    for row in rows.values():
        read(model, {"tokens": tokens, "documents": torch.tensor([[3] * 4, row])})
    assert [documents is None for documents in seen] == [True, False, False, False]


def test_tokens_read_the_source() -> None:
    of = case("t5")
    model, batch = of.tiny(), of.batch(0)
    memory = model.encode(batch["source"], documents=batch["source_documents"])
    expected = model(batch["tokens"], documents=batch["documents"], memory=memory).hidden
    assert torch.equal(read(model, batch).hidden, expected)
    other = batch | {"source": batch["source"].flip(1)}
    assert not torch.equal(read(model, other).hidden, expected)


def test_of_a_seq2seq_the_loss_is_that_of_the_answer_given_the_source() -> None:
    of = case("t5")
    model, batch = of.tiny(), of.batch(0)
    loss = Causal()(model, batch)["loss"]
    loss.sum.backward()
    logprobs = torch.log_softmax(model.logits(read(model, batch).hidden).detach(), -1)
    each = logprobs.gather(-1, batch["targets"][..., None])[..., 0]
    assert float(loss.sum.detach()) == pytest.approx(-float((each * batch["loss_mask"]).sum()), rel=1e-5)
    assert int(loss.count) == int(batch["loss_mask"].sum()) == Causal().normalizers(batch)["loss"]
    assert all(p.grad is not None for p in model.encoder.parameters()), "the encoder learns too"


def test_what_the_routers_say_is_passed_on() -> None:
    of = case("mixtral")
    model, batch = of.tiny(), of.batch(0)
    term = Causal()(model, batch)["router_balance"]
    found = model(batch["tokens"], documents=batch["documents"]).aux["router_balance"]
    assert float(term.sum.detach()) == float(found.sum.detach()) > 0 and term.weight == found.weight > 0


def test_logits_that_are_far_off_give_the_exact_loss_and_gradient() -> None:
    """−log p of 200 nats, where p itself is 0 in float32."""
    logits = torch.tensor([[0.0, -200.0, 100.0], [0.0, 300.0, 300.0]], requires_grad=True)
    targets = torch.tensor([1, 0])
    value = cross_entropy_sum(logits * 1, targets)
    value.backward()
    assert float(value.detach()) == pytest.approx(300 + 300 + math.log(2))
    torch.testing.assert_close(logits.grad, torch.tensor([[0.0, -1.0, 1.0], [-1.0, 0.5, 0.5]]))


def test_logits_of_the_caller_are_left_alone() -> None:
    logits = torch.randn(3, 5, requires_grad=True)
    before = logits.detach().clone()
    cross_entropy_sum(logits, torch.tensor([0, 1, 2])).backward()
    assert torch.equal(logits.detach(), before)


@pytest.mark.parametrize("head", ["softcap", "twice", "wrapped"])
def test_any_head_gets_the_gradient_of_the_whole(head: str, monkeypatch) -> None:
    """What the fast path must not assume: logits bent after the product, two products, or no Linear."""
    monkeypatch.setattr(chunked, "CHUNK_LOGITS", 64)

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = torch.nn.Linear(8, 11)
            if head == "wrapped":
                inner, self.head = self.head, torch.nn.Sequential(torch.nn.Linear(8, 8), self.head)
                self.head.out_features = inner.out_features

        def logits(self, hidden: torch.Tensor) -> torch.Tensor:
            if head == "twice":
                return self.head(hidden) + 0.3 * self.head(hidden.flip(-1))
            return 5 * torch.tanh(self.head(hidden) / 5) if head == "softcap" else self.head(hidden)

    model, mask = Model(), torch.rand(2, 100) > 0.2
    hidden, targets = torch.randn(2, 100, 8, requires_grad=True), torch.randint(0, 11, (2, 100))
    value = chunked_cross_entropy(model, hidden, targets, mask)
    value.backward()
    got = [hidden.grad, *(p.grad for p in model.parameters())]
    hidden.grad = None
    model.zero_grad()
    whole = F.cross_entropy(model.logits(hidden)[mask], targets[mask], reduction="sum")
    whole.backward()
    torch.testing.assert_close(value, whole)
    for a, b in zip(got, [hidden.grad, *(p.grad for p in model.parameters())], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_nothing_counted_is_no_loss_and_no_gradient() -> None:
    head, hidden = torch.nn.Linear(4, 6), torch.randn(1, 3, 4, requires_grad=True)
    loss = chunked_cross_entropy(Head(head), hidden, torch.zeros(1, 3).long(), torch.zeros(1, 3).bool())
    loss.backward()
    assert float(loss) == 0 and head.weight.grad.abs().sum() == 0 and hidden.grad.abs().sum() == 0
