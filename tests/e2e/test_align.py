# SPDX-License-Identifier: Apache-2.0
"""`foundling align` through the real command line: each stage on the one before, used at once, resumed after SIGKILL,
reproduced; and what it refuses, each in one line."""

import json
import random
import signal
import time
from pathlib import Path

import pytest

from foundling.adapt.options import Method
from tests.e2e.test_finetune import SETTINGS, save_base
from tests.e2e.tools import foundling, kill_after_checkpoint, start, weights

PLAIN = ("--chat-template", "plain")
ROLLOUTS = ("--n-prompts", "4", "--group-size", "2", "--max-tokens", "8", "--kl-coef", "0.05")


def aligned(stage: str, *args: object) -> dict:
    done = foundling("align", stage, *args, *SETTINGS, "--json")
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("align")


@pytest.fixture(scope="module")
def base(folder: Path) -> Path:
    return save_base(folder)


@pytest.fixture(scope="module")
def comparisons(folder: Path) -> Path:
    """The better completion says please."""
    chance, file = random.Random(0), folder / "comparisons.jsonl"
    with file.open("w", encoding="utf-8") as out:
        for i in range(60):
            name = chance.choice(["Oslo", "Rome", "Lima"])
            row = {"prompt": f"{i}: {name}", "chosen": f"{name}, please", "rejected": f"{name}, now"}
            out.write(json.dumps(row) + "\n")
    return file


def test_a_policy_is_trained_killed_resumed_reproduced_and_talks(base: Path, comparisons: Path, folder: Path) -> None:
    args, out = ["dpo", base, comparisons, "--epochs", "4", "--chat-template", "plain"], folder / "dpo"
    result = aligned(*args, "--out", out)
    assert result["metric"] == "accuracy" and result["actual"]["accuracy"] > 0.9 > result["baselines"]["chance"]
    about = json.loads((out / "foundling.json").read_text())
    assert about["recipe"]["objective"] | {"kind": "dpo", "beta": 0.1} == about["recipe"]["objective"]
    assert about["base"] == weights(base) and about["kind"] == "preference-tuned chat model"
    talk = foundling("chat", out, "--temperature", "0", "--max-tokens", "4", "--json", input="1: Rome\n")
    assert talk.returncode == 0, talk.stderr
    assert json.loads(talk.stdout)["kind"] == "instruct model"
    broken = folder / "broken"
    kill_after_checkpoint([*args, "--out", broken, *SETTINGS, "--checkpoint-every", "12"], broken, "align")
    other = foundling("align", "reward", "--out", broken, "--resume")
    assert other.returncode == 2 and "an unfinished run of 'dpo'" in other.stderr
    assert foundling("align", "dpo", "--out", broken, "--resume").returncode == 0
    assert weights(broken) == weights(out)
    again = foundling("reproduce", out, "--out", folder / "again", "--json")
    assert again.returncode == 0 and json.loads(again.stdout)["identical"], again.stderr


def test_a_reward_model_scores_at_once(base: Path, comparisons: Path, folder: Path) -> None:
    out = folder / "reward"
    result = aligned("reward", base, comparisons, "--epochs", "6", "--chat-template", "plain", "--out", out)
    assert result["actual"]["accuracy"] > 0.9 and "margin" in result["actual"]
    (figures,) = [r["figures"] for r in result["results"] if r["subject"] == "model"]
    assert any(name.startswith("margins 1 of 5") for name in figures)
    values = list[float]()
    for answer in ("Rome, please", "Rome, now"):
        scored = foundling("classify", out, "7: Rome", "--pair", answer, "--json")
        assert scored.returncode == 0, scored.stderr
        values += [one["value"] for one in json.loads(scored.stdout)["results"]]
    assert values[0] > values[1] + 0.5
    alone = foundling("classify", out, "Rome, please")
    assert alone.returncode == 2 and "--pair" in alone.stderr


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("dpo", "{base}", "{same}"), "equal completions"),
        (("dpo", "{base}", "{chats}"), "are no comparisons"),
        (("sft", "{base}", "{comparisons}"), "do not hold what --as chat needs"),
        (("dpo", "{base}", "{comparisons}", "--objective.beta", "0"), "beta"),
        (("reward", "{base}", "{comparisons}", "--objective.beta", "0.2"), "--beta is not for 'reward'"),
        (("dpo", "{base}", "{comparisons}", "--method", "head", "--chat-template", "plain"), "use lora or full"),
        (("dpo", "{base}"), "give a model directory and the examples"),
        (("rloo", "{base}", "{comparisons}"), "invalid choice: 'rloo'"),
        (("dpo", "{base}", "{comparisons}", "--reward", "maths"), "--reward is for ppo and grpo"),
        (("grpo", "{base}", "{words}", "--reward", "maths", *PLAIN), "has no answer to compare with"),
        (("grpo", "{base}", "{chats}", "--reward", "maths", "--value-coef", "1"), "--value-coef is not for 'grpo'"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    args, message: str, base: Path, comparisons: Path, folder: Path, tmp_path: Path
) -> None:
    same, chats, words = (folder / f"{name}.jsonl" for name in ("same", "chats", "words"))
    words.write_text("".join(json.dumps({"prompt": f"a {i}"}) + "\n" for i in range(20)))
    same.write_text('{"prompt": "a", "chosen": "b", "rejected": "b"}\n' * 20)
    chats.write_text("".join(json.dumps({"prompt": f"a {i}", "completion": f"b {i}"}) + "\n" for i in range(20)))
    paths = {"base": base, "comparisons": comparisons, "same": same, "chats": chats, "words": words}
    done = foundling("align", *(arg.format(**paths) for arg in args), "--out", tmp_path / "refused")
    assert done.returncode == 2 and message in done.stderr.splitlines()[-1], done.stderr
    assert not (tmp_path / "refused" / "foundling.json").exists()


