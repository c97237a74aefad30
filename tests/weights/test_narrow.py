# SPDX-License-Identifier: Apache-2.0
"""Numbers that a narrower type does not hold are refused by name; nothing becomes infinite in silence."""

from pathlib import Path

import pytest
import torch

import foundling
from foundling.errors import WeightsError
from foundling.models import build, family
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
