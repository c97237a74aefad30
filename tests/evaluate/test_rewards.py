# SPDX-License-Identifier: Apache-2.0
"""Rewards by name: checkers, patterns, reward models; weights; what cannot be scored is refused by name."""

import sqlite3
from pathlib import Path
from typing import Any

import pytest
import torch

import foundling
from foundling.adapt.heads import REWARD, HeadOptions, add_head
from foundling.decode.classify import Classifier
from foundling.errors import ConfigError, DataError
from foundling.evaluate.rewards import build_rewards, check_names, renamed, weighted
from foundling.evaluate.scoring import SCORES
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
        (["1e999*exact"], "the weight of '1e999*exact'"),
        (["matches:" + "a" * 70_000], "the length of a pattern is 70000"),
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


PYTHON = {
    "entry_point": "add", "prompt": "def add(a, b):\n",
    "test": "def check(candidate):\n    assert candidate(1, 2) == 3\n",
}  # fmt: skip
IFEVAL = {"prompt": "Say it loudly.", "instruction_id_list": ["change_case:english_capital"], "kwargs": [{}]}
CASES: dict[str, tuple[dict[str, Any], str, str]] = {
    "exact": ({"answer": "4"}, "4", "five"),
    "normalised": ({"answer": "The cat"}, "cat.", "dog"),
    "contains": ({"answer": "cat"}, "It is a cat.", "a dog"),
    "f1": ({"answer": "a black cat"}, "black cat", "dog"),
    "maths": ({"answer": 0.5}, "Answer: 1/2", "Answer: 2"),
    "code": (PYTHON, "    return a + b\n", "    return a - b\n"),
    "sql": ({"answer": "SELECT a FROM t", "database": "t.db"}, "SELECT a FROM t WHERE a > 0", "SELECT 2"),
    "instructions": (IFEVAL, "IT IS LOUD.", "it is quiet"),
    "json": ({"schema": {"type": "object"}}, '{"a": 1}', "[1]"),
}
"""score -> a row, an answer that is right, and one that is not"""


@pytest.mark.parametrize("name", SCORES)
def test_each_checker_tells_right_from_wrong(name: str, tmp_path: Path) -> None:
    """Of rows as kind `prompt` has them: without an id."""
    with sqlite3.connect(tmp_path / "t.db") as database:
        database.execute("CREATE TABLE t (a)")
        database.execute("INSERT INTO t VALUES (1)")
    row, right, wrong = CASES[name]
    row = {"prompt": "Do it.", **row}
    rewards = build_rewards([name], folder=tmp_path)
    rewards.check([row])
    assert rewards([row, row], [right, wrong]) == [1.0, 0.0]


@pytest.mark.parametrize(
    ("text", "weight", "name"),
    [
        ("maths", 1.0, "maths"), ("-.5*maths", -0.5, "maths"), ("1e-3*maths", 1e-3, "maths"), ("2.*f1", 2.0, "f1"),
        ("+1.5E2*f1", 150.0, "f1"), ("matches:a*b", 1.0, "matches:a*b"), ("2*matches:2*b", 2.0, "matches:2*b"),
        ("runs/a*b", 1.0, "runs/a*b"), ("0.5*runs/a*b", 0.5, "runs/a*b"), ("*maths", 1.0, "*maths"),
    ],
)  # fmt: skip
def test_a_weight_stands_before_the_name(text: str, weight: float, name: str) -> None:
    assert weighted(text) == (weight, name)
    assert renamed(text, {name: "b"}) == text[: len(text) - len(name)] + "b" and renamed(text, {"other": "b"}) == text


def test_several_answers_may_be_right_and_numbers_are_texts() -> None:
    exact = build_rewards(["exact"])
    assert exact([{"prompt": "?", "answer": ["a", "b"]}] * 3, ["a", "b", "c"]) == [1.0, 1.0, 0.0]
    assert exact([{"prompt": "?", "answer": 5.0}, {"prompt": "?", "answer": 0.25}], ["5", "0.25"]) == [1.0, 1.0]
    for wrong in ({"text": "a"}, True, [], [["a"]]):
        with pytest.raises(DataError, match=r"the reward 'exact' .* the prompt 'Which\?' is .*expected a text"):
            exact([{"prompt": "Which?", "answer": wrong}], ["a"])


def test_a_pattern_that_does_not_end_is_refused_by_name() -> None:
    """Python's engine takes 2^n steps for n letters here."""
    rewards = build_rewards(["matches:^(a|a)*$"])
    rows = [{"prompt": "?"}] * 3
    assert rewards(rows, ["aaa", "b", ""]) == [1.0, 0.0, 1.0]
    with pytest.raises(
        DataError, match=r"the reward 'matches:\^\(a\|a\)\*\$' cannot .* takes over 1 s at 'a{9,}b"
    ) as error:
        rewards(rows, ["aaa", "a" * 60 + "b", "c"])
    assert "\n" not in str(error.value)
    assert rewards(rows, ["aaa", "b", ""]) == [1.0, 0.0, 1.0]


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
