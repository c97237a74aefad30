# SPDX-License-Identifier: Apache-2.0
"""Heads: what they read and compute by hand, what they are to adapters, directories and hashes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import foundling
from foundling.adapt.added import adapter_tensors, merge
from foundling.adapt.freeze import train_biases, train_top
from foundling.adapt.heads import Head, HeadOptions, absorb, add_head, same_head
from foundling.adapt.lora import LoRAOptions, lora
from foundling.adapt.method import apply
from foundling.adapt.options import AdaptOptions
from foundling.adapt.quantize import quantize
from foundling.blocks.heads import last_states, scores
from foundling.blocks.init import initialise, roles
from foundling.contracts.model import HeadLayout
from foundling.errors import AdaptError, MismatchError, WeightsError
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


def classifier(folder: Path) -> Path:
    """A directory of a Llama with a head that has learnt something."""
    model = llama()
    add_head(model, CLASSES, generator("head"))
    nn.init.normal_(model.score.weight, generator=generator("score"))
    absorb(model)
    return foundling.save(model, folder)


@pytest.mark.parametrize("labels", [("ham", "spam"), ("a", "b", "c")])
def test_an_adapter_with_a_head_on_a_model_that_has_one_is_loaded_again(
    labels: tuple[str, ...], tmp_path: Path
) -> None:
    """Its base is the model without the head that it replaces, on both sides."""
    model = foundling.load(classifier(tmp_path / "base"))
    add_head(model, HeadOptions("classify", labels), generator("head"))
    lora(model, LoRAOptions("*mixer*"), generator("lora"))
    for name, p in adapter_tensors(model).items():
        p.data.normal_(generator=generator(name), std=0.1)
    save_adapter(model, tmp_path / "adapter")
    again = foundling.load(tmp_path / "adapter")
    assert again.score.options.labels == labels
    assert torch.equal(scores(again, batch()), scores(model, batch()))
    # one that leaves the head as it is stays bound to it
    bound = foundling.load(tmp_path / "base")
    lora(bound, LoRAOptions("*mixer*"), generator("lora"))
    save_adapter(bound, tmp_path / "bound")
    load_adapter(foundling.load(tmp_path / "base"), tmp_path / "bound")
    other = foundling.load(tmp_path / "base")
    other.score.weight.data[0] += 1
    with pytest.raises(MismatchError, match="trained on a base"):
        load_adapter(other, tmp_path / "bound")
    load_adapter(other, tmp_path / "adapter")


METHODS = ("full", "top-k", "bias", "head", "lora", "qlora", "prompt", "prefix")


@pytest.mark.parametrize("method", METHODS)
def test_what_trains_the_head_of_a_loaded_model(method: Any, tmp_path: Path) -> None:
    """What is saved alone leaves it as it is; a new head is trained by all. Nothing trains what gets no gradient."""
    model = foundling.load(classifier(tmp_path / "base"))
    alone = method in ("lora", "qlora", "prompt", "prefix")
    trained = apply(model, AdaptOptions(method, rank=2, n_virtual=2, top_layers=1), generator("adapt"))
    assert ("score.weight" in trained) != alone
    new = foundling.load(tmp_path / "base")
    add_head(new, HeadOptions("classify", ("a", "b", "c")), generator("head"))
    trained = apply(new, AdaptOptions(method, rank=2, n_virtual=2, top_layers=1), generator("adapt"))
    assert "score.weight" in trained
    nn.init.normal_(new.score.weight)
    ids = {
        "tokens": torch.cat((torch.full((3, 2), 64), batch()["tokens"]), 1) if method == "prompt" else batch()["tokens"]
    }
    scores(new, ids).sum().backward()
    params = dict(new.named_parameters())
    assert {name for name in trained if params[name].grad is None} == set()
    assert not any(name.startswith("head.") for name in trained)


def test_the_vocabulary_of_a_model_with_a_head_is_trained_by_no_choice_of_layers() -> None:
    model = llama()
    assert any(name.startswith("head.") for name in train_top(model, 1))
    add_head(model, CLASSES, generator("head"))
    assert not any(name.startswith("head.") for name in [*train_top(model, 1), *train_biases(model)])
    bert = case("bert").tiny()  # its head is tied, and has a bias and layers of its own
    add_head(bert, CLASSES, generator("head"))
    trained = apply(bert, AdaptOptions("full"), generator("adapt"))
    assert "embedding.weight" in trained and not any(name.startswith("head.") for name in trained)


def test_a_head_for_the_same_labels_is_trained_on(tmp_path: Path) -> None:
    model = foundling.load(classifier(tmp_path / "base"))
    assert same_head(model, CLASSES) and same_head(model, HeadOptions("classify", ("ham", "spam"), pool="last"))
    others = [
        HeadOptions("classify", ("spam", "ham")), HeadOptions("classify", ("ham", "spam", "eggs")), VALUE,
        HeadOptions("tag", ("ham", "spam")), HeadOptions("classify", ("ham", "spam"), pool="mean"),
    ]  # fmt: skip
    assert not any(same_head(model, options) for options in others)
    assert not same_head(llama(), CLASSES)
    add_head(model, HeadOptions("regress", ("x",), mean=1.0, std=2.0), generator("head"))
    assert same_head(model, HeadOptions("regress", ("x",), mean=1.0, std=2.0))
    assert not same_head(model, HeadOptions("regress", ("x",), mean=1.5, std=2.0)), "its scores mean other values"


def test_options_of_a_head_are_checked() -> None:
    with pytest.raises(AdaptError, match="the pool of the head is 'middle'; expected model, first, last, mean, concat"):
        HeadOptions("classify", ("a", "b"), pool="middle")  # pyright: ignore[reportArgumentType]
    compared = 0

    class Label(str):
        __hash__ = str.__hash__

        def __eq__(self, other: object) -> bool:
            nonlocal compared
            compared += 1
            return str.__eq__(self, other)

    HeadOptions("classify", tuple(Label(i) for i in range(1000)))
    assert compared < 10_000, "not each with each"


def test_the_head_of_an_adapter_is_compared_with_its_file_before_anything_of_its_size_is_made(tmp_path: Path) -> None:
    model = llama()
    add_head(model, CLASSES, generator("head"))
    lora(model, LoRAOptions("*mixer*"), generator("lora"))
    save_adapter(model, tmp_path / "adapter")
    manifest = json.loads((tmp_path / "adapter" / "foundling.json").read_text())
    manifest["adapters"]["head"]["labels"] = [str(i) for i in range(5_000)]
    (tmp_path / "adapter" / "foundling.json").write_text(json.dumps(manifest))
    made: list[int] = []

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor) and out.device.type != "meta":
                made.append(out.numel())
            return out

    plain = llama()
    with Sizes(), pytest.raises(WeightsError, match=r"\[2, 64\], not \[5000, 64\]"):
        load_adapter(plain, tmp_path / "adapter")
    assert max(made, default=0) < 5_000 * 64 and not hasattr(plain, "score")
