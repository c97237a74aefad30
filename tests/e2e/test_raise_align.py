# SPDX-License-Identifier: Apache-2.0
"""`foundling raise --align` through the real command line: three stages, one model with its parents; resumed after
SIGKILL in any of them, reproduced; and what it refuses, each in one line."""

import json
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from foundling.errors import ConfigError
from foundling.recipes.recipe import Request
from tests.e2e.tools import corpus, files, foundling, raised, start, weights

TINY = [
    "--total-steps", "4", "--batch-size", "2", "--seq-len", "128", "--d-model", "32", "--n-layers", "2",
    "--vocab-size", "320", "--threads", "1", "--checkpoint-every", "2", "--micro-batch-size", "2", "--compile", "false",
    "--precision", "float32", "--tokens", "1024",
]  # fmt: skip


def write_chats(file: Path, n: int = 40) -> Path:
    rows = [{"prompt": f"Say {i}", "completion": f"{i} it is"} for i in range(n)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def manifest(directory: Path) -> dict:
    return json.loads((directory / "foundling.json").read_text())


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("raise_align")


@pytest.fixture(scope="module")
def args(folder: Path) -> list:
    return [corpus(folder / "text", 20), "--align", write_chats(folder / "chats.jsonl"), *TINY]


@pytest.fixture(scope="module")
def model(folder: Path, args: list) -> Path:
    raised(*args, "--out", folder / "model")
    return folder / "model"


def test_one_command_raises_aligns_and_measures(model: Path) -> None:
    about, base, sft = manifest(model), model / "stages" / "base", model / "stages" / "sft"
    assert [stage["name"] for stage in about["stages"]] == ["base", "sft"]
    assert [about["stages"][i]["weights_hash"] for i in (0, 1)] == [weights(base), weights(sft)]
    assert about["parents"] == [{"name": "sft", "weights_hash": weights(sft)}]
    assert manifest(sft)["parents"] == [{"name": "base", "weights_hash": weights(base)}]
    assert manifest(base)["parents"] == [] and about["request"]["align"].endswith("chats.jsonl")
    assert about["recipe"]["objective"]["kind"] == "dpo" and manifest(sft)["recipe"]["objective"]["kind"] == "chat"
    assert set(about["plan"]["stages"]) == {"base", "sft", "dpo"} and about["plan"]["seconds"] > 0
    subjects = {r["subject"] for r in about["result"]["results"] if r["task"] == "held-out questions, answers that end"}
    assert {"base", "after SFT", "model"} <= subjects
    page = (model / "report.html").read_text()
    assert "<h2>Stages</h2>" in page and "Before and after" in page and "Say " in page
    assert "--align" in (model / "README.md").read_text()
    for directory in (model, base, sft):
        assert foundling("check", directory).returncode == 0
    talk = foundling("chat", model, "--temperature", "0", "--max-tokens", "4", "--json", input="Say 7\n")
    assert talk.returncode == 0 and json.loads(talk.stdout)["kind"] == "instruct model", talk.stderr


@pytest.mark.slow
def test_it_is_reproduced_without_its_stages(model: Path, tmp_path: Path) -> None:
    shutil.copytree(model, tmp_path / "moved")
    shutil.rmtree(tmp_path / "moved" / "stages")
    again = foundling("reproduce", tmp_path / "moved", "--out", tmp_path / "again", "--json")
    assert again.returncode == 0 and json.loads(again.stdout)["identical"], again.stderr
    for stage in ("base", "sft"):
        assert weights(tmp_path / "again" / "stages" / stage) == weights(model / "stages" / stage)
    about = manifest(tmp_path / "moved")
    about["stages"][1]["weights_hash"] = "0" * 64
    (tmp_path / "moved" / "foundling.json").write_text(json.dumps(about))
    other = foundling("reproduce", tmp_path / "moved", "--out", tmp_path / "other")
    assert other.returncode == 2 and "the stage 'sft' has weights" in other.stderr.splitlines()[-1]


def kill_when(command: list, reached: Callable[[], bool]) -> None:
    process = start("raise", *command, "--json")
    while process.poll() is None and not reached():
        time.sleep(0.001)
    alive = process.poll() is None
    process.send_signal(signal.SIGKILL)
    _, error = process.communicate()
    assert alive, error


def checkpoints(run: Path) -> Callable[[], bool]:
    return lambda: len(list((run / "run" / "checkpoints").glob("step-*"))) >= 2


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["base", "questions", "sft", "dpo", "between"])
def test_it_resumes_after_a_kill_in_any_stage(stage: str, model: Path, args: list, tmp_path: Path) -> None:
    out = tmp_path / "broken"
    reached = {
        "base": checkpoints(out / "stages" / "base"),
        "questions": (out / "stages" / "questions").exists,
        "sft": checkpoints(out / "stages" / "sft"),
        "dpo": checkpoints(out),
        "between": (out / "stages" / "base" / "foundling.json").exists,
    }[stage]
    kill_when([*args, "--out", out], reached)
    refused = foundling("raise", *args, "--out", out)
    assert refused.returncode == 2 and "--resume" in refused.stderr
    assert foundling("raise", "--out", out, "--resume").returncode == 0
    assert weights(out) == weights(model)
    for name in ("base", "sft"):
        assert weights(out / "stages" / name) == weights(model / "stages" / name)
    assert not (out / "run").exists()
    assert {stage["name"] for stage in json.loads((out / "report.json").read_text())["stages"]} == {
        "base",
        "sft",
        "dpo",
    }


