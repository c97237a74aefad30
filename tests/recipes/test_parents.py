# SPDX-License-Identifier: Apache-2.0
"""What a run builds on: whole models, adapters merged into their bases, reward models; by hash, wherever they are."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import foundling
from foundling.adapt.added import adapter_tensors, added
from foundling.adapt.heads import REWARD, Head, HeadOptions, add_head
from foundling.adapt.method import apply
from foundling.adapt.options import AdaptOptions
from foundling.errors import ConfigError, WeightsError
from foundling.plan.budget import Budget
from foundling.recipes.kinds import finetune_model, plan_finetuning, reproduce
from foundling.recipes.models import family_for, load_parent, load_start, parent_hash, pinned_request, with_parents
from foundling.recipes.progress import Progress
from foundling.recipes.recipe import (
    DataSpec,
    ModelSpec,
    ObjectiveSpec,
    Recipe,
    Request,
    RolloutSpec,
    RuntimeSpec,
    ScheduleSpec,
    TrainSpec,
)
from foundling.runtime.clock import Clock
from foundling.text import Tokenizer
from foundling.text.chat import TEMPLATES
from foundling.train.options import OptimOptions
from foundling.weights.adapters import save_adapter
from foundling.weights.directory import weights_hash
from foundling.weights.merged import merge_adapter
from tests.contract.cases import case

RUNTIME = {"device": "cpu", "threads": 1, "precision": "float32"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("parents")


@pytest.fixture(scope="module")
def base(folder: Path) -> Path:
    texts = ["What is it? It is a cat, please. User: 2 + 2 = 4 Assistant: yes no"] * 20
    tokenizer = Tokenizer.train(texts, 320).with_chat_template(TEMPLATES["plain"])
    foundling.save(case("llama").tiny(vocab_size=320, max_seq_len=64), folder / "base", tokenizer=tokenizer)
    return folder / "base"


@pytest.fixture(scope="module")
def chats(folder: Path) -> Path:
    rows = [{"prompt": f"What is {i}?", "completion": f"a cat {i}"} for i in range(24)]
    return write(folder / "chats.jsonl", rows)


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def request(start: Path, data: Path, kind: str, **given: Any) -> Request:
    runtime = RUNTIME | given.pop("runtime", {})
    settings = {"objective": {"kind": kind}, "model": {"directory": str(start)}, "runtime": runtime, **given}
    return Request(str(data), Budget("epochs", 1), given=settings, command="finetune")


def save(out: Path, base: Path, method: str, seed: int = 0) -> Path:
    """An adapter with random weights, as `finetune` writes it."""
    model, generator = foundling.load(base), torch.Generator().manual_seed(seed)
    if method == "reward":
        add_head(model, HeadOptions("regress", (REWARD,)), generator)
    apply(model, AdaptOptions("lora" if method == "reward" else method), generator)  # pyright: ignore
    with torch.no_grad():
        for p in adapter_tensors(model).values():
            p.add_(torch.randn(p.shape, generator=generator) * 0.1)
    save_adapter(model, out, base=base, tokenizer=Tokenizer.load(base))
    return out


@pytest.fixture(scope="module")
def adapters(folder: Path, base: Path) -> dict[str, Path]:
    return {name: save(folder / name, base, name) for name in ("lora", "qlora", "reward", "prefix")}


@pytest.mark.parametrize("name", ["lora", "qlora", "reward"])
def test_an_adapter_is_read_as_its_merged_model(name: str, adapters: dict[str, Path], tmp_path: Path) -> None:
    """The very weights that `foundling merge` writes; nothing of it is an adapter any more."""
    merge_adapter(adapters[name], tmp_path / "merged")
    model = load_parent(str(adapters[name]))
    expected = foundling.load(tmp_path / "merged")
    assert parent_hash(str(adapters[name])) == weights_hash(expected)
    assert parent_hash(str(adapters[name])) != parent_hash(str(adapters[name].parent / "base"))
    assert all(isinstance(m, Head) and not m.own for m in added(model).values())
    assert all(p.requires_grad for p in model.parameters())
    tokens = torch.arange(3, 23)[None]
    with torch.inference_mode():
        assert torch.equal(model(tokens).hidden, expected(tokens).hidden)
    assert family_for({"directory": str(adapters[name])}) == "llama"


def test_what_cannot_be_merged_is_no_start(adapters: dict[str, Path]) -> None:
    with pytest.raises(WeightsError, match=r"no training starts from this adapter: .* cannot be merged"):
        load_start(str(adapters["prefix"]))


def test_two_reward_models_on_one_base_are_two_parents(base: Path, tmp_path: Path) -> None:
    """The head counts."""
    first, again, other = (save(tmp_path / str(i), base, "reward", seed) for i, seed in enumerate((1, 1, 2)))
    assert parent_hash(str(first)) == parent_hash(str(again)) != parent_hash(str(other))


def test_a_moved_parent_is_recognised_by_its_weights(adapters: dict[str, Path]) -> None:
    """Also in a reward with a weight, whose name or pattern has a `*` itself."""
    start, judge = str(adapters["lora"]), str(adapters["reward"])
    model = ModelSpec(directory="gone/sft", weights_hash=parent_hash(start))
    rewards = ("0.5*runs/a*b", "-2*matches:a*runs/a*b", "maths")
    recipe = Recipe(
        DataSpec("prompts.jsonl"), model, ObjectiveSpec("grpo"), OptimOptions(), ScheduleSpec(), TrainSpec(9, 48, 6, 2),
        RuntimeSpec("cpu", "float32", 1, False), AdaptOptions("lora"),
        RolloutSpec(rewards, {"runs/a*b": parent_hash(judge)}),
    )  # fmt: skip
    moved = with_parents(recipe, [start, judge])
    assert moved.model.directory == start
    assert moved.rollout.reward == (f"0.5*{judge}", *rewards[1:])
    assert moved.rollout.reward_hashes == {judge: parent_hash(judge)}
    with pytest.raises(ConfigError, match="none that the recipe starts from"):
        with_parents(recipe, [str(adapters["qlora"])])


def test_reward_models_on_the_hub_are_pinned_as_models_are() -> None:
    """A place with its commit is asked of nobody."""
    commit = "0123456789" * 4
    asked = Request(
        "prompts.jsonl", Budget("epochs", 1), command="finetune",
        given={"rollout": {"reward": [f"0.5*hf:/org/judge@{commit}", "matches:hf:/a", "maths"]}},
    )  # fmt: skip
    rewards = pinned_request(asked).get("rollout.reward")
    assert list(rewards) == [f"0.5*hf://org/judge@{commit}", "matches:hf:/a", "maths"]


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("method", ["lora", "qlora", "full", "bias", "top-k"])
def test_each_method_starts_from_an_adapter(
    method: str, precision: str, adapters: dict[str, Path], chats: Path, tmp_path: Path
) -> None:
    """And writes a whole model, the same again; a plan says so without writing anything."""
    given = {"adapt": {"method": method}, "runtime": {"precision": precision}}
    asked = request(adapters["qlora"], chats, "chat", **given)
    finetune_model(asked, tmp_path / "out")
    model = foundling.load(tmp_path / "out")
    assert not added(model) and (tmp_path / "out" / "config.json").is_file()
    assert weights_hash(model) != parent_hash(str(adapters["qlora"]))
    assert reproduce(tmp_path / "out", out=tmp_path / "again")["identical"]
    plan = plan_finetuning(asked, progress=Progress(False), clock=Clock())
    assert plan["recipe"]["model"]["directory"] == str(adapters["qlora"])


@pytest.mark.slow
@pytest.mark.parametrize("method", ["prompt", "prefix"])
def test_what_is_saved_beside_a_whole_model_needs_one(
    method: str, adapters: dict[str, Path], chats: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"foundling merge .* --out NEW"):
        finetune_model(request(adapters["lora"], chats, "chat", adapt={"method": method}), tmp_path / "out")
    assert not (tmp_path / "out").exists()
