# SPDX-License-Identifier: Apache-2.0
"""Runs of learning from rewards: the optimum that they approach, what they refuse, and what a failing reward leaves."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

import foundling
from foundling.adapt.heads import REWARD, HeadOptions, add_head
from foundling.errors import ConfigError, DataError, FoundlingError, MismatchError
from foundling.evaluate.rewards import Part, Rewards
from foundling.models import build, family
from foundling.plan.budget import Budget
from foundling.recipes import policy
from foundling.recipes.kinds import finetune_model, plan_finetuning, reproduce, resume_model
from foundling.recipes.progress import Progress
from foundling.recipes.recipe import Request
from foundling.runtime.clock import Clock
from foundling.text import Tokenizer
from foundling.text.chat import TEMPLATES
from tests.contract.cases import case

TRAIN = {"batch_size": 8, "micro_batch_size": 4}
RUNTIME = {"device": "cpu", "threads": 1, "precision": "float32"}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    texts = ["What is it? It is a cat, please. User: 2 + 2 = 4 Assistant: yes no"] * 20
    return Tokenizer.train(texts, 320).with_chat_template(TEMPLATES["plain"])


def directory(path: Path, name: str, tokenizer: Tokenizer) -> Path:
    """A random model that reads 64 tokens."""
    if not path.exists():
        model = case(name).tiny(vocab_size=tokenizer.vocab_size, max_seq_len=64)
        foundling.save(model, path, tokenizer=tokenizer)
    return path


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> Path:
    return directory(tmp_path_factory.mktemp("policy") / "base", "llama", tokenizer)


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def prompts(base: Path) -> Path:
    return write(base.parent / "prompts.jsonl", [{"prompt": f"What is {i}?", "answer": "a cat"} for i in range(24)])


def request(base: Path, data: Path, kind: str, *rewards: str, epochs: float = 1.0, **given: Any) -> Request:
    rollout = {"n_prompts": 4, "group_size": 4, "max_tokens": 8, "reward": list(rewards)} | given.pop("rollout", {})
    settings = {
        "objective": {"kind": kind, **given.pop("objective", {})}, "model": {"directory": str(base)},
        "rollout": rollout, "train": TRAIN | given.pop("train", {}), "runtime": RUNTIME, **given,
    }  # fmt: skip
    return Request(str(data), Budget("epochs", epochs), given=settings, command="finetune")


@pytest.mark.parametrize("kind", ["grpo", "ppo"])
def test_the_reward_rises(kind: str, base: Path, prompts: Path, tmp_path: Path) -> None:
    """Of answers with an a, which a random model writes now and then."""
    asked = request(
        base, prompts, kind, "matches:a", epochs=5, optim={"learning_rate": 0.005}, objective={"kl_coef": 0.0},
        rollout={"group_size": 8, "n_prompts": 8}, train={"batch_size": 64, "micro_batch_size": 64},
    )  # fmt: skip
    result = finetune_model(asked, tmp_path / "out")
    before, after = result["baselines"]["before"], result["actual"]["reward"]
    assert after > before + 0.2, (before, after)
    assert result["actual"]["kl_per_answer"] > 0.1
    loaded = foundling.load(tmp_path / "out")
    assert not any("value" in name for name, _ in loaded.named_parameters())


@pytest.mark.parametrize(
    ("kind", "rewards", "given", "message"),
    [
        ("grpo", [], {}, "'grpo' learns from a reward: give one, such as --reward maths"),
        ("grpo", ["math"], {}, "the reward 'math' is unknown; use exact"),
        ("grpo", ["{base}"], {}, "is no classifier"),
        ("grpo", ["instructions"], {}, "expected prompt, instruction_id_list"),
        ("grpo", ["maths"], {"rollout": {"group_size": 1}}, "give --group-size 2"),
        ("grpo", ["maths"], {"train": {"batch_size": 5}}, "--batch-size 5 does not divide the 16 answers of a rollout"),
        ("grpo", ["maths"], {"rollout": {"max_tokens": 64}}, "no token for a prompt; the model reads 64 in all"),
        ("grpo", ["maths"], {"train": {"seq_len": 8}}, "--seq-len 8 holds prompt and answer"),
        ("ppo", ["maths"], {"adapt": {"method": "prompt"}}, "'ppo' learns by the methods full, lora"),
        ("grpo", ["maths"], {"objective": {"value_coef": 1.0}}, "--value-coef is not for 'grpo'"),
        ("ppo", ["maths"], {"objective": {"clip_low": 2.0}}, "clip_low"),
    ],
)
def test_what_does_not_go_together_is_refused(
    kind: str, rewards: list[str], given: dict[str, Any], message: str, base: Path, prompts: Path, tmp_path: Path
) -> None:
    with pytest.raises(FoundlingError) as error:
        asked = request(base, prompts, kind, *(name.format(base=base) for name in rewards), **given)
        finetune_model(asked, tmp_path / "out")
    assert message in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_a_prompt_without_an_answer_is_refused(base: Path, tmp_path: Path) -> None:
    data = write(tmp_path / "prompts.jsonl", [{"prompt": f"What is {i}?"} for i in range(20)])
    with pytest.raises(DataError, match="has no answer to compare with; name its column with --target"):
        finetune_model(request(base, data, "grpo", "maths"), tmp_path / "out")


def test_a_reward_that_becomes_nan_loses_no_step(
    base: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the measurement before and two rollouts. What was learnt is in a checkpoint, and the run goes on from it
    once the reward is mended, to the weights of a run that was never stopped."""
    asked, calls = request(base, prompts, "grpo", "matches:a", epochs=2), list[int]()

    def score(rows: Any, texts: Any) -> list[float]:
        calls.append(1)
        return [math.nan if len(calls) == 4 else float("a" in text) for text in texts]

    with monkeypatch.context() as patch:
        patch.setattr(policy, "rewards_of", lambda recipe: Rewards([Part("matches:a", 1.0, score)]))
        with pytest.raises(DataError, match=r"the reward 'matches:a' of .* is nan; expected a finite number"):
            finetune_model(asked, tmp_path / "out")
    (checkpoint,) = (tmp_path / "out" / "run" / "checkpoints").iterdir()
    assert checkpoint.name == "step-00000004"  # two rollouts of two updates
    resume_model(tmp_path / "out")
    finetune_model(asked, tmp_path / "whole")
    first, second = (foundling.load(tmp_path / name).state_dict() for name in ("out", "whole"))
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    assert len((tmp_path / "out" / "log.jsonl").read_text().splitlines()) == 20


