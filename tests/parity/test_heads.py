# SPDX-License-Identifier: Apache-2.0
"""Classifiers, taggers and regressions of transformers load here with equal scores, and ours there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import foundling
from foundling.adapt.heads import HeadOptions, add_head
from foundling.blocks.heads import scores
from foundling.models import FAMILIES, family
from foundling.runtime.rng import generator
from foundling.weights.heads import stem
from tests.contract.cases import case
from tests.parity.references import REFERENCES, randomise
from tests.rounding import close

transformers = pytest.importorskip("transformers")

CASES = [(name, task) for name in FAMILIES for task in family(name).module.CONFIG.heads]
QUICK = {("llama", "classify"), ("gpt2", "tag"), ("bert", "classify"), ("bert", "tag"), ("roberta", "classify"),
         ("modernbert", "classify"), ("t5", "classify"), ("distilbert", "classify")}  # fmt: skip
EACH = [pytest.param(*of, marks=[] if of in QUICK else pytest.mark.slow) for of in CASES]
LENGTHS = (9, 6, 4)


def theirs_of(name: str, task: str, n: int = 4, **more: Any) -> Any:
    """Their class with random weights, of a tiny shape."""
    plain = REFERENCES[name][0].make()
    config = plain.config
    config.num_labels = n
    pad = {} if name == "roberta" else {"pad_token_id": 0}
    for key, value in ({"eos_token_id": 2, "decoder_start_token_id": 0} | pad | more).items():
        setattr(config, key, value)
    kind = stem(type(plain).__name__) + family(name).module.CONFIG.heads[task].ending
    return randomise(getattr(transformers, kind)(config)).eval()


def texts(pad: int, eos: int = 2) -> tuple[Tensor, Tensor]:
    """Texts that end with their end token, padded: ids and documents (B, T)."""
    ids = torch.randint(3, 60, (3, max(LENGTHS)), generator=torch.Generator().manual_seed(3))
    documents = torch.zeros_like(ids)
    for row, length in enumerate(LENGTHS):
        ids[row, length - 1], ids[row, length:], documents[row, length:] = eos, pad, -1
    return ids, documents


def same_scores(ours: Any, theirs: Any, task: str) -> Tensor:
    pad = theirs.config.pad_token_id
    ids, documents = texts(0 if pad is None else pad)
    with torch.no_grad():
        expected = theirs(ids, attention_mask=(documents >= 0).long()).logits
        found = scores(ours, {"tokens": ids, "documents": documents})
    real = documents >= 0 if task == "tag" else slice(None)
    close(found[real], expected[real])
    return found


ENCODER_ALONE = ("t5", "tag")
"""transformers' class holds no decoder, and the family here is one of both"""


@pytest.mark.parametrize(("name", "task"), [p for p in EACH if tuple(p.values) != ENCODER_ALONE])
def test_heads_both_ways(name: str, task: str, tmp_path: Path) -> None:
    theirs = theirs_of(name, task)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = foundling.load(tmp_path / "theirs")
    assert ours.capabilities.task == task and ours.score.options.labels == tuple(f"LABEL_{i}" for i in range(4))
    first = same_scores(ours, theirs, task)
    foundling.save(ours, tmp_path / "ours")
    back, info = type(theirs).from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not info["missing_keys"] and not info["mismatched_keys"], info
    assert json.loads((tmp_path / "ours" / "config.json").read_text())["architectures"] == [type(theirs).__name__]
    assert torch.equal(same_scores(ours, back.eval(), task), first)
    again = foundling.load(tmp_path / "ours")
    assert torch.equal(same_scores(again, back, task), first)


@pytest.mark.parametrize(("name", "task"), EACH)
def test_a_head_put_on_a_model_is_theirs(name: str, task: str, tmp_path: Path) -> None:
    """Of a model that was pretrained here: transformers reads its classifier without a missing tensor."""
    model = case(name).tiny()
    labels = ("good", "bad", "so so")
    head = add_head(model, HeadOptions("tag" if task == "tag" else "classify", labels), generator("head"))
    torch.nn.init.normal_(head.weight, std=0.3)
    foundling.save(model, tmp_path / "ours")
    config = json.loads((tmp_path / "ours" / "config.json").read_text())
    kind = getattr(transformers, config["architectures"][0])
    theirs, info = kind.from_pretrained(tmp_path / "ours", output_loading_info=True)
    theirs.config.eos_token_id = 2
    if theirs.config.pad_token_id is None:
        theirs.config.pad_token_id = 0
    assert not info["missing_keys"] and not info["mismatched_keys"], info
    assert theirs.config.id2label == dict(enumerate(labels))
    again = foundling.load(tmp_path / "ours")
    assert again.score.options == head.options or again.score.options.pool == head.layout.pool
    assert torch.equal(same_scores(again, theirs.eval(), task), same_scores(model, theirs, task))
