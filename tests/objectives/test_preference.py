# SPDX-License-Identifier: Apache-2.0
"""Comparisons: the losses by hand, their gradients against the whole, and what accumulation must not change."""

import math

import pytest
import torch

from foundling.adapt.heads import HeadOptions, add_head
from foundling.contracts.data import Batch
from foundling.errors import ConfigError
from foundling.objectives import causal, chunked
from foundling.objectives.preference import (
    DPO,
    Referenced,
    Reward,
    as_rows,
    bradley_terry,
    completion_logprobs,
    ipo,
    pairs,
)
from foundling.runtime.device import Runtime
from foundling.runtime.rng import generator
from foundling.train.loop import train
from foundling.train.options import OptimOptions, TrainOptions
from foundling.train.schedule import Schedule
from foundling.train.state import TrainState
from tests.contract.cases import Counted, case, preferences
from tests.contract.matrix import families


class Same:
    def __init__(self, batch: Batch) -> None:
        self.batch = batch

    def __getitem__(self, n: int) -> Batch:
        return self.batch


def whole_logprobs(model, batch: Batch) -> torch.Tensor:
    """(B, K), with all logits at once"""
    rows = as_rows(batch)
    logprobs = torch.log_softmax(model.logits(causal.read(model, rows).hidden), -1)
    each = logprobs.gather(-1, rows["targets"][..., None])[..., 0]
    return (each * rows["loss_mask"]).sum(1).view(batch["tokens"].shape[:2])


def test_by_hand() -> None:
    difference = torch.tensor([3.0, 0.0])
    assert bradley_terry(difference, 0.5).tolist() == pytest.approx([math.log(1 + math.exp(-1.5)), math.log(2)])
    assert ipo(difference, 0.25).tolist() == pytest.approx([(3 - 2) ** 2, 4.0])
    for beta in (0.0, -1.0, math.nan):
        with pytest.raises(ConfigError, match="beta"):
            DPO(beta=beta)


def test_all_pairs_of_a_prompt_by_hand() -> None:
    """Three completions, then two and one that is not real (Ouyang et al. 2022, equation 1)."""
    difference, weights = pairs(torch.tensor([[3.0, 1.0, 0.5], [2.0, 5.0, 9.0]]), torch.tensor([3, 2]))
    assert difference.tolist() == [[2.0, 2.5, 0.5], [-3.0, -7.0, -4.0]]
    torch.testing.assert_close(weights, torch.tensor([[1 / 3, 1 / 3, 1 / 3], [1.0, 0.0, 0.0]]))


@pytest.mark.parametrize("loss", ["dpo", "ipo"])
@pytest.mark.parametrize("name", ["llama", "t5", "mamba2"])
def test_chunks_give_the_whole_loss_gradient_and_metrics(name: str, loss, monkeypatch) -> None:
    monkeypatch.setattr(chunked, "CHUNK_LOGITS", 1)  # 64 places at a time
    of = case(name)
    model, batch = of.tiny(), Referenced(Same(preferences(of)), of.tiny(seed=4))[0]
    terms = DPO(beta=0.02, loss=loss)(model, batch)
    terms["loss"].sum.backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    ratio = whole_logprobs(model, batch) - whole_logprobs(of.tiny(seed=4), batch).detach()
    margin = ratio[:, 0] - ratio[:, 1]
    whole = (torch.log1p(torch.exp(-0.02 * margin)) if loss == "dpo" else (margin - 25).square()).sum()
    whole.backward()
    assert float(terms["loss"].sum.detach()) == pytest.approx(float(whole.detach()), rel=1e-5)
    assert float(terms["accuracy"].sum) == float((margin > 0).sum()) and terms["accuracy"].weight == 0
    assert float(terms["margin"].sum) == pytest.approx(0.02 * float(margin.detach().sum()), rel=1e-4)
    assert terms["margin"].weight == 0 and DPO().normalizers(batch) == {"loss": 8, "accuracy": 8, "margin": 8}
    for n, p in model.named_parameters():
        assert (gradients[n] - p.grad).norm() <= 1e-4 * p.grad.norm() + 1e-6, n


