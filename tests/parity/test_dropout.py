# SPDX-License-Identifier: Apache-2.0
"""Dropout: at the same places, in the same order and at the same rates as in transformers, so that one seed drops the
same numbers in both; absent in evaluation; read from a directory and written back."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import torch

import foundling
from foundling.blocks.heads import scores
from foundling.errors import ConfigError
from foundling.models import FAMILIES, build, family
from tests.contract.cases import case, close
from tests.parity import references

RATES = (0.25, 0.1)
"""of residual branches and of attention weights; T5 has one rate for all"""
NAMES = [name for name in FAMILIES if "dropout" in family(name).config.__dataclass_fields__]


@pytest.mark.parametrize(
    ("name", "reference", "keys"),
    [
        ("gpt2", references.gpt2(n_embd=32, n_head=4, n_layer=2), ("resid_pdrop", "attn_pdrop")),
        ("gpt", references.gpt(n_embd=32, n_head=4), ("resid_pdrop", "attn_pdrop")),
        ("opt", references.opt(), ("dropout", "attention_dropout")),
        ("bloom", references.bloom(), ("hidden_dropout", "attention_dropout")),
        ("gpt_neox", references.gpt_neox(), ("hidden_dropout", "attention_dropout")),
        ("bert", references.encoder("BertForMaskedLM"), ("hidden_dropout_prob", "attention_probs_dropout_prob")),
        ("roberta", references.encoder("RobertaForMaskedLM"), ("hidden_dropout_prob", "attention_probs_dropout_prob")),
        ("bart", references.bart(), ("dropout", "attention_dropout")),
        ("distilbert", references.distilbert(), ("dropout", "attention_dropout")),
        ("albert", references.albert(), ("hidden_dropout_prob", "attention_probs_dropout_prob")),
        ("modernbert", references.modernbert(mlp_dropout=0.2), ("embedding_dropout", "attention_dropout")),
        ("t5", references.t5(), ("dropout_rate",)),
        ("t5", references.t5(feed_forward_proj="gated-gelu"), ("dropout_rate",)),
    ],
)
def test_training_drops_what_transformers_drops(
    name: str, reference: references.Reference, keys: tuple[str, ...], tmp_path: Any
) -> None:
    theirs = reference.make()
    for key, value in zip(keys, RATES[: len(keys)], strict=True):
        assert hasattr(theirs.config, key)
        setattr(theirs.config, key, value)
    if hasattr(theirs.config, "embd_pdrop"):
        theirs.config.embd_pdrop = 0.25
    theirs = type(theirs)(theirs.config).train()
    theirs.save_pretrained(tmp_path / "theirs")
    ours = foundling.load(tmp_path / "theirs").train()
    rates = tuple(getattr(ours.config, field) for field in ("dropout", "attention_dropout")[: len(keys)])
    assert rates == RATES[: len(keys)]
    said = []
    for model, run in ((theirs, reference.theirs), (ours, reference.ours)):
        torch.manual_seed(5)
        said.append(run(model).detach())
    close(said[1], said[0])
    assert (reference.ours(ours) - said[1]).abs().max() > 1e-3 * said[1].abs().max(), "another seed drops others"
    foundling.save(ours, tmp_path / "ours")
    written = json.loads((tmp_path / "ours" / "config.json").read_text())
    assert tuple(written[key] for key in keys) == RATES[: len(keys)]


@pytest.mark.parametrize("name", NAMES)
def test_evaluation_drops_nothing_and_training_something(name: str) -> None:
    of = case(name)
    plain, model = of.tiny(), of.tiny(dropout=0.3)
    assert torch.equal(of.outputs(model), of.outputs(plain))
    model.train()
    torch.manual_seed(0)
    first, second = of.outputs(model), of.outputs(model)
    torch.manual_seed(0)
    again = of.outputs(model)
    assert torch.equal(first, again) and not torch.equal(first, second)
    assert torch.equal(of.outputs(plain.train()), of.outputs(plain.eval()))


@pytest.mark.parametrize("name", NAMES)
def test_a_directory_without_the_keys_has_no_dropout(name: str, tmp_path: Any) -> None:
    """As those that were written before they were read."""
    model = case(name).tiny(dropout=0.3)
    foundling.save(model, tmp_path / "model")
    assert foundling.load(tmp_path / "model").config == model.config
    file = tmp_path / "model" / "config.json"
    values = json.loads(file.read_text())
    kept = {key: value for key, value in values.items() if "drop" not in key}
    assert len(kept) < len(values)
    file.write_text(json.dumps(kept))
    assert foundling.load(tmp_path / "model").config == replace(model.config, dropout=0.0)
    dropping = {key: 0 if "drop" in key else value for key, value in values.items()}  # as some write 0.0
    file.write_text(json.dumps(dropping))
    assert foundling.load(tmp_path / "model").config == replace(model.config, dropout=0.0)


@pytest.mark.parametrize("value", [-0.1, 1.0, float("nan")])
def test_what_is_no_probability_is_refused(value: float) -> None:
    for name in NAMES:
        with pytest.raises(ConfigError, match=r"dropout'? is"):
            build(name, device="meta", **(case(name).fields() | {"dropout": value}))


def test_modernberts_classifier_drops_what_transformers_drops(tmp_path: Any) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.ModernBertConfig(
        vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, cls_token_id=1, sep_token_id=2, num_labels=3,
        classifier_dropout=0.4, attn_implementation="eager",
    )  # fmt: skip
    theirs = transformers.ModernBertForSequenceClassification(config).train()
    theirs.save_pretrained(tmp_path / "theirs")
    ours = foundling.load(tmp_path / "theirs").train()
    assert ours.config.classifier_dropout == 0.4
    x = torch.randint(3, 64, (4, 9))
    torch.manual_seed(5)
    expected = theirs(x).logits.detach()
    torch.manual_seed(5)
    found = scores(ours, {"tokens": x}).detach()
    close(found, expected)
    assert not torch.equal(found, scores(ours.eval(), {"tokens": x}))
    foundling.save(ours, tmp_path / "ours")
    assert json.loads((tmp_path / "ours" / "config.json").read_text())["classifier_dropout"] == 0.4
