# SPDX-License-Identifier: Apache-2.0
"""Preferences: the loss by hand, its gradient against the whole, and what accumulation must not change."""

import math

import pytest
import torch

from foundling.contracts.data import Batch
from foundling.errors import ConfigError
from foundling.objectives import causal, chunked
from foundling.objectives.preference import DPO, SIDES, Referenced, completion_logprobs, dpo_loss
from foundling.runtime.device import Runtime
from foundling.train.loop import train
from foundling.train.options import OptimOptions, TrainOptions
from foundling.train.schedule import Schedule
from foundling.train.state import TrainState
from tests.contract.cases import Case, Counted, case
from tests.contract.matrix import families

COLUMNS = ("tokens", "targets", "documents", "loss_mask")


def preferences(of: Case) -> Batch:
    """One prompt each, two answers, the rejected ones shorter."""
    chosen, rejected = of.batch(0), of.batch(1)
    shared = {k: v for k, v in chosen.items() if k.startswith("source") or k == "sample_ids"}
    chosen = {f"chosen_{c}": chosen[c] for c in COLUMNS}
    return shared | chosen | {f"rejected_{c}": rejected[c][:, :19] for c in COLUMNS}


class Same:
    def __init__(self, batch: Batch) -> None:
        self.batch = batch

    def __getitem__(self, n: int) -> Batch:
        return self.batch


def whole_logprobs(model, batch: Batch, side: str) -> torch.Tensor:
    """(B,), with all logits at once"""
    logprobs = torch.log_softmax(model.logits(causal.read(model, batch, f"{side}_").hidden), -1)
    each = logprobs.gather(-1, batch[f"{side}_targets"][..., None])[..., 0]
    return (each * batch[f"{side}_loss_mask"]).sum(1)


def test_by_hand() -> None:
    found = dpo_loss(torch.tensor([2.0, 0.0]), torch.tensor([-1.0, 0.0]), 0.5)
    assert found.tolist() == pytest.approx([math.log(1 + math.exp(-1.5)), math.log(2)])
    for beta in (0.0, -1.0, math.nan):
        with pytest.raises(ConfigError, match="beta"):
            DPO(beta=beta)


@pytest.mark.parametrize("name", ["llama", "t5", "mamba2"])
def test_chunks_give_the_whole_loss_gradient_and_metrics(name: str, monkeypatch) -> None:
    monkeypatch.setattr(chunked, "CHUNK_LOGITS", 1)  # 64 places at a time
    of = case(name)
    model, batch = of.tiny(), Referenced(Same(preferences(of)), of.tiny(seed=4))[0]
    loss = DPO(beta=0.02)(model, batch)
    loss["loss"].sum.backward()
    got = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    reference = of.tiny(seed=4)
    ratio = {s: whole_logprobs(model, batch, s) - whole_logprobs(reference, batch, s).detach() for s in SIDES}
    margin = ratio["chosen"] - ratio["rejected"]
    whole = torch.log1p(torch.exp(-0.02 * margin)).sum()
    whole.backward()
    assert float(loss["loss"].sum.detach()) == pytest.approx(float(whole.detach()), rel=1e-5)
    assert float(loss["accuracy"].sum) == float((margin > 0).sum()) and loss["accuracy"].weight == 0
    assert float(loss["margin"].sum) == pytest.approx(0.02 * float(margin.detach().sum()), rel=1e-4)
    assert loss["margin"].weight == 0 and DPO().normalizers(batch) == {"loss": 8, "accuracy": 8, "margin": 8}
    for n, p in model.named_parameters():
        assert (got[n] - p.grad).norm() <= 1e-4 * p.grad.norm() + 1e-6, n


def test_logits_are_never_whole_nor_kept(monkeypatch) -> None:
    monkeypatch.setattr(chunked, "CHUNK_LOGITS", 1)
    of = case("llama")
    model, batch, rows = of.tiny(vocab_size=96), preferences(of), []
    model.head.register_forward_hook(lambda m, x, y: rows.append(y.shape[:-1].numel()))
    kept: list[torch.Size] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.shape) or t, lambda t: t):
        found = completion_logprobs(model, batch, "chosen")[0]
    assert max(rows) == 64 and sum(rows) == batch["chosen_tokens"].numel()
    assert torch.Size([64, model.head.out_features]) not in kept
    found.sum().backward()
    assert sum(rows) == 2 * batch["chosen_tokens"].numel(), "made once more, chunk by chunk"


def test_places_that_are_not_counted_need_no_target() -> None:
    of = case("llama")
    model, batch = of.tiny(), preferences(of)
    expected, _ = completion_logprobs(model, batch, "chosen")
    targets = torch.where(batch["chosen_loss_mask"], batch["chosen_targets"], -1)
    found, _ = completion_logprobs(model, batch | {"chosen_targets": targets}, "chosen")
    assert torch.equal(found, expected)


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


def test_the_reference_is_frozen_and_its_columns_are_data() -> None:
    of = case("t5")
    reference, batch = of.tiny(seed=4).train(), preferences(of)
    found = Referenced(Same(batch), reference)[0]
    assert found.keys() - batch.keys() == {"reference_chosen_logprob", "reference_rejected_logprob"}
    assert not reference.training and not any(p.requires_grad for p in reference.parameters())
    for side in SIDES:
        column = found[f"reference_{side}_logprob"]
        assert not column.requires_grad and column.shape == (8,)
        torch.testing.assert_close(column, whole_logprobs(reference, batch, side), rtol=1e-5, atol=1e-4)


def test_what_the_routers_say_of_both_answers_is_passed_on() -> None:
    of = case("mixtral")
    model = of.tiny()
    batch = Referenced(Same(preferences(of)), of.tiny(seed=4))[0]
    term = DPO()(model, batch)["router_balance"]
    each = [causal.read(model, batch, f"{side}_").aux["router_balance"] for side in SIDES]
    mean = sum(float(t.sum.detach()) / t.count for t in each) / 2
    assert float(term.sum.detach()) / term.count == pytest.approx(mean) and term.weight == each[0].weight > 0