def test_a_conversation_that_a_reward_model_cannot_read_is_refused_first(
    base: Path, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    short = build("llama", **family("llama").module.sized(tokenizer.vocab_size, 44, 32, 2))
    add_head(short, HeadOptions("regress", (REWARD,)), torch.Generator().manual_seed(3))
    foundling.save(short, tmp_path / "reward", tokenizer=tokenizer)
    rows = [{"prompt": f"What is {i}?"} for i in range(40)]
    rows[12] = {"prompt": "What is " + "it? It is " * 6}
    data = write(tmp_path / "prompts.jsonl", rows)
    with pytest.raises(DataError, match=r"reads 44 tokens, and the longest prompt with an answer may have \d+"):
        finetune_model(request(base, data, "grpo", str(tmp_path / "reward")), tmp_path / "out")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gpt2", "gemma2", "mamba", "rwkv", "jamba"])
@pytest.mark.parametrize("kind", ["grpo", "ppo"])
def test_each_family_is_reproduced(name: str, kind: str, prompts: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    start = directory(tmp_path / "base", name, tokenizer)
    finetune_model(request(start, prompts, kind, "matches:a", objective={"kl_coef": 0.1}), tmp_path / "out")
    assert reproduce(tmp_path / "out", out=tmp_path / "again")["identical"]


def test_settings_are_checked_before_any_work(base: Path, prompts: Path) -> None:
    with pytest.raises(ConfigError, match="kl_target"):
        request(base, prompts, "ppo", "maths", rollout={"kl_target": 0.0})


def test_text_of_pretraining_is_learnt_beside(base: Path, prompts: Path, tmp_path: Path) -> None:
    """Its loss falls; the same text is needed to go on."""
    text = tmp_path / "text"
    text.mkdir()
    (text / "a.txt").write_text("It is a cat, please. What is it? " * 60)
    asked = request(
        base, prompts, "ppo", "matches:a", epochs=2, optim={"learning_rate": 0.005},
        objective={"pretraining": str(text), "pretraining_coef": 5.0}, rollout={"group_size": 8},
        train={"batch_size": 32},
    )  # fmt: skip
    finetune_model(asked, tmp_path / "out")
    steps = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    assert steps[-1]["pretraining"] < steps[0]["pretraining"] - 0.2
    (text / "a.txt").write_text("It is no cat. " * 200)
    with pytest.raises(MismatchError, match=r"the recipe was resolved with .{12}; put the same text back"):
        reproduce(tmp_path / "out", out=tmp_path / "again")


def test_a_plan_says_what_it_takes_and_writes_nothing(base: Path, prompts: Path) -> None:
    plan = plan_finetuning(request(base, prompts, "ppo", "matches:a"), progress=Progress(False), clock=Clock())
    row, rollout = plan["methods"]["lora"], plan["recipe"]["rollout"]
    assert plan["method"] == "lora" and row["fits"] and 0 < row["share"] < 1 and row["seconds"] > 0
    assert (rollout["n_prompts"], rollout["group_size"], rollout["max_tokens"]) == (4, 4, 8)
    assert plan["recipe"]["train"]["total_steps"] == 10 and not list(base.parent.glob("run*"))
