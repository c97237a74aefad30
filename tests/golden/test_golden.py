# SPDX-License-Identifier: Apache-2.0
"""Model directories that version 1 of the format wrote still load and give what they gave then.

`v1/NAME/` is a tiny model of the family in bfloat16, `v1/NAME.safetensors` its inputs and its outputs in float32, made
by the code of before the model contract changed. They are never written anew: a new format gets a directory of its own.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import foundling
from foundling.contracts.denoise import Condition
from foundling.models import FAMILIES
from foundling.weights.directory import load
from foundling.weights.manifest import check

V1 = Path(__file__).parent / "v1"
NAMES = sorted(path.name for path in V1.iterdir() if path.is_dir())
TOLERANCE = 20 * 256**0.5 * 2**-24
"""Another CPU adds up in another order: two layers are some 20 reductions one after the other, of up to 256 numbers
each, whose rounding errors of 2⁻²⁴ grow with the root of their count. Nothing else may differ."""


def close(found: Tensor, stored: Tensor) -> None:
    assert found.shape == stored.shape
    assert (found - stored).abs().max() <= TOLERANCE * stored.abs().max()


def load_golden(name: str) -> tuple[Any, dict[str, Tensor]]:
    assert check(V1 / name)["ok"]
    model = foundling.load_denoiser(V1 / name)[0] if FAMILIES[name].kind == "denoiser" else load(V1 / name)
    return model, load_file(V1 / f"{name}.safetensors")


def names(*kinds: str) -> list[str]:
    return [name for name in NAMES if FAMILIES[name].kind in kinds]


def test_the_set_is_complete() -> None:
    assert len(NAMES) == 28 and set(NAMES) <= set(FAMILIES)
    assert {path.stem for path in V1.glob("*.safetensors")} == set(NAMES)


@pytest.mark.parametrize("name", names("decoder", "encoder", "seq2seq"))
@torch.inference_mode()
def test_texts(name: str) -> None:
    model, golden = load_golden(name)
    tokens, documents = golden["tokens"], golden["documents"]
    plain, packed, real = {}, {"documents": documents}, documents >= 0
    if "source" in golden:
        zeros = torch.zeros_like(documents)
        plain = {"memory": model.encode(golden["source"]), "memory_documents": zeros}
        packed = plain | {"documents": zeros.masked_fill(~real, -1)}
    close(model.logits(model(tokens, **plain).hidden), golden["outputs"])
    close(model.logits(model(tokens, **packed).hidden)[real], golden["packed"][real])
    if "greedy" in golden:
        prompts = [tokens[0, :5].tolist(), tokens[1, :9].tolist()]
        answers = foundling.generate(model, prompts, max_tokens=golden["greedy"].shape[1], temperature=0)
        assert [answer.tokens for answer in answers] == golden["greedy"].tolist()


@pytest.mark.parametrize("name", names("dual_encoder"))
@torch.inference_mode()
def test_towers(name: str) -> None:
    model, golden = load_golden(name)
    close(torch.cat([model.embed("image", golden), model.embed("text", golden)], dim=1), golden["outputs"])


@pytest.mark.parametrize("name", names("denoiser"))
@torch.inference_mode()
def test_denoisers(name: str) -> None:
    model, golden = load_golden(name)
    condition = Condition(torch.tensor([3, 4]), keep=torch.tensor([True, False]))
    close(model(golden["pixels"], torch.tensor([7, 300]), condition), golden["outputs"])
