# SPDX-License-Identifier: Apache-2.0
"""Numbers that a type does not hold, and what is no number, are refused by name, not passed on in silence."""

import struct
from pathlib import Path

import pytest
import torch

import foundling
from foundling.adapt.lora import LoRAOptions, lora
from foundling.errors import WeightsError
from foundling.models import build, family
from foundling.weights.adapters import load_adapter, save_adapter
from foundling.weights.convert.gguf import save_gguf
from foundling.weights.convert.hugging_face import export_model, import_model


def outlier(value: float):
    model = build("llama", **family("llama").module.sized(320, 32, 32, 1))
    with torch.no_grad():
        model.layers[0].mixer.q.weight[3, 5] = value
    return model


def test_float16(tmp_path: Path) -> None:
    foundling.save(outlier(7e4), tmp_path / "m")
    for convert in (import_model, export_model):
        with pytest.raises(WeightsError, match=r"'layers.0.mixer.q.weight' holds 70000, beyond float16 \(65504\)"):
            convert(tmp_path / "m", tmp_path / "out", dtype="float16")
        assert not (tmp_path / "out").exists()
    export_model(tmp_path / "m", tmp_path / "wide", dtype="bfloat16")
    foundling.save(outlier(6e4), tmp_path / "fits")
    export_model(tmp_path / "fits", tmp_path / "narrow", dtype="float16")


@pytest.mark.parametrize(("weights", "value"), [("float16", 7e4), ("int8", 1e7), ("int4", 1e6)])
def test_gguf(weights: str, value: float, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"'layers\.0\.mixer\.q\.weight' holds .*, beyond"):
        save_gguf(outlier(value), tmp_path / "m.gguf", weights=weights)
    assert not list(tmp_path.iterdir())
    save_gguf(outlier(value / 20), tmp_path / "m.gguf", weights=weights)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_no_numbers(value: float, tmp_path: Path) -> None:
    """They would give constant text, and nobody would know why."""
    foundling.save(outlier(value), tmp_path / "m")
    says = r"m.*: 'layers\.0\.mixer\.q\.weight' holds 1 NaN or infinite values of 1,024: the training diverged"
    for read in (
        lambda: foundling.load(tmp_path / "m"),
        lambda: foundling.load(tmp_path / "m", dtype=torch.bfloat16),
        lambda: import_model(tmp_path / "m", tmp_path / "out"),
        lambda: export_model(tmp_path / "m", tmp_path / "out", dtype="float16"),
    ):
        with pytest.raises(WeightsError, match=says):
            read()
    assert not (tmp_path / "out").exists()
    base = foundling.save(outlier(0.0), tmp_path / "base")
    model = foundling.load(base)
    names = lora(model, LoRAOptions("*.q", rank=2), torch.Generator().manual_seed(0))
    dict(model.named_modules())[names[0]].a.data[0, 0] = value
    save_adapter(model, tmp_path / "adapter")
    with pytest.raises(WeightsError, match=r"adapter.*holds 1 NaN or infinite values"):
        load_adapter(foundling.load(base), tmp_path / "adapter")


def test_weights_in_a_gguf_file_that_are_no_numbers(tmp_path: Path) -> None:
    foundling.save(outlier(0.0), tmp_path / "m")
    save_gguf(outlier(0.0), tmp_path / "m.gguf", weights="float32")
    data = bytearray((tmp_path / "m.gguf").read_bytes())
    data[-4:] = struct.pack("<f", float("nan"))
    (tmp_path / "m.gguf").write_bytes(data)
    with pytest.raises(WeightsError, match=r"m\.gguf.*holds 1 NaN or infinite values"):
        import_model(tmp_path / "m.gguf", tmp_path / "out")
