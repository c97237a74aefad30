# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from math import log

import pytest
import torch
import torch.nn.functional as F
from scipy import stats

from foundling.adapt.heads import HeadOptions, add_head
from foundling.contracts.objective import total
from foundling.errors import ConfigError
from foundling.objectives.replaced import GENERATOR_WEIGHT, LABELS, Electra, ReplacedTokens
from foundling.runtime.rng import generator
from foundling.train.update import micro_batches
from tests.contract.cases import case


def electra() -> Electra:
    of = case("bert")
    discriminator = of.tiny(seed=1)
    head = add_head(discriminator, HeadOptions("tag", LABELS), generator("head"))
    with torch.no_grad():
        head.weight.copy_(torch.randn(head.weight.shape, generator=generator("head", 1)) * 0.1)
    return Electra(of.tiny(n_layers=1), discriminator)


def test_the_losses_are_those_of_the_paper() -> None:
    model, batch = electra(), case("bert").batch(0)
    loss = ReplacedTokens(seed=3)(model, batch)
    masked, targets = batch["loss_mask"], batch["targets"]
    logits = model.generator.logits(model.generator(batch["tokens"], documents=batch["documents"]).hidden)[masked]
    nats = F.cross_entropy(logits, targets[masked], reduction="sum")
    torch.testing.assert_close(loss["generator"].sum, nats, rtol=1e-5, atol=0)
    assert loss["generator"].weight == GENERATOR_WEIGHT and loss["loss"].weight == 1
    written = targets.clone()
    written[masked] = ReplacedTokens(seed=3).drawn(logits, batch)
    replaced = (written != targets).long()
    assert 0 < int(replaced.sum()) <= int(masked.sum())
    scores = model.discriminator.score(model.discriminator.encode(written, documents=batch["documents"]).states)
    expected = F.cross_entropy(scores.flatten(0, 1), replaced.flatten(), reduction="sum")
    torch.testing.assert_close(loss["loss"].sum, expected, rtol=1e-5, atol=0)
    assert ReplacedTokens(seed=3).normalizers(batch) == {
        "loss": targets.numel(), "accuracy": targets.numel(), "generator": int(masked.sum()),
    }  # fmt: skip


def test_tokens_are_drawn_from_the_generators_distribution() -> None:
    n, probabilities = 20_000, torch.tensor([0.5, 0.0, 0.3, 0.2])
    batch = {
        "tokens": torch.zeros(20, 1000, dtype=torch.int64), "loss_mask": torch.ones(20, 1000, dtype=torch.bool),
        "sample_ids": torch.arange(20),
    }  # fmt: skip
    drawn = ReplacedTokens(seed=0).drawn(probabilities.log().expand(n, 4), batch)
    counts = torch.bincount(drawn, minlength=4)
    assert counts[1] == 0
    assert stats.chisquare(counts[[0, 2, 3]], n * probabilities[[0, 2, 3]].double().numpy()).pvalue > 1e-4


def test_gradients_are_the_same_in_any_micro_batches_and_reach_both() -> None:
    objective, batch, gradients = ReplacedTokens(seed=0), case("bert").batch(0), []
    counts = objective.normalizers(batch)
    for rows in (8, 2):
        model = electra()
        for micro in micro_batches(batch, rows):
            total(objective(model, micro), counts).backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert {name.split(".")[0] for name in gradients[0]} == {"generator", "discriminator"}
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-4, atol=1e-6)


def test_padding_counts_nothing() -> None:
    model, batch, objective = electra(), case("bert").batch(0), ReplacedTokens(seed=3)
    pad = torch.zeros_like(batch["tokens"][:, :2])
    filled = {"tokens": pad, "targets": pad, "documents": pad - 1, "loss_mask": pad.bool()}
    padded = batch | {name: torch.cat([batch[name], more], 1) for name, more in filled.items()}
    assert objective.normalizers(padded) == objective.normalizers(batch)
    longer, plain = objective(model, padded), objective(model, batch)
    for name in ("loss", "accuracy", "generator"):
        assert int(longer[name].count) == int(plain[name].count)
    masked = model.generator(batch["tokens"], documents=batch["documents"]).hidden
    plain_text, wider = (
        objective.rewritten(model, hidden, of)
        for hidden, of in ((masked, batch), (torch.cat([masked, masked[:, :2]], 1), padded))
    )
    assert not wider["targets"][:, -2:].any() and not wider["loss_mask"][:, -2:].any()
    assert plain_text["loss_mask"].all()


def test_a_discriminator_without_scores_begins_at_chance() -> None:
    of = case("bert")
    discriminator = of.tiny()
    add_head(discriminator, HeadOptions("tag", LABELS), generator("head"))
    loss = ReplacedTokens(seed=0)(Electra(of.tiny(n_layers=1), discriminator), of.batch(0))["loss"]
    assert float(loss.sum.detach()) / int(loss.count) == pytest.approx(log(2))


def test_models_that_do_not_fit_are_refused() -> None:
    of = case("bert")
    with pytest.raises(ConfigError, match="no head that tags"):
        Electra(of.tiny(), of.tiny())
    discriminator = of.tiny()
    add_head(discriminator, HeadOptions("tag", LABELS), generator("head"))
    with pytest.raises(ConfigError, match="predicts no masked"):
        Electra(case("llama").tiny(), discriminator)
    with pytest.raises(ConfigError, match="share one embedding"):
        Electra(of.tiny(d_model=32, n_heads=2), discriminator)
