# SPDX-License-Identifier: Apache-2.0
"""Merged model directories: what is computed, in which type, what goes along, and what is refused."""

import json
import shutil

import pytest
import torch

from foundling.adapt.combine import slerp, task, ties
from foundling.cli import main
from foundling.errors import ConfigError, MismatchError, WeightsError
from foundling.text import Tokenizer
from foundling.weights import combine as combined
from foundling.weights.combine import CombineOptions, combine
from foundling.weights.directory import load, save, weights_hash
from foundling.weights.manifest import check, read_manifest
from foundling.weights.tensors import open_safetensors
from tests.contract.cases import case
from tests.contract.matrix import families


def text(seed: int) -> str:
    return " ".join(f"word{(seed + i * i) % 97}" for i in range(400)) + "\n"


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    """Two models and their base, in bfloat16, with a tokenizer and a chat template."""
    folder, tokenizer = tmp_path_factory.mktemp("three"), Tokenizer.train([text(0)] * 5, 320)
    for seed, name in enumerate(("base", "a", "b")):
        save(case("llama").tiny(seed, vocab_size=320).bfloat16(), folder / name, tokenizer=tokenizer)
        (folder / name / "chat_template.jinja").write_text("{{ messages }}")
        (folder / name / "README.md").write_text("A card of one parent")
    return [folder / name for name in ("a", "b")], folder / "base"


METHODS = {
    "average": (CombineOptions(weights=(1.0, 3.0)), lambda base, a, b: a.float() / 4 + b.float() * 3 / 4),
    "slerp": (CombineOptions("slerp", (0.75, 0.25)), lambda base, a, b: slerp(a, b, 0.25)),
    "ties": (CombineOptions("ties", density=0.5), lambda base, a, b: ties(base, [a, b], [1.0, 1.0], 0.5)),
    "task": (CombineOptions("task", (0.4, -0.2)), lambda base, a, b: task(base, [a, b], [0.4, -0.2])),
}


@pytest.mark.parametrize("method", METHODS)
def test_a_merged_directory_is_whole(method: str, three, tmp_path, monkeypatch) -> None:
    models, base = three
    options, expected = METHODS[method]
    monkeypatch.setattr(combined, "MAX_SHARD_BYTES", 200_000)
    done = combine(models, tmp_path / "out", options, base=base if method in ("ties", "task") else None)
    assert check(tmp_path / "out")["ok"] and len(list((tmp_path / "out").glob("*.safetensors"))) > 1
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"chat_template.jinja", "tokenizer.json", "generation_config.json"} <= names and "README.md" not in names
    found = load(tmp_path / "out", dtype=torch.bfloat16)
    read = [dict(load(path, dtype=torch.bfloat16).named_parameters()) for path in (base, *models)]
    for name, p in found.named_parameters():
        assert torch.equal(p, expected(*(model[name].detach() for model in read)).bfloat16()), name
    manifest = read_manifest(tmp_path / "out")
    assert manifest["weights_hash"] == weights_hash(found)
    parents = {parent["name"]: parent["weights_hash"] for parent in manifest["parents"]}
    assert parents == {
        path.name: read_manifest(path)["weights_hash"] for path in ([base] * (len(parents) > 2) + models)
    }
    assert done["parents"] == manifest["parents"] and manifest["merge"]["method"] == method


@pytest.mark.parametrize("name", families(["gpt2", "mixtral", "bert", "t5", "clip", "jamba"], quick=("mixtral",)))
def test_every_layout_of_tensors_is_merged(name: str, tmp_path) -> None:
    of = case(name)
    for seed, folder in enumerate("ab"):
        save(of.tiny(seed), tmp_path / folder)
    combine([tmp_path / "a", tmp_path / "b"], tmp_path / "out", CombineOptions())
    found, (a, b) = load(tmp_path / "out"), (load(tmp_path / f) for f in "ab")
    for n, p in found.named_parameters():
        torch.testing.assert_close(p, (a.get_parameter(n) + b.get_parameter(n)) / 2, rtol=1e-6, atol=1e-7)
    assert read_manifest(tmp_path / "out")["weights_hash"] == weights_hash(found)
    combine([tmp_path / "a", tmp_path / "a"], tmp_path / "same", CombineOptions("slerp"))
    assert weights_hash(load(tmp_path / "same")) == weights_hash(a), "a model merged with itself"


def test_a_parent_without_a_manifest_is_named_by_its_hash_too(three, tmp_path) -> None:
    (a, b), _ = three
    shutil.copytree(a, tmp_path / "a")
    (tmp_path / "a" / "foundling.json").unlink()
    combine([tmp_path / "a", b], tmp_path / "out", CombineOptions())
    first = read_manifest(tmp_path / "out")["parents"][0]
    assert first == {"name": "a", "weights_hash": weights_hash(load(a, dtype=torch.bfloat16))}


