# SPDX-License-Identifier: Apache-2.0
"""`foundling finetune` through the real command line: adapted, checked, used at once, resumed after SIGKILL,
reproduced; and what it refuses, each in one line."""

import csv
import json
import random
import shutil
from pathlib import Path

import pytest
import torch

import foundling as library
from foundling.models import build, family
from foundling.text import Tokenizer
from tests.e2e.tools import corpus, files, foundling, kill_after_checkpoint, weights

SETTINGS = ["--threads", "1", "--precision", "float32", "--batch-size", "4"]
OFTEN = [*SETTINGS, "--checkpoint-every", "2"]
"""for a run that is killed"""
CITIES = ["Oslo", "Rome", "Lima"]


def tuned(*args: object) -> dict:
    done = foundling("finetune", *args, *SETTINGS, "--json")
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("finetune")


def save_base(folder: Path) -> Path:
    """A random language model that reads 128 tokens."""
    torch.manual_seed(0)
    texts = [file.read_text(encoding="utf-8") for file in sorted(corpus(folder / "text").rglob("*.txt"))]
    model = build("llama", **family("llama").module.sized(320, 128, 32, 2))
    return library.save(model, folder / "base", tokenizer=Tokenizer.train(texts, 320))


def write_chats(folder: Path) -> Path:
    chance, file = random.Random(0), folder / "chats.jsonl"
    with file.open("w", encoding="utf-8") as out:
        for i in range(60):
            question = {"role": "user", "content": f"{i}: {chance.choice(CITIES)}"}
            answer = {"role": "assistant", "content": f"{i} yes"}
            out.write(json.dumps({"messages": [question, answer]}) + "\n")
    return file


@pytest.fixture(scope="module")
def base(folder: Path) -> Path:
    return save_base(folder)


@pytest.fixture(scope="module")
def chats(folder: Path) -> Path:
    return write_chats(folder)


@pytest.fixture(scope="module")
def labels(folder: Path) -> Path:
    chance, file = random.Random(1), folder / "labels.csv"
    with file.open("w", encoding="utf-8", newline="") as out:
        rows = csv.writer(out)
        rows.writerow(["body", "section"])
        for i in range(60):
            spam = i % 2
            rows.writerow([f"{'win win' if spam else 'dear all'} {chance.random():.3f}", "spam" if spam else "ham"])
    return file


def test_an_adapter_is_trained_killed_resumed_reproduced_and_talks(base: Path, chats: Path, folder: Path) -> None:
    args = [base, chats, "--epochs", "2"]
    out = folder / "helper"
    result = tuned(*args, "--out", out)
    about = json.loads((out / "foundling.json").read_text())
    assert about["recipe"]["objective"]["kind"] == "chat" and about["recipe"]["adapt"]["method"] == "lora"
    assert about["base"] == weights(base) and (out / "adapter_config.json").exists()
    assert result["actual"]["loss"] < result["baselines"]["before"]
    assert foundling("check", out).returncode == 0
    report = (out / "report.html").read_text()
    assert "Before and after" in report and "in the data" in report
    talk = foundling("chat", out, "--temperature", "0", "--max-tokens", "4", "--json", input="1: Rome\n")
    assert talk.returncode == 0, talk.stderr
    assert json.loads(talk.stdout)["kind"] == "instruct model" and len(json.loads(talk.stdout)["turns"]) == 1

    broken = folder / "broken"
    kill_after_checkpoint([*args, "--out", broken, *OFTEN], broken, "finetune")
    assert foundling("finetune", "--out", broken, "--resume").returncode == 0
    assert weights(broken) == weights(out)
    again = foundling("reproduce", out, "--out", folder / "again", "--json")
    assert again.returncode == 0 and json.loads(again.stdout)["identical"], again.stderr


def test_merged_is_what_the_adapter_is(base: Path, chats: Path, folder: Path) -> None:
    for name, more in (("apart", []), ("merged", ["--merged"])):
        tuned(base, chats, "--epochs", "1", "--out", folder / name, *more)
    assert (folder / "merged" / "model.safetensors").exists()
    asked = ["--prompt", "0: Rome", "--temperature", "0", "--max-tokens", "8", "--json"]
    texts = [json.loads(foundling("generate", folder / n, *asked).stdout)["answers"] for n in ("apart", "merged")]
    assert texts[0] == texts[1]


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_classifier_answers_at_once(method: str, base: Path, labels: Path, folder: Path) -> None:
    out = folder / method
    settings = [
        "--label",
        "section",
        "--field",
        "body",
        "--method",
        method,
        "--epochs",
        "6",
    ]
    result = tuned(base, labels, *settings, "--out", out)
    assert result["metric"] == "accuracy" and result["actual"]["accuracy"] > 0.8
    assert result["baselines"]["always 'ham'"] < 0.8
    answered = foundling("classify", out, "win win 0.5", "dear all 0.1", "--json")
    assert answered.returncode == 0, answered.stderr
    assert [a["label"] for a in json.loads(answered.stdout)["results"]] == ["spam", "ham"]


def test_a_classifier_begins_as_a_linear_probe(base: Path, labels: Path, folder: Path) -> None:
    """Killed and resumed, it is the same: the probe is solved again, and the checkpoint goes on from it."""
    args = [base, labels, "--label", "section", "--field", "body", "--epochs", "2"]
    out = folder / "probed"
    result = tuned(*args, "--out", out)
    assert result["baselines"]["a linear probe"] > 0.8
    report = (out / "report.html").read_text()
    assert "a linear probe" in report and "Before and after" in report
    broken = folder / "probed-broken"
    kill_after_checkpoint([*args, "--out", broken, *OFTEN], broken, "finetune")
    assert foundling("finetune", "--out", broken, "--resume").returncode == 0
    assert weights(broken) == weights(out)


