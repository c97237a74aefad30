# SPDX-License-Identifier: Apache-2.0
"""GGUF files of Qwen 2, Qwen 3 with experts, Phi 3 and Gemma: as they were after a round trip, and as transformers' own
reader has them."""

import json
import re
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch

from benchmarks import gguf_parity
from foundling.blocks.position import RopeScaling
from foundling.errors import WeightsError
from foundling.text import Tokenizer
from foundling.weights.convert.gguf import load_gguf, save_gguf
from foundling.weights.convert.gguf_families import ARCHITECTURES
from tests.contract.cases import case
from tests.rounding import close

ROOT = Path(__file__).resolve().parents[2]
LINEAR = RopeScaling("linear", 4.0)
SHAPES: list[tuple[str, dict[str, Any]]] = [
    ("qwen2", {"n_kv_heads": 1, "head_dim": 64}),
    ("qwen2", {"tie_embeddings": True, "rope_theta": 5e5, "rope_scaling": LINEAR}),
    ("qwen3_moe", {"n_kv_heads": 1, "head_dim": 64, "n_experts": 5}),
    ("phi3", {"n_kv_heads": 1, "window": 9}),
    ("phi3", {"window": None}),
    ("gemma", {"n_kv_heads": 1, "head_dim": 64, "tie_embeddings": True}),
]


@pytest.mark.parametrize(("name", "fields"), SHAPES)
def test_a_round_trip_is_that_model(tmp_path: Path, name: str, fields: dict[str, Any]) -> None:
    model = case(name).tiny(**fields)
    again = load_gguf(save_gguf(model, tmp_path / "m.gguf"))
    assert again.config == model.config
    for (key, a), (other, b) in zip(model.named_parameters(), again.named_parameters(), strict=True):
        # a gain of Gemma is stored with the 1 that it is added to
        assert key == other and (torch.equal(a, b) or (name == "gemma" and "norm" in key and torch.allclose(a, b))), key


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("qwen2", {"n_kv_heads": 1}),
        ("qwen3_moe", {"n_kv_heads": 1, "head_dim": 64, "d_expert": 768, "n_layers": 1}),
        ("phi3", {"n_kv_heads": 1}),
    ],
)
def test_transformers_reads_the_same_model(tmp_path: Path, name: str, fields: dict[str, Any]) -> None:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    model = case(name).tiny(vocab_size=320, **fields)
    save_gguf(model, tmp_path / "m.gguf", tokenizer=Tokenizer.train(["some text, any text\n"] * 5, 320))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="m.gguf").eval()
    for module in theirs.modules():  # what llama.cpp computes, and their reader leaves out, as it does d_expert
        if hasattr(module, "norm_topk_prob"):
            module.norm_topk_prob = True
    ids = torch.tensor([[3, 9, 27, 17, 51, 25, 11]])
    with torch.no_grad():
        close(model.logits(model(ids).hidden), theirs(ids).logits)


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("qwen2", {"windowed": True, "window_starts_at": 0}, "windowed False; this has True"),
        ("qwen2", {"rope_scaling": RopeScaling("dynamic", 4.0)}, "does not scale rotary positions as dynamic"),
        ("qwen3_moe", {"normalised": False}, "normalised True; this has False"),
        ("qwen3_moe", {"moe_period": 2}, "moe_period 1; this has 2"),
        ("qwen3_moe", {"dense_at": (0,)}, r"dense_at \(\); this has \(0,\)"),
        ("gpt_oss", {}, "not for gpt_oss"),
        ("phi3", {"rope_fraction": 0.5}, "rope_fraction 1.0; this has 0.5"),
        ("gemma", {"tie_embeddings": False}, "has never a head"),
    ],
)
def test_what_llama_cpp_would_compute_otherwise_is_not_written(
    tmp_path: Path, name: str, fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(WeightsError, match=message):
        save_gguf(case(name).tiny(**fields), tmp_path / "m.gguf")
    assert not list(tmp_path.iterdir())


def test_documents_and_benchmark_have_every_architecture() -> None:
    text = (ROOT / "docs" / "conversion.md").read_text(encoding="utf-8")
    (listed,) = re.findall(r"^Architectures: (.*?), from one table each", text, re.MULTILINE | re.DOTALL)
    named = [part.split()[0] for part in re.sub(r"\([^)]*\)", "", listed).split(",")]
    assert named == list(dict.fromkeys(one.name for one in ARCHITECTURES))
    measured = {case.split()[0] for case in gguf_parity.FAMILIES}
    assert measured == {one.family for one in ARCHITECTURES}
    found = json.loads((ROOT / "docs" / "results" / "gguf.json").read_text(encoding="utf-8"))["families"]
    assert found.keys() == gguf_parity.FAMILIES.keys()
    said = re.findall(r"at most (\S+) of the largest logit \(Gemma: up to (\S+),", text)
    gemma = max(value for case, value in found.items() if case.startswith("gemma"))
    others = max(value for case, value in found.items() if not case.startswith("gemma"))
    assert others <= float(said[0][0]) and f"{gemma:.1e}" == f"{float(said[0][1]):.1e}"
    assert gguf_parity.rounded({"a": {"b": 0.00123456}, "c": True, "d": "x"}) == {
        "a": {"b": 0.00123},
        "c": True,
        "d": "x",
    }


def test_factors_of_longrope_are_refused(tmp_path: Path) -> None:
    save_gguf(case("phi3").tiny(), tmp_path / "a.gguf")
    reader, writer = gguf.GGUFReader(tmp_path / "a.gguf"), gguf.GGUFWriter(tmp_path / "b.gguf", "phi3")
    for name, field in reader.fields.items():
        if name.startswith("phi3."):
            value = field.contents()
            (writer.add_float32 if isinstance(value, float) else writer.add_uint32)(name, value)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data)
    writer.add_tensor("rope_factors_long.weight", torch.ones(16).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(WeightsError, match=r"unknown tensor 'rope_factors_long\.weight'"):
        load_gguf(tmp_path / "b.gguf")