@pytest.mark.slow
def test_a_signal_says_how_to_go_on_with_the_whole(args: list, tmp_path: Path) -> None:
    out = tmp_path / "stopped"
    process = start("raise", *args, "--out", out)
    while process.poll() is None and not checkpoints(out / "stages" / "sft")():
        time.sleep(0.001)
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate()
    assert process.returncode == 75 and f"foundling raise --out {out} --resume" in error
    assert foundling("raise", "--out", out, "--resume").returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize("family", ["mamba2", "gpt2"])
def test_questions_come_from_the_text_itself(family: str, tmp_path: Path) -> None:
    text, animals = tmp_path / "text", ("cat", "dog", "owl", "fox", "hen", "bee", "ant", "cow")
    text.mkdir()
    for i in range(60):
        animal, food = animals[i % 8], animals[(i // 8 + i + 1) % 8]
        lines = [f"Number{i} is a small {animal} of the farm that likes every {food}, and it sleeps in house {i}."]
        (text / f"{i:03d}.txt").write_text("\n\n".join([f"# Animal {i}", *lines]) + "\n")
    settings = [each if each != "320" else "512" for each in TINY]
    out = tmp_path / "model"
    raised(text, "--align", *settings, "--family", family, "--out", out, timeout=900)
    groups = {r["task"] for r in manifest(out)["result"]["results"] if r["task"].startswith("held-out questions")}
    assert "held-out questions, in a text, answered exactly" in groups
    assert "held-out questions, from memory, answered exactly" in groups


@pytest.mark.slow
def test_the_whole_is_planned_ahead(folder: Path, args: list) -> None:
    data, _, chats, *_ = args
    done = foundling("plan", "optimal", data, "--tokens", "4096", "--align", chats, "--threads", "1", "--json")
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)["plan"]
    assert list(plan["stages"]) == ["base", "sft", "dpo"] and plan["stages"]["sft"]["epochs"] == 3
    assert plan["seconds"] == pytest.approx(sum(stage["seconds"] for stage in plan["stages"].values()), abs=0.11)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("{text}", "--align", "--family", "bert"), "needs a model that writes chats, 'bert' does not"),
        (("{text}", "--align"), "too few to align a model by (200): give chats of your own with --align CHATS.jsonl"),
        (("--align", "{text}"), "is no file of chats"),
        (("{text}", "--align", "{few}"), "holds 5 chats"),
        (("{text}", "--align", "{long}"), "short enough for the model"),
        (("--align", "--resume"), "leave out align"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(more: tuple, message: str, folder: Path, args: list, tmp_path: Path) -> None:
    long = folder / "long.jsonl"
    long.write_text("".join(json.dumps({"prompt": f"{i} " * 200, "completion": "a"}) + "\n" for i in range(40)))
    paths = {"text": args[0], "few": write_chats(folder / "few.jsonl", 5), "long": long}
    settings = [] if "--resume" in more else TINY
    words = [word.format(**paths) for word in more]
    done = foundling("raise", *words, *settings, "--out", tmp_path / "refused")
    assert done.returncode == 2 and message in done.stderr.splitlines()[-1], done.stderr
    assert not (tmp_path / "refused").exists() or not files(tmp_path / "refused")


def test_a_request_says_what_align_is() -> None:
    with pytest.raises(ConfigError, match="align is 3, expected a file of chats"):
        Request("data", align=3)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ConfigError, match="for the command 'raise'"):
        Request("data", command="finetune", align="")
