# SPDX-License-Identifier: Apache-2.0
"""Rewards by name: checkers, patterns, reward models; weights; what cannot be scored is refused by name."""

from pathlib import Path

import pytest
import torch

import foundling
from foundling.adapt.heads import REWARD, HeadOptions, add_head
from foundling.decode.classify import Classifier
from foundling.errors import ConfigError, DataError
from foundling.evaluate.rewards import build_rewards, check_names
from foundling.models import build, family
from foundling.text import Tokenizer
from foundling.text.chat import TEMPLATES

ROWS = [{"prompt": "What is 2 + 2?", "answer": "4"}, {"prompt": "What is 2 + 3?", "answer": 5}]


def test_checkers_and_patterns_are_weighted_and_summed() -> None:
    rewards = build_rewards(["maths", "0.5*matches:^Answer: -?\\d+$"])
    texts = ["2 + 2 = 4\nAnswer: 4", "Answer: 6"]
    assert rewards(ROWS, texts) == [1.5, 0.5]
    assert rewards.by_part(ROWS, texts) == {"maths": [1.0, 0.0], "matches:^Answer: -?\\d+$": [1.0, 1.0]}
    assert build_rewards(["-2*exact"])(ROWS, ["4", "4"]) == [-2.0, 0.0]


@pytest.mark.parametrize(
    "names, message",
    [
        (["math"], "the reward 'math' is unknown; use exact, normalised"),
        (["matches:("], "no regular expression"),
        (["exact", "2*exact"], "named twice"),
        ([], "the number of rewards is 0"),
    ],
)
def test_wrong_names_are_one_line(names: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=r"^[^\n]*$") as error:
        build_rewards(names)
    assert message in str(error.value)
    if len(names) == 1:
        with pytest.raises(ConfigError):
            check_names(names)


def test_a_row_that_a_checker_cannot_read_is_refused_by_name() -> None:
    with pytest.raises(DataError, match="the reward 'instructions' cannot be computed: expected prompt, instruction"):
        build_rewards(["instructions"])(ROWS, ["a", "b"])
    rewards = build_rewards(["exact"])
    rewards.check(ROWS)
    with pytest.raises(DataError, match="the prompt 'And 7\\?' has no answer to compare with; name its column"):
        rewards.check([*ROWS, {"prompt": "And 7?"}])
    build_rewards(["matches:a"]).check([{"prompt": "And 7?"}])


@pytest.fixture(scope="module")
def reward_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random, of conversations."""
    path = tmp_path_factory.mktemp("reward")
    tokenizer = Tokenizer.train(["What is it? It is a cat, please. 2 + 2 = 4"] * 20, 320)
    tokenizer = tokenizer.with_chat_template(TEMPLATES["plain"])
    model = build("llama", **family("llama").module.sized(tokenizer.vocab_size, 64, 32, 2))
    add_head(model, HeadOptions("regress", (REWARD,)), torch.Generator().manual_seed(3))
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())) * 0.1)
    foundling.save(model, path, tokenizer=tokenizer)
    return path


def test_a_reward_model_scores_conversations(reward_model: Path) -> None:
    rewards, model = build_rewards([f"2*{reward_model}"]), Classifier.load(reward_model)
    rows = [{"prompt": "What?"}, {"messages": [{"role": "user", "content": "It"}]}]
    values = [answer["value"] for answer in model.classify([("What?", "a cat"), ("It", "is")])]
    assert rewards(rows, ["a cat", "is"]) == pytest.approx([2 * value for value in values], rel=1e-6)
    assert values[0] != values[1]
    with pytest.raises(DataError, match="longer than the 64 tokens that the reward model reads"):
        rewards(rows[:1], ["a cat " * 60])


def test_a_reward_that_is_not_finite_is_refused(reward_model: Path) -> None:
    rewards = build_rewards([str(reward_model)])
    (part,) = rewards.parts
    broken = part._replace(score=lambda rows, texts: [float("nan")] * len(texts))
    with pytest.raises(DataError, match="of 'a cat' is nan; expected a finite number"):
        type(rewards)([broken])([{"prompt": "What?"}], ["a cat"])