@pytest.mark.parametrize("trained", [False, True])
def test_logits_are_never_whole_nor_kept(trained: bool, monkeypatch) -> None:
    monkeypatch.setattr(chunked, "CHUNK_LOGITS", 1)
    of = case("llama")
    model, batch, rows = of.tiny(vocab_size=96, tie_embeddings=False), preferences(of), []
    model.head.requires_grad_(trained)
    model.head.register_forward_hook(lambda m, x, y: rows.append(y.shape[:-1].numel()))
    weight, saved = model.head.weight.untyped_storage().data_ptr(), list[torch.Size]()

    def save(tensor: torch.Tensor) -> torch.Tensor:
        saved.append(tensor.shape if tensor.untyped_storage().data_ptr() != weight else torch.Size([]))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(save, lambda t: t):
        logprobs = completion_logprobs(model, batch)[0]
    counted = -(-int(batch["loss_mask"].sum()) // 64) * 64
    assert max(rows) == 64 and sum(rows) == counted < batch["tokens"].numel(), "of the loss mask alone"
    assert saved and model.head.out_features not in {n for shape in saved for n in shape[1:]}
    logprobs.sum().backward()
    assert sum(rows) == (2 if trained else 1) * counted, "again only where the head is trained"


def test_places_that_are_not_counted_need_no_target() -> None:
    of = case("llama")
    model, batch = of.tiny(), preferences(of)
    expected, _ = completion_logprobs(model, batch)
    targets = torch.where(batch["loss_mask"], batch["targets"], -1)
    logprobs, _ = completion_logprobs(model, batch | {"targets": targets})
    assert torch.equal(logprobs, expected)


@pytest.mark.parametrize("name", families(["llama", "t5", "mamba2"], ("llama", "t5")))
def test_accumulation_changes_nothing(name: str) -> None:
    of = case(name)
    batches = Referenced(Same(preferences(of)), of.tiny())

    def losses(micro: int) -> list[float]:
        model = of.tiny()
        state = TrainState.build(model, OptimOptions("adamw", learning_rate=0.001))
        steps = train(state, Counted(DPO(beta=0.05)), batches, Schedule(4), TrainOptions(micro), Runtime())
        return [step.loss for step in steps]

    whole = losses(8)
    assert whole[0] == pytest.approx(math.log(2), abs=1e-5) and whole[-1] < 0.9 * whole[0]
    assert losses(3) == pytest.approx(whole, rel=1e-5)


def test_the_reference_is_frozen_and_its_column_is_data() -> None:
    of = case("t5")
    reference, batch = of.tiny(seed=4).train(), preferences(of)
    column = Referenced(Same(batch), reference)[0]["reference_logprobs"]
    assert not reference.training and not any(p.requires_grad for p in reference.parameters())
    assert not column.requires_grad and column.shape == (8, 2)
    torch.testing.assert_close(column, whole_logprobs(reference, batch), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("name", families(["llama", "t5", "mamba2", "bert"], ("llama", "bert")))
def test_a_reward_model_learns_which_completion_is_better(name: str) -> None:
    """In parts as at once; at first the head knows nothing: log 2 nats."""
    of = case(name)
    batch = {k: v for k, v in preferences(of).items() if not k.startswith(("source", "targets", "loss_mask"))}

    def losses(micro: int) -> list[float]:
        model = of.tiny()
        add_head(model, HeadOptions("regress", ("reward",), pool="mean"), generator("head"))
        state = TrainState.build(model, OptimOptions("adamw", learning_rate=0.003))
        steps = train(state, Counted(Reward()), Same(batch), Schedule(12), TrainOptions(micro), Runtime())
        return [step.loss for step in steps]

    whole = losses(8)
    assert whole[0] == pytest.approx(math.log(2), abs=1e-5) and whole[-1] < 0.8 * whole[0]
    assert losses(3)[:4] == pytest.approx(whole[:4], rel=1e-4)


def test_what_the_routers_say_is_passed_on() -> None:
    of = case("mixtral")
    model = of.tiny()
    batch = Referenced(Same(preferences(of)), of.tiny(seed=4))[0]
    term = DPO()(model, batch)["router_balance"]
    expected = causal.read(model, as_rows(batch)).aux["router_balance"]
    assert float(term.sum.detach()) == pytest.approx(float(expected.sum.detach())) and term.weight > 0
