# SPDX-License-Identifier: Apache-2.0
"""The stages of `foundling align` one on the other by their default method: each takes the directory that the one
before wrote, an adapter, and writes a whole model that loads wherever a model does."""

import json
from pathlib import Path

import pytest

import foundling as library
from foundling.weights.directory import weights_hash
from tests.e2e.test_align import aligned
from tests.e2e.test_finetune import SETTINGS, save_base, write_chats
from tests.e2e.tools import foundling, kill_after_checkpoint, weights

PLAIN = ("--chat-template", "plain")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("stages")


@pytest.fixture(scope="module")
def comparisons(folder: Path) -> Path:
    file = folder / "comparisons.jsonl"
    rows = [{"prompt": f"{i}: Rome", "chosen": "Rome, please", "rejected": "Rome, now"} for i in range(40)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.fixture(scope="module")
def demonstrated(folder: Path) -> Path:
    """The adapter that `align sft` writes."""
    out = folder / "sft"
    aligned("sft", save_base(folder), write_chats(folder), "--epochs", "1", *PLAIN, "--out", out)
    assert (out / "adapter_config.json").is_file() and not (out / "config.json").exists()
    return out


def merged_hash(adapter: Path, out: Path) -> str:
    done = foundling("merge", adapter, "--out", out)
    assert done.returncode == 0, done.stderr
    return weights_hash(library.load(out))


def test_a_policy_starts_from_an_adapter(demonstrated: Path, comparisons: Path, folder: Path) -> None:
    args, out = ["dpo", demonstrated, comparisons, "--epochs", "2"], folder / "dpo"
    done = foundling("align", *args, *SETTINGS, "--out", out)
    assert done.returncode == 0, done.stderr
    assert "is an adapter: training starts from it merged into its base, and saves a whole model" in done.stderr
    about = json.loads((out / "foundling.json").read_text())
    start = about["recipe"]["model"]["weights_hash"]
    assert start == merged_hash(demonstrated, folder / "merged")
    own = json.loads((demonstrated / "foundling.json").read_text())["weights_hash"]
    assert about["parents"] == [{"name": "sft", "weights_hash": start, "adapter": own}]
    assert (out / "config.json").is_file() and not (out / "adapter_config.json").exists()
    assert weights(out) != start
    talk = foundling("chat", out, "--temperature", "0", "--max-tokens", "4", "--json", input="1: Rome\n")
    assert talk.returncode == 0 and json.loads(talk.stdout)["kind"] == "instruct model", talk.stderr
    assert foundling("check", out).returncode == 0
    family = foundling("lineage", folder, "--json")
    assert family.returncode == 0, family.stderr
    edges = {(edge["source"], edge["target"]): edge["relation"] for edge in json.loads(family.stdout)["edges"]}
    assert edges[own, about["weights_hash"]] == "finetuned from"
    moved = folder / "elsewhere" / "sft"
    moved.parent.mkdir()
    demonstrated.rename(moved)
    try:
        lost = foundling("reproduce", out, "--out", folder / "again")
        assert lost.returncode == 2 and "--parent DIR" in lost.stderr, lost.stderr
        (folder / "base").rename(folder / "elsewhere" / "base")
        again = foundling("reproduce", out, "--parent", moved, "--out", folder / "again", "--json")
        assert again.returncode == 0 and json.loads(again.stdout)["identical"], again.stderr
    finally:
        moved.rename(demonstrated)
        (folder / "elsewhere" / "base").rename(folder / "base")


@pytest.mark.slow
def test_a_reward_model_starts_from_an_adapter(demonstrated: Path, comparisons: Path, folder: Path) -> None:
    args, out, broken = ["reward", demonstrated, comparisons, "--epochs", "4"], folder / "reward", folder / "broken"
    result = aligned(*args, "--out", out)
    assert result["actual"]["accuracy"] > 0.9
    scored = foundling("classify", out, "7: Rome", "--pair", "Rome, please", "--json")
    assert scored.returncode == 0 and "value" in json.loads(scored.stdout)["results"][0], scored.stderr
    assert foundling("check", out).returncode == 0
    kill_after_checkpoint([*args, "--out", broken, *SETTINGS, "--checkpoint-every", "4"], broken, "align")
    assert foundling("align", "reward", "--out", broken, "--resume").returncode == 0
    assert weights(broken) == weights(out)
    again = foundling("reproduce", out, "--out", folder / "again-reward", "--json")
    assert again.returncode == 0 and json.loads(again.stdout)["identical"], again.stderr


def test_a_soft_prompt_is_not_put_before_an_adapter(demonstrated: Path, comparisons: Path, folder: Path) -> None:
    done = foundling("align", "dpo", demonstrated, comparisons, "--method", "prompt", "--out", folder / "refused")
    assert done.returncode == 2 and "foundling merge" in done.stderr.splitlines()[-1]
    assert not (folder / "refused").exists()
