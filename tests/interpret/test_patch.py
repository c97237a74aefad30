# SPDX-License-Identifier: Apache-2.0
"""Activation patching: everything of the clean input gives its logits to the bit, nothing leaves the corrupted ones."""

import pytest
import torch

from foundling.errors import InterpretError
from foundling.interpret import Site, activations, patch_effects, patched, sites_of
from tests.contract.cases import case, tokens

CLEAN, CORRUPTED = tokens(1, 12, seed=1), tokens(1, 12, seed=2)
FAMILIES = ["llama", "gpt2", "gemma2", "olmo2", "mixtral", "jamba", "bert"]


@torch.no_grad()
def logits(model, x: torch.Tensor) -> torch.Tensor:
    return model.logits(model(x).hidden)


@pytest.mark.parametrize("name", FAMILIES)
def test_everything_is_clean_and_nothing_is_corrupted(name: str) -> None:
    model = case(name).tiny()
    sites = [Site("embedding"), *sites_of(model)]
    clean, corrupted = logits(model, CLEAN), logits(model, CORRUPTED)
    assert not torch.equal(clean, corrupted)
    values = activations(model, CLEAN, sites)
    with patched(model, values):
        assert torch.equal(logits(model, CORRUPTED), clean)
    with patched(model, {}):
        assert torch.equal(logits(model, CORRUPTED), corrupted)
    with patched(model, activations(model, CORRUPTED, sites)):
        assert torch.equal(logits(model, CORRUPTED), corrupted)
    assert torch.equal(logits(model, CORRUPTED), corrupted), "a hook is left"


def test_all_heads_are_their_attention() -> None:
    model = case("llama").tiny()
    heads = [Site("layers.0.mixer", head) for head in range(model.config.n_heads)]
    with patched(model, activations(model, CLEAN, heads)):
        by_heads = logits(model, CORRUPTED)
    with patched(model, activations(model, CLEAN, [Site("layers.0.mixer")])):
        assert torch.allclose(logits(model, CORRUPTED), by_heads, atol=1e-5)


def test_effects_are_shares_of_the_difference() -> None:
    """A token that differs alone carries all of it at first; the last token's last state carries all of it at last."""
    model = case("llama").tiny()
    corrupted = CLEAN.clone()
    corrupted[0, 3] = (corrupted[0, 3] + 1) % 60

    def score(values: torch.Tensor) -> float:
        return float(values[0, 5] - values[0, 6])

    sites = [Site("embedding", positions=(3,)), Site("layers.1", positions=(11,)), Site("layers.0", positions=(1,))]
    effects = patch_effects(model, CLEAN, corrupted, sites, score)
    assert [effects[site] for site in sites] == pytest.approx([1, 1, 0], abs=1e-4)


def test_sites_of_heads_and_positions() -> None:
    model = case("llama").tiny()
    assert len(sites_of(model, heads=True)) == 2 * model.config.n_heads
    sites = sites_of(model, positions=[3, 4])
    assert Site("layers.1.ffn", None, (4,)) in sites and len(sites) == 8
    assert str(Site("layers.1.mixer", 2, (4,))) == "layers.1.mixer.head.2 at 4"


def test_bad_requests() -> None:
    model = case("llama").tiny()
    for site, says in (
        (Site("layers.9"), "no module 'layers.9'"),
        (Site("layers.0.mixer", 99), "no head 99"),
        (Site("layers.0.ffn", 0), "no head 0"),
        (Site("layers.0.ffn", positions=(12,)), "'layers.0.ffn' has no token 12; the input has 12, counted from 0"),
        (Site("layers.0.mixer", 0, (-13,)), "no token -13"),
    ):
        with pytest.raises(InterpretError, match=says):
            activations(model, CLEAN, [site])
    with pytest.raises(InterpretError, match="12 and 5 tokens"):
        patch_effects(model, CLEAN, CORRUPTED[:, :5], [], lambda v: 0.0)
    with pytest.raises(InterpretError, match="score the same"):
        patch_effects(model, CLEAN, CLEAN, [], lambda v: 1.0)
