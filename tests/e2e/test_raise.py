# SPDX-License-Identifier: Apache-2.0
"""The main job from the command line: raised, checked, loaded elsewhere, continued, reproduced."""

import json

import pytest
import torch

import foundling as library
from foundling.models import FAMILIES
from foundling.text import Tokenizer
from tests.contract.matrix import families
from tests.e2e.tools import TINY, corpus, files, foundling, raised, weights
from tests.rounding import close


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """One raised model for the module: (directory, what --json printed)."""
    root = tmp_path_factory.mktemp("raised")
    corpus(root / "data")
    out = root / "model"
    return out, raised(root / "data", "--tokens", "3072", *TINY, "--out", out, "--licence", "CC0-1.0")


def test_json_has_what_scripts_need(model) -> None:
    out, result = model
    assert result["model_dir"] == str(out) and result["tokens"] == 24 * 4 * 32
    for side in ("predicted", "actual"):
        figures = result[side]
        assert all(figures[k] > 0 for k in ("seconds", "peak_bytes", "loss", "bits_per_byte")), figures
        assert figures["joules"]["value"] > 0 and figures["joules"]["source"].split(":")[0] in ("estimate", "counter")
    assert all(result["baselines"][k] > 0 for k in ("gzip", "xz", "ngram"))
    parameters = sum(p.numel() for p in library.load(out).parameters())
    assert result["params"] == parameters


def test_the_directory_is_whole_and_nothing_else_is_left(model) -> None:
    out, _ = model
    names = {p.name for p in out.iterdir()} - {".lock"}
    assert names == {
        "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "generation_config.json",
        "README.md", "foundling.json", "report.html", "report.json", "log.jsonl",
    }  # fmt: skip
    done = foundling("check", out, "--json")
    assert done.returncode == 0 and json.loads(done.stdout)["ok"]
    log = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert [e["step"] for e in log] == list(range(1, 25)) and log[-1]["loss"] < log[0]["loss"]
    assert "CC0-1.0" in (out / "README.md").read_text()


def test_one_flipped_byte_is_named_with_exit_code_2(model, tmp_path) -> None:
    out, _ = model
    for name, data in files(out).items():
        (tmp_path / name).write_bytes(data)
    file = tmp_path / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 4
    file.write_bytes(data)
    done = foundling("check", tmp_path)
    assert done.returncode == 2 and "model.safetensors: damaged" in done.stderr and done.stderr.count("\n") == 1


@torch.inference_mode()
def test_transformers_reads_it_with_the_same_logits(model) -> None:
    transformers = pytest.importorskip("transformers")
    out, _ = model
    theirs, tokenizer = (
        transformers.AutoModelForCausalLM.from_pretrained(out),
        transformers.AutoTokenizer.from_pretrained(out),
    )
    ours = library.load(out)
    ids = tokenizer("0.1 the model reads data", return_tensors="pt")["input_ids"]
    assert ids[0].tolist() == Tokenizer.load(out).encode_framed("0.1 the model reads data")
    a, b = ours.logits(ours(ids).hidden), theirs(ids).logits
    close(a, b)


def test_generate_and_chat_continue_text(model) -> None:
    out, _ = model
    calls = [
        foundling("generate", out, "--prompt", "0.1 the", "--max-tokens", "9", "--seed", "3", "--json") for _ in "ab"
    ]
    answers = [json.loads(c.stdout) for c in calls]
    assert answers[0] == answers[1] and answers[0]["answers"][0]["tokens"] <= 9
    plain = foundling("generate", out, "--prompt", "0.1 the", "--max-tokens", "9", "--seed", "3")
    assert plain.stdout == "0.1 the" + answers[0]["answers"][0]["text"] + "\n"
    chat = foundling("chat", out, "--max-tokens", "5", input="0.1 the\na model\n")
    assert chat.returncode == 0 and "base model" in chat.stderr
    assert chat.stdout.startswith("0.1 the") and "a model" in chat.stdout


def test_reproduce_gives_the_same_weights_and_refuses_other_data(model, tmp_path) -> None:
    out, _ = model
    other = corpus(tmp_path / "other", documents=59)
    refused = foundling("reproduce", out, "--data", other, "--out", tmp_path / "again")
    assert refused.returncode == 2 and "--data" in refused.stderr
    assert refused.stderr.splitlines()[-1].startswith("foundling")
    again = foundling("reproduce", out, "--out", tmp_path / "again", "--json", fresh=True)  # now with the right data
    assert again.returncode == 0, again.stderr
    result = json.loads(again.stdout)
    assert result["identical"] and weights(tmp_path / "again") == weights(out)
    changed = json.loads((out / "foundling.json").read_text())
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "foundling.json").write_text(
        json.dumps(changed | {"code": {"version": "0.0.1", "sha256": "0" * 64}})
    )
    refused = foundling("reproduce", tmp_path / "old")
    assert refused.returncode == 2 and "0.0.1" in refused.stderr


DECODERS = [name for name, entry in FAMILIES.items() if entry.kind == "decoder" and name != "llama"]


@pytest.mark.parametrize("family", families(DECODERS, ()))
def test_every_decoder_is_raised_by_the_same_command(family: str, tmp_path) -> None:
    data = corpus(tmp_path / "data")
    result = raised(data, "--tokens", "3072", *TINY, "--family", family, "--out", tmp_path / "out")
    assert json.loads((tmp_path / "out" / "foundling.json").read_text())["recipe"]["model"]["family"] == family
    assert result["actual"]["bits_per_byte"] > 0 and foundling("check", tmp_path / "out").returncode == 0
    done = foundling("generate", tmp_path / "out", "--prompt", "data", "--json")
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_a_pruned_model_recovers_and_its_zeros_stay(model, tmp_path) -> None:
    out, _ = model
    done = foundling("prune", out, "--share", "2:4", "--out", tmp_path / "pruned", "--json")
    assert done.returncode == 0 and json.loads(done.stdout)["zeros"] >= 0.5, done.stderr
    shape = ("--d-model", "32", "--n-layers", "2", "--vocab-size", "320")
    more = [word for i, word in enumerate(TINY) if not {word, TINY[i - 1]} & set(shape[::2])]
    raised(
        out.parent / "data", "--from", tmp_path / "pruned", *more, "--out", tmp_path / "recovered",
    )  # fmt: skip
    before, after = library.load(tmp_path / "pruned"), library.load(tmp_path / "recovered")
    for (name, a), (_, b) in zip(before.named_parameters(), after.named_parameters(), strict=True):
        assert not torch.equal(a, b), f"{name} is trained"
        if name.startswith("layers.") and a.ndim == 2:
            assert torch.equal(a == 0, b == 0) and (a == 0).float().mean() == 0.5, name
    assert "pruned" in json.loads((tmp_path / "recovered" / "foundling.json").read_text())
    again = foundling("reproduce", tmp_path / "recovered", "--out", tmp_path / "again", "--json")
    assert again.returncode == 0 and json.loads(again.stdout)["identical"], again.stderr