@pytest.mark.parametrize(
    ("options", "with_base", "error", "message"),
    [
        (CombineOptions("ties"), False, ConfigError, "--base DIR"),
        (CombineOptions("average"), True, ConfigError, "leave --base out"),
        (CombineOptions("task"), True, ConfigError, "needs weights"),
        (CombineOptions(weights=(1.0,)), False, ConfigError, "1 weights for 2 models"),
    ],
)
def test_options_that_do_not_go_together(options, with_base, error, message, three, tmp_path) -> None:
    models, base = three
    with pytest.raises(error, match=message):
        combine(models, tmp_path / "out", options, base=base if with_base else None)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("bad", [{"method": "mean"}, {"density": 0.0}, {"weights": (-1.0, 2.0)}, {"weights": (0.0,)}])
def test_options_out_of_range(bad) -> None:
    with pytest.raises(ConfigError, match=r"method|density|weights"):
        CombineOptions(**bad)


def test_models_that_differ_are_refused_by_what_differs(three, tmp_path) -> None:
    (a, b), _ = three
    others = {
        "vocab_size is 320 in .* and 384": case("llama").tiny(vocab_size=384).bfloat16(),
        r"n_layers is 2 in .* and 3": case("llama").tiny(vocab_size=320, n_layers=3).bfloat16(),
        "is a llama, .* a gpt2; merge one family": case("gpt2").tiny(),
    }
    for i, (message, model) in enumerate(others.items()):
        save(model, tmp_path / f"other{i}")
        with pytest.raises(MismatchError, match=message):
            combine([a, tmp_path / f"other{i}"], tmp_path / "out", CombineOptions())
    tokenizer = Tokenizer.train([text(1) + "other words altogether"] * 5, 320)
    save(case("llama").tiny(3, vocab_size=320), tmp_path / "words", tokenizer=tokenizer)
    with pytest.raises(MismatchError, match=r"'model' of tokenizer.json differs"):
        combine([a, tmp_path / "words"], tmp_path / "out", CombineOptions())
    shutil.copytree(b, tmp_path / "damaged")
    file = tmp_path / "damaged" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(WeightsError, match="damaged"):
        combine([a, file.parent], tmp_path / "out", CombineOptions())
    assert not (tmp_path / "out").exists()


def test_the_file_is_what_the_library_would_have_written(three, tmp_path) -> None:
    models, _ = three
    combine(models, tmp_path / "out", CombineOptions())
    with open_safetensors(tmp_path / "out" / "model.safetensors") as ours:
        assert ours.metadata() == {"format": "pt"} and len(ours.keys()) > 10
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["torch_dtype" if "torch_dtype" in config else "dtype"] == "bfloat16"
    assert config == json.loads((models[0] / "config.json").read_text())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{a}", "{b}", "--weights", "0.5;0.5", "--out", "{out}"], "--weights is '0.5;0.5', expected numbers"),
        (["{a}", "{b}", "--method", "ties", "--out", "{out}"], "name it with --base DIR"),
        (["{a}", "--out", "{out}"], "not an adapter; give two models or more"),
        (["{a}", "{b}", "--out", "{a}"], "exists and is not empty"),
    ],
)
def test_the_command_refuses_in_one_line(words, message, three, tmp_path, capsys) -> None:
    (a, b), _ = three
    names = {"a": a, "b": b, "out": tmp_path / "out"}
    with pytest.raises(SystemExit) as caught:
        main(["merge", *(word.format(**names) for word in words), "--json"])
    assert caught.value.code == 2 and message in json.loads(capsys.readouterr().out)["error"]
    assert not (tmp_path / "out").exists()


def test_the_commands_merge_and_prune(three, tmp_path, capsys) -> None:
    (a, b), _ = three

    def told(*words: object) -> dict:
        with pytest.raises(SystemExit) as caught:
            main([*map(str, words), "--json"])
        out = capsys.readouterr()
        assert caught.value.code == 0, out.out
        return json.loads(out.out)

    done = told("merge", a, b, "--method", "slerp", "--weights", "0.7,0.3", "--out", tmp_path / "m")
    assert done["weights"] == [0.7, 0.3] and check(tmp_path / "m")["ok"]
    done = told("prune", tmp_path / "m", "--share", "2:4", "--out", tmp_path / "p")
    assert done["zeros"] == 0.5 and done["bytes"]["bitmask"] < 0.9 * done["bytes"]["dense"]
    assert {"chat_template.jinja", "tokenizer.json"} <= set(done["kept"]) and done["dtype"] == "bfloat16"
    manifest = read_manifest(tmp_path / "p")
    assert manifest["pruned"]["structure"] == "2:4"
    assert manifest["parents"] == [{"name": "m", "weights_hash": read_manifest(tmp_path / "m")["weights_hash"]}]