def test_a_head_alone_is_solved_on_cached_features(base: Path, labels: Path, folder: Path) -> None:
    """Whatever it is told of epochs, and as the classifier of scikit-learn on the same features would be
    (tests/adapt/test_probe.py)."""
    settings = ["--label", "section", "--field", "body", "--method", "head"]
    hashes = set[str]()
    for name, more in (("probe", []), ("probe-longer", ["--epochs", "9", "--patience", "2"])):
        done = foundling("finetune", base, labels, *settings, *more, *SETTINGS, "--out", folder / name)
        result = json.loads((folder / name / "foundling.json").read_text())["result"]
        assert result["steps"] == 3 and result["actual"]["accuracy"] > 0.8, "48 examples, 16 at a time"
        assert ("train.patience" in done.stderr) == bool(more), "settings without effect are listed"
        hashes.add(weights(folder / name))
    assert len(hashes) == 1
    again = foundling("reproduce", folder / "probe", "--out", folder / "probe-again", "--json")
    assert again.returncode == 0 and json.loads(again.stdout)["identical"], again.stderr
    report = (folder / "probe" / "report.html").read_text()
    assert "Before and after" in report
    last = tuned(base, labels, *settings, "--pool", "last", "--out", folder / "probe-last")
    assert weights(folder / "probe-last") not in hashes and last["actual"]["accuracy"] > 0.5
    recipe = json.loads((folder / "probe-last" / "foundling.json").read_text())["recipe"]
    assert recipe["adapt"]["pool"] == "last" and recipe["adapt"]["probe"] is True
    (folder / "adapt.yaml").write_text(json.dumps({"adapt": recipe["adapt"]}))
    tuned(base, labels, *settings[:4], "--config", folder / "adapt.yaml", "--out", folder / "probe-again-last")
    assert weights(folder / "probe-again-last") == weights(folder / "probe-last")
    refused = foundling("finetune", base, labels, *settings, "--method", "prompt", "--pool", "everything", *SETTINGS)
    assert refused.returncode == 2


def test_a_base_without_a_chat_template_is_given_one(base: Path, chats: Path, folder: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        shutil.copy(base / name, bare)
    described = json.loads((base / "tokenizer_config.json").read_text())
    described.pop("chat_template", None)
    (bare / "tokenizer_config.json").write_text(json.dumps(described))
    refused = foundling("finetune", bare, chats, "--out", tmp_path / "refused", *SETTINGS)
    assert refused.returncode == 2 and "--chat-template plain" in refused.stderr, refused.stderr
    wrong = foundling("finetune", bare, chats, "--chat-template", "plian", "--out", tmp_path / "refused", *SETTINGS)
    assert wrong.returncode == 2 and "plian" in wrong.stderr.splitlines()[-1]
    out = tmp_path / "helper"
    tuned(bare, chats, "--chat-template", "plain", "--epochs", "1", "--out", out)
    talk = foundling("chat", out, "--temperature", "0", "--max-tokens", "4", "--json", input="1: Rome\n")
    assert talk.returncode == 0 and json.loads(talk.stdout)["kind"] == "instruct model", talk.stderr
    again = foundling("reproduce", out, "--out", tmp_path / "again", "--json")
    assert again.returncode == 0 and json.loads(again.stdout)["identical"], again.stderr


def test_the_plan_names_each_method_and_writes_nothing(base: Path, chats: Path, folder: Path, tmp_path: Path) -> None:
    before = files(folder / "base")
    done = foundling("finetune", base, chats, "--plan", *SETTINGS, "--json")
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)
    assert set(plan["methods"]) == {"full", "lora", "qlora", "prompt", "prefix", "bias", "top-k"}  # no labels: no head
    assert plan["methods"]["full"]["share"] == 1 and plan["methods"]["lora"]["share"] < 0.5
    assert all(row["peak_bytes"] > 0 and row["seconds"] > 0 for row in plan["methods"].values())
    assert files(folder / "base") == before


def test_wrong_input_is_one_line(base: Path, chats: Path, labels: Path, tmp_path: Path) -> None:
    one = tmp_path / "one.csv"
    one.write_text("text,label\n" + "".join(f"text number {i},ham\n" for i in range(40)))
    three = tmp_path / "three.csv"
    three.write_text("text,label\na b,x\nc d,y\ne f,x\n")
    (wrong := tmp_path / "wrong.jinja").write_text("{% for message in messages %}")
    for args, says in (
        ([base, one], "give examples of two classes"), ([base, three], "3 examples"),
        ([base, labels, "--label", "sektion"], "section"),
        ([base, tmp_path / "nowhere.csv"], "nowhere.csv"), ([base, chats, "--method", "head"], "head"),
        ([base, chats, "--seq-len", "4096"], "max_seq_len"),
        ([base], "DIR DATA"), ([base, chats, "--epochs", "0"], "--epochs"),
        ([base, chats, "--pool", "mean"], "--pool"), ([base, chats, "--probe", "true"], "need no head"),
        ([base, labels, "--label", "section", "--chat-template", "plain"], "--chat-template"),
        ([base, chats, "--chat-template", wrong], "--chat-template"),
    ):  # fmt: skip
        done = foundling("finetune", *args, "--out", tmp_path / "out", *SETTINGS)
        assert done.returncode == 2, (args, done.stderr)
        assert says in done.stderr.splitlines()[-1] and "Traceback" not in done.stderr, done.stderr
        assert not (tmp_path / "out").exists()
