# SPDX-License-Identifier: Apache-2.0
"""Quantised checkpoints are refused by name, whatever tells it: config.json, a file beside it, tensors. Layouts are
those that the libraries write."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from foundling.errors import WeightsError
from foundling.models import FAMILIES, family
from foundling.weights.convert.hugging_face import import_model
from foundling.weights.directory import load, save
from foundling.weights.inspect import inspect
from foundling.weights.quantised import SIGNS
from tests.contract.cases import case

PROJECTION = "model.layers.0.self_attn.q_proj"
WIDE, I32 = (64, 64), torch.int32
WORDS, SCALES = torch.zeros(8, 64, dtype=I32), torch.ones(2, 64, dtype=torch.float16)
BYTES, EIGHT = torch.zeros(64, 32, dtype=torch.uint8), torch.zeros(WIDE, dtype=torch.int8)
ZEROS = torch.zeros(2, 8, dtype=I32)
FP8 = torch.zeros(WIDE).to(torch.float8_e4m3fn)

LAYOUTS: dict[str, tuple[str, dict[str, Tensor]]] = {
    "awq": ("AWQ", {"qweight": torch.zeros(64, 8, dtype=I32), "qzeros": ZEROS, "scales": SCALES}),
    "gptq": ("GPTQ", {"qweight": WORDS, "qzeros": ZEROS, "scales": SCALES, "g_idx": torch.zeros(64, dtype=I32)}),
    "bitsandbytes 8 bits": ("bitsandbytes", {"weight": EIGHT, "SCB": torch.ones(64)}),
    "bitsandbytes 4 bits": (
        "bitsandbytes",
        {
            "weight": torch.zeros(2048, 1, dtype=torch.uint8), "weight.absmax": torch.ones(64),
            "weight.quant_map": torch.ones(16),
            "weight.quant_state.bitsandbytes__nf4": torch.zeros(80, dtype=torch.uint8),
        },
    ),
    "DeepSeek": ("DeepSeek", {"weight": FP8, "weight_scale_inv": torch.ones(1, 1)}),
    "compressed-tensors": ("compressed-tensors", {"weight": FP8, "weight_scale": torch.ones(64, 1)}),
    "compressed-tensors 4 bits": (
        "compressed-tensors",
        {"weight_packed": WORDS, "weight_scale": SCALES, "weight_shape": torch.tensor(WIDE)},
    ),
    "eight-bit floats alone": ("F8_E4M3", {"weight": FP8}),
    "five bits of exponent": ("F8_E5M2", {"weight": torch.zeros(WIDE).to(torch.float8_e5m2)}),
    "integers alone": ("I8", {"weight": EIGHT}),
    "mxfp4": ("MXFP4", {"weight_blocks": BYTES.view(64, 2, 16), "weight_scales": BYTES[:, :2].clone()}),
    "hqq": ("HQQ", {"W_q": BYTES, "meta": torch.zeros(4)}),
    "quanto": ("quanto", {"weight._data": EIGHT, "weight._scale": torch.ones(64, 1)}),
    "torchao": ("torchao", {"_weight_qdata": EIGHT, "_weight_scale": torch.ones(64, 1)}),
    "MLX": ("U32", {"weight": torch.zeros(64, 8).to(torch.uint32), "scales": SCALES, "biases": SCALES + 1}),
}  # fmt: skip


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Path:
    return save(case("llama").tiny(), tmp_path_factory.mktemp("plain") / "m")


@pytest.fixture
def directory(plain, tmp_path) -> Path:
    (tmp_path / "m").mkdir()
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "m" / name).write_bytes((plain / name).read_bytes())
    return tmp_path / "m"


def refused(directory: Path, file: str, method: str) -> None:
    for reads in (load, inspect, lambda d: import_model(d, d.with_name("out"))):
        with pytest.raises(WeightsError) as caught:
            reads(directory)
        text = str(caught.value)
        assert str(directory / file) in text and "the weights are quantised (" in text and "\n" not in text
        assert method in text and "take the unquantised model" in text and len(text) < 500, text
    assert not directory.with_name("out").exists()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_tensors_tell(layout: str, directory) -> None:
    method, parts = LAYOUTS[layout]
    tensors = load_file(directory / "model.safetensors")
    assert tensors.pop(f"{PROJECTION}.weight").shape == WIDE
    tensors |= {f"{PROJECTION}.{name}": part for name, part in parts.items()}
    save_file(tensors, directory / "model.safetensors")
    refused(directory, "model.safetensors", method)


@pytest.mark.parametrize(
    ("values", "method"),
    [
        *[({"quantization_config": {"quant_method": m}}, m) for m in ("awq", "gptq", "fp8", "mxfp4", "hqq", "torchao")],
        ({"quantization_config": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}}, "bitsandbytes"),
        ({"quantization_config": "int8"}, "quantization_config"),
        ({"quantization_config": {"quant_method": "x" * 9999}}, "xxx"),
        ({"compression_config": {"format": "pack-quantized"}}, "compression_config"),
        ({"quantization": {"group_size": 64, "bits": 4}}, "quantization"),
        ({"text_config": {"quantization_config": {"quant_method": "awq"}}}, "awq"),
    ],
)
def test_the_configuration_tells(values: dict, method: str, directory) -> None:
    file = directory / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))
    refused(directory, "config.json", method)


@pytest.mark.parametrize(
    ("name", "values", "method"),
    [
        ("quantize_config.json", {"bits": 4, "group_size": 128, "desc_act": False}, "GPTQ"),
        ("quantize_config.json", {"bits": 4, "quant_method": "awq"}, "awq"),
        ("quant_config.json", {"zero_point": True, "q_group_size": 128, "w_bit": 4}, "AWQ"),
        ("hf_quant_config.json", {"producer": {}, "quantization": {"quant_algo": "FP8"}}, "FP8"),
    ],
)
def test_a_file_beside_it_tells(name: str, values: dict, method: str, directory) -> None:
    (directory / name).write_text(json.dumps(values))
    refused(directory, name, method)


def test_null_says_that_nothing_is_quantised(directory) -> None:
    file = directory / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"quantization_config": None}))
    assert load(directory).inert.keys() == load(directory).inert.keys() - {"quantization_config"}


def test_no_family_has_tensors_with_such_names() -> None:
    for name in FAMILIES:
        table = family(name).module.CONFIG
        for key in family(name).module.KEYS:
            assert not key.theirs.endswith(tuple(SIGNS)), key
        assert not any(ending.endswith(tuple(SIGNS)) for ending in table.ignored + table.zero)
