# SPDX-License-Identifier: Apache-2.0
"""Decoding drops nothing, whatever mode the model is in, and leaves every module in its mode."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import foundling
from foundling.decode.engine.engine import Engine, EngineOptions
from foundling.decode.fill import fill
from foundling.diffusion.schedule import NoiseSchedule
from foundling.errors import GenerationError
from tests.contract.cases import case

PROMPTS = [[5, 9, 11], [7, 7]]


def plainly(model: Any, **options: Any) -> Any:
    return [a.tokens for a in foundling.generate(model, PROMPTS, max_tokens=12, temperature=0, **options)]


def by_engine(model: Any) -> Any:
    engine = Engine(model, EngineOptions(native=False))
    return [a.tokens for a in foundling.generate(engine, PROMPTS, max_tokens=12, temperature=0)]


def drafted(model: Any) -> Any:
    """The number of accepted tokens is the draft model's, so it too drops nothing."""
    other = case("gpt2").tiny(seed=1, dropout=0.5).train()
    out = plainly(model, draft=other)
    assert other.training
    return out


def filled(model: Any) -> Any:
    return fill(model, [5, 1, 9, 1, 7], 1, n=3)


def beams(model: Any) -> Any:
    return [a.tokens for a in foundling.generate(model, PROMPTS, max_tokens=6, beams=3)]


@pytest.mark.parametrize(
    ("name", "run"),
    [
        ("gpt2", plainly), ("bart", plainly), ("gpt2", beams), ("gpt2", drafted), ("gpt2", by_engine),
        ("bart", by_engine), ("bert", filled),
    ],
)  # fmt: skip
def test_a_model_in_training_mode_decodes_as_in_evaluation_mode(name: str, run: Callable[[Any], Any]) -> None:
    model = case(name).tiny(dropout=0.5)
    expected = run(model)
    model.train()
    model.layers[0].eval()  # as one whose layers are frozen
    modes = [module.training for module in model.modules()]
    assert run(model) == run(model) == expected
    assert [module.training for module in model.modules()] == modes


def test_a_denoiser_in_training_mode_denoises_as_in_evaluation_mode() -> None:
    model = case("unet").tiny()
    first = next(m for m in model.modules() if isinstance(m, nn.Conv2d))
    first.register_forward_hook(lambda m, args, out: nn.functional.dropout(out, 0.5, m.training))

    def run() -> torch.Tensor:
        return foundling.denoise(model, NoiseSchedule(), [1, 2], [0, 1], steps=2)

    expected = run()
    model.train()
    assert torch.equal(run(), expected) and first.training


def test_the_mode_comes_back_after_an_error() -> None:
    model = case("gpt2").tiny(dropout=0.5).train()

    def fail(new: list[int]) -> None:
        raise GenerationError("stopped")

    with pytest.raises(GenerationError, match="stopped"):
        plainly(model, on_token=fail)
    assert all(module.training for module in model.modules())
