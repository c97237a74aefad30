# SPDX-License-Identifier: Apache-2.0
"""`foundling merge ADAPTER --out DIR`: the numbers, the type, the files and the parents of what it writes."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import foundling
from foundling.adapt.added import adapter_tensors
from foundling.adapt.lora import LoRAOptions, lora
from foundling.adapt.nf4 import from_nf4, to_nf4
from foundling.adapt.quantize import quantize
from foundling.adapt.soft import prompt_tuning
from foundling.runtime.rng import generator
from foundling.text import Tokenizer
from foundling.weights.adapters import save_adapter
from foundling.weights.directory import weights_hash
from foundling.weights.loading import load
from foundling.weights.manifest import MANIFEST, check
from tests.contract.cases import case
from tests.e2e.test_bad_input import fails
from tests.e2e.test_exchange_commands import told

Q, NARROW = "layers.0.mixer.q", "layers.*.mixer.[qv]"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A tiny Llama in bfloat16 with the files of a chat model."""
    model = case("llama").tiny().bfloat16()
    tokenizer = Tokenizer.train(["some text\n"] * 5, 320)
    folder = foundling.save(model, tmp_path / "base", tokenizer=tokenizer)
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    (folder / MANIFEST).unlink()  # as downloaded
    return folder


def adapter(model: Any, folder: Path, **options: Any) -> dict[str, torch.Tensor]:
    """Saves an adapter of all projections beside the attention's, with learnt numbers; returns those."""
    lora(model, LoRAOptions(rank=4, alpha=8.0, **options), generator("lora"))
    for name, p in adapter_tensors(model).items():
        p.data.normal_(std=0.1, generator=generator(name))
    save_adapter(model, folder, about={"recipe": {"objective": {"kind": "chat"}}})
    return {name: p.detach().float() for name, p in adapter_tensors(model).items()}


@pytest.mark.parametrize("trained", [torch.float32, torch.bfloat16])
def test_lora_is_added_in_float32_and_written_in_the_type_of_the_base(base, tmp_path, capsys, trained) -> None:
    model = load(base, dtype=trained)
    learnt = adapter(model, tmp_path / "adapter")
    said = told(capsys, "merge", tmp_path / "adapter", "--out", tmp_path / "merged")
    assert said["dtype"] == "bfloat16" and said["out"] == str(tmp_path / "merged")
    plain, merged = load(base), load(tmp_path / "merged")
    total = plain.get_submodule(Q).weight + 8 / 4 * learnt[f"{Q}.b"] @ learnt[f"{Q}.a"]
    assert torch.equal(merged.get_submodule(Q).weight, total.bfloat16().float())
    assert torch.equal(merged.embedding.weight, plain.embedding.weight)
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["dtype"] == "bfloat16"
    assert check(tmp_path / "merged")["ok"]
    for name in ("tokenizer.json", "chat_template.jinja", "generation_config.json"):
        assert (tmp_path / "merged" / name).read_bytes() == (base / name).read_bytes()
    manifest = json.loads((tmp_path / "merged" / MANIFEST).read_text())
    assert [parent["name"] for parent in manifest["parents"]] == ["base", "adapter"]
    assert manifest["parents"][0]["weights_hash"] == weights_hash(load(base, dtype=torch.bfloat16))
    assert manifest["recipe"] == {"objective": {"kind": "chat"}}
    assert manifest["weights_hash"] == weights_hash(load(tmp_path / "merged", dtype=torch.bfloat16))


def test_what_is_left_quantised_is_dequantised(base, tmp_path, capsys) -> None:
    model = load(base)
    quantize(model, "layers.*", "nf4")
    learnt = adapter(model, tmp_path / "adapter", pattern=NARROW)
    told(capsys, "merge", tmp_path / "adapter", "--out", tmp_path / "merged")
    plain, merged = load(base), load(tmp_path / "merged")
    for name in (Q, "layers.1.ffn.down"):
        weight = plain.get_submodule(name).weight
        expected = from_nf4(to_nf4(weight), weight.shape, torch.float32)
        if name == Q:
            expected = expected + 2 * learnt[f"{Q}.b"] @ learnt[f"{Q}.a"]
        assert torch.equal(merged.get_submodule(name).weight, expected.bfloat16().float()), name


def test_files_of_the_adapter_come_first(base, tmp_path, capsys) -> None:
    """A tokenizer of its own comes with its own template; what says how to sample may be the base's."""
    adapter(load(base), tmp_path / "adapter")
    (tmp_path / "adapter" / MANIFEST).unlink()
    Tokenizer.train(["other words\n"] * 5, 320).save(tmp_path / "adapter")
    told(capsys, "merge", tmp_path / "adapter", "--out", tmp_path / "merged")
    assert (tmp_path / "merged" / "tokenizer.json").read_bytes() == (
        tmp_path / "adapter" / "tokenizer.json"
    ).read_bytes()
    assert not (tmp_path / "merged" / "chat_template.jinja").exists()
    assert (tmp_path / "merged" / "generation_config.json").read_bytes() == (
        base / "generation_config.json"
    ).read_bytes()


def test_what_cannot_be_merged_writes_nothing(base, tmp_path, capsys) -> None:
    model = load(base)
    prompt_tuning(model, 2, generator("prompt"))
    save_adapter(model, tmp_path / "prompt")
    for place, words in ((tmp_path / "prompt", "cannot be merged"), (base, "not an adapter")):
        assert words in fails(capsys, "merge", place, "--out", tmp_path / "merged")
        assert not (tmp_path / "merged").exists()
