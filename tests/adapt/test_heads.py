# SPDX-License-Identifier: Apache-2.0
"""Heads: what they read and compute by hand, what they are to adapters, directories and hashes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import foundling
from foundling.adapt.added import adapter_tensors, merge
from foundling.adapt.heads import Head, HeadOptions, absorb, add_head
from foundling.adapt.lora import LoRAOptions, lora
from foundling.adapt.quantize import quantize
from foundling.blocks.heads import last_states, scores
from foundling.blocks.init import initialise, roles
from foundling.contracts.model import HeadLayout
from foundling.errors import AdaptError, WeightsError
from foundling.models import build, family
from foundling.runtime.rng import generator
from foundling.weights.adapters import load_adapter, save_adapter
from foundling.weights.directory import weights_hash
from tests.contract.cases import case

CLASSES = HeadOptions("classify", ("ham", "spam"))
VALUE = HeadOptions("regress", ("reward",))
PLAIN = HeadLayout("last", bias=False)


def llama() -> Any:
    return case("llama").tiny()


def batch(rows: int = 3) -> dict[str, torch.Tensor]:
    x = torch.randint(3, 60, (rows, 7), generator=torch.Generator().manual_seed(0))
    return {"tokens": x, "documents": torch.zeros_like(x)}


def test_a_value_of_every_position_by_hand() -> None:
    """As a reward model reads its hidden states (Ouyang et al. 2022, section 3.4)."""
    head = Head(VALUE, PLAIN, 2, 2)
    with torch.no_grad():
        head.weight.copy_(torch.tensor([[3.0, -1.0]]))
    hidden = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [2.0, 2.0]], [[0.5, 0.5], [1.0, 1.0], [0.0, 5.0]]])
    assert head(hidden)[..., 0].tolist() == [[3, -1, 4], [1, 2, -5]]
    assert head(last_states(hidden, None))[:, 0].tolist() == [4, -5]
    padded = torch.tensor([[0, 0, -1], [0, -1, -1]])
    assert head(last_states(hidden, padded))[:, 0].tolist() == [-1, 1]
    assert head(hidden.bfloat16().float()).dtype == torch.float32


def test_a_dense_layer_and_a_norm_by_hand() -> None:
    head = Head(CLASSES, HeadLayout("first", "relu", norm_eps=1e-12), 2, 2)
    with torch.no_grad():
        head.dense.copy_(torch.tensor([[1.0, 0.0], [0.0, -1.0]]))  # pyright: ignore
        head.weight.copy_(torch.tensor([[1.0, 1.0], [2.0, 0.0]]))
        head.bias.copy_(torch.tensor([0.0, 5.0]))  # pyright: ignore
    # relu -> (3, 0), of mean 1.5 and deviation 1.5: (1, −1)
    assert head(torch.tensor([3.0, 2.0])).tolist() == pytest.approx([0, 7])


def test_its_name_is_stable_and_it_starts_at_zero() -> None:
    model = build("llama", **family("llama").module.sized(64, 32, 32, 1))
    add_head(model, VALUE, generator("head"))
    assert roles(model)["score.weight"].kind == "head"
    nn.init.ones_(model.score.weight)
    initialise(model, generator("init", 0))
    assert model.state_dict()["score.weight"].tolist() == [[0.0] * 32]
    assert not scores(model, batch()).any()


@pytest.mark.parametrize(
    "change", [lambda m: lora(m, LoRAOptions("*"), generator("lora", 0)), lambda m: quantize(m, "layers*")]
)
def test_it_is_neither_adapted_nor_quantised(change: Any) -> None:
    model = llama()
    add_head(model, CLASSES, generator("head"))
    names = change(model)
    assert "layers.0.mixer.q" in names and "score" not in names and type(model.score) is Head
    assert model.score.weight.requires_grad


def test_with_adapters_it_is_one_of_them_and_after_merging_part_of_the_model(tmp_path: Path) -> None:
    model = llama()
    foundling.save(model, tmp_path / "base")
    base = weights_hash(model)
    add_head(model, CLASSES, generator("head"))
    assert weights_hash(model) == base, "of its base"
    lora(model, LoRAOptions("*mixer*"), generator("lora"))
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trainable == adapter_tensors(model).keys() and "score.weight" in trainable
    assert weights_hash(model) == base
    nn.init.normal_(model.score.weight)
    before = scores(model, batch())
    merge(model)
    assert torch.equal(scores(model, batch()), before) and "score.weight" not in adapter_tensors(model)
    assert weights_hash(model) != base
    foundling.save(model, tmp_path / "whole")
    again = foundling.load(tmp_path / "whole")
    assert weights_hash(again) == weights_hash(model)
    assert json.loads((tmp_path / "whole" / "foundling.json").read_text())["weights_hash"] == weights_hash(again)
    # an adapter on the classifier leaves its head as it is
    lora(again, LoRAOptions("*mixer*"), generator("lora"))
    assert not again.score.weight.requires_grad
    save_adapter(again, tmp_path / "adapter")
    load_adapter(foundling.load(tmp_path / "whole"), tmp_path / "adapter")


def test_a_head_is_replaced_by_one_of_other_classes(tmp_path: Path) -> None:
    model = case("bert").tiny()
    add_head(model, CLASSES, generator("head"))
    foundling.save(model, tmp_path / "two")
    model = foundling.load(tmp_path / "two")
    add_head(model, HeadOptions("tag", ("O", "B", "I")), generator("head"))
    absorb(model)
    assert scores(model, batch()).shape == (3, 7, 3)
    foundling.save(model, tmp_path / "three")
    again = foundling.load(tmp_path / "three")
    assert again.score.options.labels == ("O", "B", "I") and again.capabilities.task == "tag"
    assert weights_hash(again) == weights_hash(model)


def test_values_keep_their_mean_and_deviation(tmp_path: Path) -> None:
    for name in ("bert", "mamba"):
        model = case(name).tiny()
        add_head(model, HeadOptions("regress", ("price",), mean=-3.25, std=0.1), generator("head"))
        foundling.save(model, tmp_path / name)
        options = foundling.load(tmp_path / name).score.options
        assert (options.kind, options.labels, options.mean, options.std) == ("regress", ("price",), -3.25, 0.1)
        assert json.loads((tmp_path / name / "config.json").read_text())["problem_type"] == "regression"


def test_a_plain_projection_of_the_mean(tmp_path: Path) -> None:
    """No class of transformers has it: it is saved beside the model, which keeps its own class there."""
    for name, kind in (("bert", "BertForMaskedLM"), ("llama", "LlamaForCausalLM")):
        model = case(name).tiny()
        head = add_head(model, HeadOptions("classify", ("a", "b"), pool="mean"), generator("head"))
        assert head.dense is None and head.bias is not None
        nn.init.normal_(head.weight)
        foundling.save(model, tmp_path / name)
        assert json.loads((tmp_path / name / "config.json").read_text())["architectures"] == [kind]
        again = foundling.load(tmp_path / name)
        assert again.score.layout.pool == "mean" and torch.equal(scores(again, batch()), scores(model, batch()))


@pytest.mark.parametrize("pooled", [False, True])
def test_a_model_with_and_without_a_pooler_of_its_own(pooled: bool, tmp_path: Path) -> None:
    model = case("bert").tiny(pooled=pooled)
    head = add_head(model, CLASSES, generator("head"))
    assert (head.dense is None) == pooled and head.layout.pool == ("model" if pooled else "first")
    nn.init.normal_(head.weight)
    absorb(model)
    foundling.save(model, tmp_path / "m")
    again = foundling.load(tmp_path / "m")
    assert weights_hash(again) == weights_hash(model) and torch.equal(scores(again, batch()), scores(model, batch()))


def test_bad_options_and_models() -> None:
    for wrong, says in (
        (dict(kind="classify", labels=("a",)), "takes 2"), (dict(kind="classify", labels=("a", "a")), "twice"),
        (dict(kind="regress", labels=("v",), std=0.0), "above 0"),
        (dict(kind="sort", labels=("a", "b")), "expected classify"),
    ):  # fmt: skip
        with pytest.raises(AdaptError, match=says):
            HeadOptions(**wrong)  # pyright: ignore
    with pytest.raises(AdaptError, match="reads no text on its own"):
        add_head(case("unet").tiny(), CLASSES, generator("head"))
    with pytest.raises(AdaptError, match="pool"):
        add_head(llama(), HeadOptions("tag", ("a", "b"), pool="mean"), generator("head"))


def test_damaged_heads_are_refused(tmp_path: Path) -> None:
    model = llama()
    add_head(model, CLASSES, generator("head"))
    foundling.save(model, tmp_path / "m")
    file = tmp_path / "m" / "config.json"
    good = json.loads(file.read_text())
    for wrong, says in (
        ({"problem_type": "multi_label_classification"}, "multi_label"),
        ({"foundling_head": [1]}, "expected a mapping"),
        ({"foundling_head": {"kind": "sort"}}, "kind"),
        ({"foundling_head": {"kind": "regress", "std": -1.0}}, "above 0"),
        ({"architectures": ["LlamaForQuestionAnswering"]}, "not read here"),
        ({"foundling_head": {"kind": "tag"}, "architectures": ["LlamaForTokenClassification"]}, "score.bias"),
    ):
        file.write_text(json.dumps(good | wrong))
        with pytest.raises(WeightsError, match=says):
            foundling.load(tmp_path / "m")
    file.write_text(json.dumps(good | {"id2label": {"0": "x", "1": "x"}}))  # one name for two classes
    assert foundling.load(tmp_path / "m").score.options.labels == ("LABEL_0", "LABEL_1")


def test_inspect_shows_the_head(tmp_path: Path) -> None:
    from foundling.weights.inspect import inspect

    model = llama()
    add_head(model, CLASSES, generator("head"))
    foundling.save(model, tmp_path / "m")
    assert "score" in [part["name"] for part in inspect(tmp_path / "m")["tree"]["parts"]]
