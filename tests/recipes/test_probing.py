# SPDX-License-Identifier: Apache-2.0
"""Heads that begin as a linear probe, on models of every kind."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import foundling
from foundling.adapt.heads import HeadOptions, add_head, is_projection
from foundling.blocks.init import initialise
from foundling.errors import AdaptError, BudgetError, ConfigError
from foundling.models import build, family
from foundling.plan.budget import Budget
from foundling.recipes.kinds import finetune_model
from foundling.recipes.recipe import Request
from foundling.runtime.rng import generator
from foundling.text import Tokenizer

TEXTS = [f"{'win' if i % 2 else 'dear'} {i} {'a b c'[: i % 4]}" for i in range(120)]
RUNTIME = {"threads": 1, "precision": "float32"}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("data") / "rows.jsonl"
    rows = ({"text": text, "label": "spam" if "win" in text else "ham"} for text in TEXTS)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.fixture(scope="module")
def base_of(tmp_path_factory):
    tokenizer, made = Tokenizer.train(TEXTS, 320), dict[str, Path]()

    def get(name: str) -> Path:
        if name not in made:
            model = build(name, **family(name).module.sized(320, 64, 64, 2))
            initialise(model, generator("base"))
            made[name] = tmp_path_factory.mktemp(name) / "base"
            foundling.save(model, made[name], tokenizer=tokenizer)
        return made[name]

    return get


def tuned(base: Path, data: Path, out: Path, method: str, **given: Any) -> dict[str, Any]:
    train = {"batch_size": 8} | given.pop("train", {})
    adapt = {"method": method} | given.pop("adapt", {})
    given = {"model": {"directory": str(base)}, "adapt": adapt, "train": train, "runtime": RUNTIME} | given
    return finetune_model(Request(str(data), Budget("epochs", 1), None, given, "finetune"), out)


@pytest.mark.parametrize("method", ["head", "lora", "prompt"])
@pytest.mark.parametrize("name", ["bert", "roberta", "t5", "llama"])
def test_a_head_begins_as_a_probe(name: str, method: str, base_of, data: Path, tmp_path: Path) -> None:
    result = tuned(base_of(name), data, tmp_path / "out", method)
    assert result["actual"]["accuracy"] > 0.8
    if method != "head":
        assert result["baselines"]["a linear probe"] > 0.8
    model = foundling.load(tmp_path / "out")
    last = name == "llama" and method != "head"
    assert model.score.layout.pool == ("last" if last else "mean") and is_projection(model.score.layout)


@pytest.mark.parametrize("name", ["roberta", "t5"])
def test_a_dense_layer_that_nobody_trained_is_no_probe(name: str, base_of, data: Path, tmp_path: Path) -> None:
    """What is published has one; it is read again with it, from a whole model and from an adapter."""
    published = {"pool": "published"}
    for method in ("full", "lora"):
        result = tuned(base_of(name), data, tmp_path / method, method, adapt=published)
        assert "a linear probe" not in result["baselines"]
        assert foundling.load(tmp_path / method).score.layout.activation == "tanh"
    about = json.loads((tmp_path / "lora" / "foundling.json").read_text())
    about["adapters"]["head"]["pool"] = "first" if name == "roberta" else "last"  # as adapters were written before
    (tmp_path / "lora" / "foundling.json").write_text(json.dumps(about))
    assert foundling.load(tmp_path / "lora").score.layout.activation == "tanh"
    with pytest.raises(ConfigError, match="dense layer"):
        tuned(base_of(name), data, tmp_path / "refused", "full", adapt=published | {"probe": True})


@pytest.mark.parametrize(("name", "pool"), [("roberta", "first"), ("t5", "last"), ("llama", "last"), ("bert", "mean")])
def test_a_pool_that_is_said_is_saved_and_loaded(name: str, pool: str, base_of, data: Path, tmp_path: Path) -> None:
    for method in ("full", "lora"):
        result = tuned(base_of(name), data, tmp_path / method, method, adapt={"pool": pool})
        assert "a linear probe" in result["baselines"]
        layout = foundling.load(tmp_path / method).score.layout
        assert layout.pool == pool and is_projection(layout)


def test_a_head_of_one_class_is_refused(base_of, tmp_path: Path) -> None:
    """What was cut off took the other class with it."""
    sentences = ("".join(f"{n}w{i}\tO\n" for i in range(40)) + "name\tB-X\n\n" for n in range(40))
    (tmp_path / "words.conll").write_text("".join(sentences))
    given = {"objective": {"kind": "tag"}, "train": {"seq_len": 16}}
    with pytest.raises(AdaptError, match="two classes"):
        tuned(base_of("bert"), tmp_path / "words.conll", tmp_path / "out", "head", **given)


def test_a_head_that_is_there_is_trained_on(base_of, data: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    tuned(base_of("llama"), data, first, "head")
    result = tuned(first, data, second, "full")
    assert "a linear probe" not in result["baselines"] and result["actual"]["accuracy"] > 0.8
    assert foundling.load(second).score.layout.pool == "mean"
    with pytest.raises(ConfigError, match="already"):
        tuned(first, data, tmp_path / "refused", "full", adapt={"probe": True})


def test_without_memory_for_features_a_head_is_trained_by_steps(
    base_of, data: Path, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr("foundling.recipes.probing.MOST_BYTES", 1000)
    result = tuned(base_of("llama"), data, tmp_path / "out", "head")
    assert result["steps"] == 12, "96 examples, 8 at a time"


def test_the_plan_is_what_is_done(base_of, data: Path, tmp_path: Path) -> None:
    from foundling.recipes.finetune_methods import plan_methods
    from foundling.recipes.progress import Progress
    from foundling.runtime.clock import Clock

    given = {"model": {"directory": str(base_of("bert"))}, "adapt": {"method": "head"}, "runtime": RUNTIME}
    request = Request(str(data), Budget("epochs", 3), None, given, "finetune")
    plan = plan_methods(request, progress=Progress(False), clock=Clock())
    assert plan["recipe"]["train"]["total_steps"] == 6 and plan["recipe"]["train"]["epochs"] == 1
    assert plan["methods"]["head"]["step_seconds"] == 0 and "seconds" not in plan["methods"]["lora"]
    result = finetune_model(request, tmp_path / "out")
    assert result["steps"] == 6
    about = json.loads((tmp_path / "out" / "foundling.json").read_text())["recipe"]
    assert about["train"] == plan["recipe"]["train"] and about["adapt"] == plan["recipe"]["adapt"]
    with pytest.raises(BudgetError, match="least"):
        finetune_model(replace(request, budget=Budget("seconds", 0.01)), tmp_path / "short")

    lora = replace(request, given=given | {"adapt": {"method": "lora", "pool": "published"}})
    rows = plan_methods(lora, progress=Progress(False), clock=Clock())["methods"]
    assert rows["head"]["step_seconds"] == 0, "solved, also where the chosen method's head is not"
    assert rows["lora"]["step_seconds"] > 0


def test_scores_of_a_probe_are_those_in_half_precision(base_of) -> None:
    """A state that varies little around a large mean: its weights are large, and so is what the bias takes away."""
    model = foundling.load(base_of("llama"))
    head = add_head(model, HeadOptions("classify", ("a", "b"), pool="mean"), generator("head"))
    with torch.no_grad():
        head.weight.copy_(torch.randn(head.weight.shape, generator=generator("w")) * 100)
        assert head.bias is not None
        states = torch.full((4, 64), 8.0) + torch.randn(4, 64, generator=generator("x")) / 8
        head.bias.copy_(-(head.weight @ torch.full((64,), 8.0)))
        exact = head(states.bfloat16().float())
        with torch.autocast("cpu", torch.bfloat16):
            half = head(states.bfloat16())
    assert torch.equal(half, exact) and exact.abs().max() > 1
