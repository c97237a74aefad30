# SPDX-License-Identifier: Apache-2.0
"""What a family declares it can do, it does, and what it does not declare is refused by name."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import foundling
from foundling.contracts.denoise import Denoiser
from foundling.contracts.model import Embedder, Encoder, LanguageModel
from foundling.decode.fill import fill
from foundling.diffusion.schedule import NoiseSchedule
from foundling.errors import ConfigError, GenerationError
from foundling.models import FAMILIES, family
from tests.contract.cases import VOCAB, case, close, tokens

ABLE = {name: family(name).model.capabilities for name in FAMILIES}


def able(what: str) -> Any:
    return pytest.mark.parametrize("name", [name for name, can in ABLE.items() if getattr(can, what)])


def unable(what: str) -> Any:
    return pytest.mark.parametrize("name", [name for name, can in ABLE.items() if not getattr(can, what)])


def test_each_capability_has_families_and_each_family_a_capability() -> None:
    for what in ("generates", "reads_source", "embeds", "fills", "denoises"):
        assert 0 < sum(getattr(can, what) for can in ABLE.values()) < len(ABLE)
    assert all(can.generates or can.embeds or can.denoises for can in ABLE.values())


@able("generates")
def test_generates(name: str) -> None:
    model = case(name).tiny()
    assert isinstance(model, LanguageModel)
    answer = foundling.generate(model, [[5, 9, 11]], max_tokens=3, temperature=0)[0].tokens
    assert len(answer) == 3 and all(0 <= token < VOCAB for token in answer)


@unable("generates")
def test_does_not_generate(name: str) -> None:
    with pytest.raises(GenerationError, match="does not generate text"):
        foundling.generate(case(name).tiny(), [[5, 9, 11]], max_tokens=3)


@able("reads_source")
@torch.inference_mode()
def test_reads_a_source(name: str) -> None:
    model, x = case(name).tiny(), tokens(1, 4)
    one, other = (model(x, memory=model.encode(tokens(1, 6, seed))).hidden for seed in (2, 3))
    assert (one - other).abs().max() > 1e-3
    with pytest.raises(GenerationError, match="pass memory"):
        model(x)


@unable("reads_source")
def test_reads_no_source(name: str) -> None:
    model, memory = case(name).tiny(), case("t5").tiny().encode(tokens(1, 6))
    if ABLE[name].generates:
        with pytest.raises(GenerationError, match="reads no memory"):
            model(tokens(1, 4), memory=memory)
    else:
        assert "memory" not in type(model).forward.__code__.co_varnames


@able("embeds")
@torch.inference_mode()
def test_embeds(name: str) -> None:
    """Vectors of length 1, which tell inputs apart and which padding does not change."""
    of = case(name)
    model = of.tiny()
    assert isinstance(model, Embedder)
    batch = of.batch(0, 3) | {"documents": torch.zeros(3, len(of.batch(0, 3)["tokens"][0]), dtype=torch.int64)}
    for modality in model.capabilities.modalities:
        vectors = model.embed(modality, batch)
        assert vectors.ndim == 2 and vectors.dtype == torch.float32
        close(vectors.norm(dim=-1), torch.ones(3))
        assert (vectors[0] - vectors[1]).abs().max() > 1e-3
    length = batch["tokens"].shape[1]
    whole = model.embed("text", {"tokens": batch["tokens"]})
    padded = {
        "tokens": torch.nn.functional.pad(batch["tokens"], (0, 4)),
        "documents": batch["documents"].new_zeros(3, length + 4),
    }
    padded["documents"][:, length:] = -1
    close(model.embed("text", padded), whole)
    with pytest.raises(ConfigError, match="sound"):
        model.embed("sound", batch)


@unable("embeds")
def test_does_not_embed(name: str) -> None:
    assert not isinstance(case(name).tiny(), Embedder)


@pytest.mark.parametrize("name", [name for name, entry in FAMILIES.items() if entry.kind == "encoder"])
@torch.inference_mode()
def test_an_encoder_embeds_by_the_mean_of_its_tokens(name: str) -> None:
    model, x = case(name).tiny(), tokens(2, 9)
    documents = torch.zeros_like(x)
    documents[1, 5:] = -1
    found = model.embed("text", {"tokens": x, "documents": documents})
    for row, length in ((0, 9), (1, 5)):
        states = model.encode(x[row : row + 1, :length]).states[0]
        mean = sum(states.unbind()) / length
        close(found[row], mean / mean.norm())


@able("fills")
def test_fills(name: str) -> None:
    model = case(name).tiny()
    assert isinstance(model, Encoder) and model.capabilities == ABLE[name]
    found = fill(model, [5, 1, 9, 1], 1, n=2)
    assert len(found.gaps) == 2 and 1 not in found.tokens and found.tokens[0] == 5
    headless = case(name).tiny(masked=False)
    assert not headless.capabilities.fills and headless.capabilities.embeds
    with pytest.raises(GenerationError, match="fills no gaps"):
        fill(headless, [5, 1, 9, 1], 1)


@unable("fills")
def test_does_not_fill(name: str) -> None:
    with pytest.raises(GenerationError, match="fills no gaps"):
        fill(case(name).tiny(), [5, 1, 9, 1], 1)


@able("denoises")
def test_denoises(name: str) -> None:
    model = case(name).tiny()
    assert isinstance(model, Denoiser)
    assert foundling.denoise(model, NoiseSchedule(), [1], [0], steps=2).shape == (1, *model.sample_shape)


@unable("denoises")
def test_does_not_denoise(name: str) -> None:
    assert not isinstance(case(name).tiny(), Denoiser)
