# SPDX-License-Identifier: Apache-2.0
"""The command line with models of the hub: raised, pushed, used from there, and raised further from there."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from foundling.decode.text import TextGenerator
from foundling.errors import ConfigError, OutputError, WeightsError
from foundling.text import Tokenizer
from foundling.weights import push as push_module
from foundling.weights.convert.hugging_face import import_model
from foundling.weights.directory import save
from foundling.weights.manifest import check, write_manifest
from foundling.weights.push import push
from tests.contract.cases import case
from tests.e2e.tools import TINY, corpus, files, foundling, raised
from tests.hub import TOKEN, Hub, serving


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model directory, and in it what does not belong to the model."""
    tokenizer, tiny = Tokenizer.train(["some words of a text"] * 9, 320), case("gpt").tiny(vocab_size=320)
    model = save(tiny, tmp_path / "model", tokenizer=tokenizer)
    (model / "run").mkdir()
    (model / "run/private.txt").write_text("not to be published")
    (model / "notes.txt").write_text("not to be published either")
    return model


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "own"))
    with serving(monkeypatch, tmp_path / "cache") as hub:
        yield hub


def answer(*args: object, code: int = 0) -> dict:
    done = foundling(*args, "--json")
    assert done.returncode == code, done.stderr
    assert TOKEN not in done.stdout + done.stderr and "Traceback" not in done.stderr
    return json.loads(done.stdout)


def test_a_model_goes_to_the_hub_and_is_used_from_there(hub: Hub, model: Path, tmp_path: Path, monkeypatch) -> None:
    refused = answer("push", model, "org/notes", code=2)
    assert "HF_TOKEN" in refused["error"] and not hub.repositories
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    stale = ["chat_template.jinja", "model-00001-of-00002.safetensors"]
    hub.add("org/notes", dict.fromkeys([*stale, "pytorch_model.bin"], b"x"))
    pushed = answer("push", model, "org/notes", "--message", "first")
    listed = {name: data for name, data in files(model).items() if name not in ("notes.txt", "run/private.txt")}
    assert hub.files("org/notes") == listed | {"pytorch_model.bin": b"x"} and pushed["removed"] == stale
    assert sorted(listed) == pushed["files"] and hub.repositories["org/notes"].messages[-1] == "first"
    assert pushed["place"] == f"hf://org/notes@{hub.repositories['org/notes'].branches['main']}"

    done = foundling("generate", "hf://org/notes", "--prompt", "some", "--max-tokens", 8, "--json")
    assert done.stderr.startswith(f"note: downloading hf://org/notes at {pushed['commit'][:12]}: ")
    assert json.loads(done.stdout)["answers"] == TextGenerator.load(model).generate("some", max_tokens=8)
    assert check("hf://org/notes")["ok"] and import_model("hf://org/notes", tmp_path / "out")["family"] == "gpt"
    push(model, "org/notes", revision="v2")
    assert hub.files("org/notes", "v2") == hub.files("org/notes")
    made = push(model, "hf://org/new", private=True)
    assert hub.repositories["org/new"].private and set(hub.files("org/new")) == {*made["files"], ".gitattributes"}
    with pytest.raises(ConfigError, match="give --revision v2"):
        push(model, "hf://org/new@v2")
    with pytest.raises(ConfigError, match="not a place of the hub"):
        push(model, "org/new", revision="no such branch")
    with pytest.raises(ConfigError, match="is on the hub; give a directory"):
        push("hf://org/notes", "org/copy")


def test_what_the_hub_holds_is_compared(hub: Hub, model: Path, monkeypatch) -> None:
    """Small files too, which have git's hash there; and a push is not mixed with another one."""
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    for name in ("config.json", "model.safetensors", "foundling.json"):
        hub.replaced = {name: b"{}"}
        with pytest.raises(OutputError, match=f"{name} is not there as it is here, in commit"):
            push(model, "org/notes")
    hub.replaced = {}
    assert push(model, "org/notes")["files"]

    def ask_and_move(repository: str, revision: str) -> object:
        info = ask(repository, revision)
        hub.add("org/notes", {"README.md": b"of somebody else"})
        return info

    ask = push_module.model_info
    monkeypatch.setattr(push_module, "model_info", ask_and_move)
    with pytest.raises(OutputError, match="the branch has moved meanwhile; push again"):
        push(model, "org/notes")
    assert hub.files("org/notes") == {"README.md": b"of somebody else"}


@pytest.mark.slow
def test_training_starts_from_a_commit_of_the_hub(hub: Hub, model: Path, tmp_path: Path) -> None:
    commit = hub.add("org/notes", files(model))
    options = ["--out", tmp_path / "more", *TINY[:6], "--threads", "1", "--compile", "false", "--precision", "float32"]
    raised(corpus(tmp_path / "text"), "--from", "hf://org/notes", *options)
    hub.add("org/notes", {"README.md": b"moved on"})
    manifest = json.loads((tmp_path / "more/foundling.json").read_text())
    place = f"hf://org/notes@{commit}"
    assert manifest["recipe"]["model"]["directory"] == manifest["parents"][0]["name"] == place
    assert manifest["request"]["given"]["model"]["directory"] == place
    again = answer("reproduce", tmp_path / "more")
    assert again["identical"], "from that commit, whatever the branch is now"


def test_the_way_out_is_one_line(hub: Hub, model: Path, tmp_path: Path, monkeypatch) -> None:
    done = foundling("generate", "hf://org/missing")
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert "hf://org/missing: no such repository" in done.stderr
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with pytest.raises(WeightsError, match=r"no foundling\.json"):
        push(tmp_path, "org/notes")
    config = (model / "config.json").read_bytes()
    (model / "config.json").write_text("{}")
    with pytest.raises(WeightsError, match=r"config\.json: damaged"):
        push(model, "org/notes")
    (model / "config.json").write_bytes(config)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "HF_HUB_OFFLINE" in answer("push", model, "org/notes", code=2)["error"]
    assert not hub.repositories


def test_an_edited_model_card_is_uploaded(hub: Hub, model: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    (model / "notes.txt").unlink()
    for name in ("README.md", "LICENSE"):
        (model / name).write_text("as it was")
    write_manifest(model, {})
    (model / "README.md").write_text("# My own card")
    (model / "LICENSE").unlink()
    push(model, "org/notes")
    there = hub.files("org/notes")
    assert there["README.md"] == b"# My own card" and "LICENSE" not in there
    (model / "README.md").unlink()
    (tmp_path / "secret").write_text("not to be published")
    (model / "README.md").symlink_to(tmp_path / "secret")
    with pytest.raises(WeightsError, match=r"README\.md: is a link"):
        push(model, "org/notes")