def test_a_policy_learns_from_rewards_and_is_resumed_and_reproduced(
    base: Path, comparisons: Path, folder: Path
) -> None:
    """Two updates a rollout: it is killed within one."""
    args, out = ["grpo", base, comparisons, "--reward", "matches:e", "--reward", "0.5*matches:a"], folder / "grpo"
    args += [*PLAIN, *ROLLOUTS, "--epochs", "0.5"]
    result = aligned(*args, "--out", out)
    assert (
        result["metric"] == "reward"
        and result["actual"]["kl_per_answer"] >= 0
        and result["kind"] == "reward-tuned chat model"
    )
    assert {r["metric"] for r in result["results"]} >= {
        "reward",
        "kl_per_answer",
        "length",
        "reward/matches:e",
        "reward/matches:a",
    }
    steps = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    sums = [step["reward/matches:e"] + 0.5 * step["reward/matches:a"] for step in steps]
    assert [step["reward"] for step in steps] == pytest.approx(sums)
    assert all(0 <= step["truncated"] <= 1 and step["kl_coef"] == pytest.approx(0.05) for step in steps)
    assert all(step["mismatch"] < 1e-4 and 0 <= step["reward"] <= 1.5 for step in steps)
    talk = foundling("chat", out, "--temperature", "0", "--max-tokens", "4", "--json", input="1: Rome\n")
    assert json.loads(talk.stdout)["kind"] == "instruct model", talk.stderr
    report = (out / "report.json").read_text()
    assert "foundling align grpo" in report and "--reward matches:e --reward '0.5*matches:a'" in report
    broken = folder / "broken-grpo"
    kill_after_checkpoint([*args, "--out", broken, *SETTINGS, "--checkpoint-every", "1"], broken, "align")
    assert foundling("align", "grpo", "--out", broken, "--resume").returncode == 0
    assert weights(broken) == weights(out)
    again = foundling("reproduce", out, "--out", folder / "again-grpo", "--json")
    assert again.returncode == 0 and json.loads(again.stdout)["identical"], again.stderr


@pytest.mark.slow
def test_a_reward_model_with_another_pool_scores_at_once(base: Path, comparisons: Path, tmp_path: Path) -> None:
    settings = ["--epochs", "6", "--chat-template", "plain", "--pool", "mean"]
    result = aligned("reward", base, comparisons, *settings, "--out", tmp_path / "out")
    assert result["actual"]["accuracy"] > 0.9
    scored = [
        json.loads(foundling("classify", tmp_path / "out", "7: Rome", "--pair", answer, "--json").stdout)["results"]
        for answer in ("Rome, please", "Rome, now")
    ]
    assert scored[0][0]["value"] > scored[1][0]["value"]


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["grpo", "ppo"])
def test_a_signal_while_answers_are_drawn_loses_no_step(
    stage: str, base: Path, comparisons: Path, folder: Path
) -> None:
    """Nearly all of the time goes into drawing. It is stopped soon, and goes on to the same weights."""
    out = folder / f"stopped-{stage}"
    args = [stage, base, comparisons, "--reward", "matches:e", *PLAIN, "--n-prompts", "16", "--max-tokens", "60"]
    args += ["--epochs", "1", *SETTINGS, "--batch-size", "16", "--checkpoint-every", "100"]
    process, log = start("align", *args, "--out", out), out / "run" / "log.jsonl"
    while not (log.exists() and log.read_text()):
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate()
    assert process.returncode == 75 and "at step" in error.splitlines()[-1], error
    assert foundling("align", stage, "--out", out, "--resume").returncode == 0
    whole = folder / f"whole-{stage}"
    assert foundling("align", *args, "--out", whole).returncode == 0
    assert weights(out) == weights(whole)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["dpo", "ipo", "reward"])
@pytest.mark.parametrize("method", ["full", "lora", "qlora", "prompt", "prefix", "bias", "top-k"])
def test_each_method_learns_each_stage(
    stage: str, method: Method, base: Path, comparisons: Path, tmp_path: Path
) -> None:
    settings = ["--epochs", "6", "--method", method, "--chat-template", "plain"]
    result = aligned(stage, base, comparisons, *settings, "--out", tmp_path / "out")
    assert result["actual"]["accuracy"] > 0.7, result["actual"]
    again = foundling("reproduce", tmp_path / "out", "--out", tmp_path / "again", "--json")
    assert again.returncode == 0 and json.loads(again.stdout)["identical"], again.stderr
