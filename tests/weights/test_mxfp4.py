# SPDX-License-Identifier: Apache-2.0
"""GPT-OSS as it is published, its experts in MXFP4: numbers by hand, and transformers on the same directory."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from foundling.errors import WeightsError
from foundling.models import count_parameters
from foundling.weights.convert.hugging_face import import_model
from foundling.weights.directory import load, save
from foundling.weights.inspect import inspect
from foundling.weights.mxfp4 import dequantised
from tests.parity.references import gpt_oss, randomise, tokens
from tests.rounding import bound, close

transformers = pytest.importorskip("transformers")

EXPERTS = "model.layers.{}.mlp.experts.{}"


def test_numbers_of_four_bits_by_hand() -> None:
    """The lower half of a byte comes first; a scale s multiplies by 2^(s − 127)."""
    blocks = torch.tensor([[0x10, 0x32, 0x54, 0x76, 0x98, 0xBA, 0xDC, 0xFE, *[0] * 8]] * 3, dtype=torch.uint8)
    row = [0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6, *[0] * 16]
    expected = torch.tensor([row, [2 * x for x in row], [2.0**-127 * x for x in row]])
    found = dequantised(blocks, torch.tensor([127, 128, 0], dtype=torch.uint8))
    assert torch.equal(found, expected.flatten())


def made(directory: Path, **changes: Tensor) -> Path:
    """A small model with random experts in MXFP4, as OpenAI publishes it."""
    theirs = randomise(gpt_oss(hidden_size=64, intermediate_size=32).make())
    theirs.save_pretrained(directory)
    values, weights = json.loads((directory / "config.json").read_text()), load_file(directory / "model.safetensors")
    draw = torch.Generator().manual_seed(0)
    for layer in range(3):
        for part in ("gate_up_proj", "down_proj"):
            name = EXPERTS.format(layer, part)
            n, width, rows = weights.pop(name).shape
            blocks = torch.randint(0, 256, (n, rows, width // 32, 16), generator=draw)
            scales = torch.randint(123, 126, (n, rows, width // 32), generator=draw)
            weights |= {f"{name}_blocks": blocks.to(torch.uint8), f"{name}_scales": scales.to(torch.uint8)}
    save_file(weights | changes, directory / "model.safetensors", metadata={"format": "pt"})
    values |= {"quantization_config": {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}}
    (directory / "config.json").write_text(json.dumps(values))
    return directory


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> Path:
    return made(tmp_path_factory.mktemp("mxfp4"))


@torch.inference_mode()
def test_a_published_directory_is_read_as_transformers_reads_it(published, tmp_path) -> None:
    ours, x = load(published), tokens()
    theirs = transformers.AutoModelForCausalLM.from_pretrained(published, dtype=torch.float32).eval()
    assert theirs.model.layers[0].mlp.experts.down_proj.unique().numel() > 20
    close(ours.logits(ours(x).hidden), theirs(x).logits, bound(depth=32))

    assert "quantization_config" not in ours.inert
    save(ours, tmp_path / "ours")
    back = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours").eval()
    assert torch.equal(back(x).logits, theirs(x).logits)


def test_it_is_inspected_and_imported_in_the_type_that_holds_it(published, tmp_path) -> None:
    found = inspect(published)
    experts = 3 * 4 * (64 * 64 + 64 * 32)
    assert found["dtypes"]["MXFP4"] == experts and found["files"] == 1
    assert found["bytes"]["stored"] == experts * 17 // 32 + 4 * (found["parameters"]["total"] - experts)
    assert import_model(published, tmp_path / "f32")["dtype"] == "float32"  # the other tensors' type

    weights = load_file(published / "model.safetensors")
    half = {name: t.bfloat16() if t.is_floating_point() else t for name, t in weights.items()}
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    (mixed / "config.json").write_bytes((published / "config.json").read_bytes())
    save_file(half, mixed / "model.safetensors")
    out = import_model(mixed, tmp_path / "bf16")
    assert out["dtype"] == "bfloat16" and out["parameters"] == count_parameters(load(published))["total"]
    gate = load(tmp_path / "bf16", dtype=torch.bfloat16).layers[0].ffn.gate.weight
    assert torch.equal(gate.float(), load(published).layers[0].ffn.gate.weight), "bfloat16 holds every number"


@pytest.mark.parametrize(
    ("part", "tensor", "message"),
    [
        ("gate_up_proj_scales", torch.full((4, 64, 2), 255, dtype=torch.uint8), "no finite numbers"),
        ("gate_up_proj_scales", torch.full((4, 64, 2), 254, dtype=torch.uint8), "no finite numbers"),
        ("gate_up_proj_scales", torch.zeros(4, 64, 3, dtype=torch.uint8), "expected [E, out, in / 32, 16]"),
        ("gate_up_proj_blocks", torch.zeros(4, 64, 32, dtype=torch.uint8), "expected [E, out, in / 32, 16]"),
        ("gate_up_proj_blocks", torch.zeros(4, 64, 2, 16), "F32, expected one of U8"),
        ("gate_up_proj_blocks", torch.zeros(4, 64, 1, 16, dtype=torch.uint8), "expected [E, out, in / 32, 16]"),
        ("down_proj", torch.zeros(4, 32, 64), "remove one"),
    ],
)
def test_damaged_blocks_are_refused(part: str, tensor: Tensor, message: str, published, tmp_path) -> None:
    name = EXPERTS.format(1, part)
    weights = load_file(published / "model.safetensors") | {name: tensor}
    (tmp_path / "config.json").write_bytes((published / "config.json").read_bytes())
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(WeightsError) as caught:
        load(tmp_path)
    assert message in str(caught.value) and name.removesuffix("_scales").removesuffix("_blocks") in str(caught.value)


def test_blocks_without_scales_are_refused_by_name(published, tmp_path) -> None:
    weights = load_file(published / "model.safetensors")
    del weights[EXPERTS.format(0, "down_proj_scales")]
    (tmp_path / "config.json").write_bytes((published / "config.json").read_bytes())
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(WeightsError, match="down_proj_blocks' is of MXFP4"):
        load(tmp_path)
