# SPDX-License-Identifier: Apache-2.0
"""Every family that others have too: their directories load here, ours there, with equal outputs and equal tensors."""

import pytest
import torch

import foundling
from foundling.models import FAMILIES
from tests.contract.matrix import covers
from tests.parity.references import REFERENCES, TOLERANCE, randomise, tokens

pytest.importorskip("transformers")


def close(a: torch.Tensor, b: torch.Tensor, tolerance: float = 5e-6) -> None:
    assert (a - b).abs().max() <= tolerance * b.abs().max(), f"{(a - b).abs().max() / b.abs().max():.2e}"


@covers("exchange")
@pytest.mark.parametrize("which", range(3))
@torch.inference_mode()
def test_both_ways(name: str, which: int, tmp_path) -> None:
    assert name in REFERENCES, f"give tests/parity/references.py three small models of {name}"
    reference = REFERENCES[name][which]
    theirs = randomise(reference.make())
    theirs.save_pretrained(tmp_path / "theirs")
    ours = foundling.load(tmp_path / "theirs")
    expected = reference.theirs(theirs)
    close(reference.ours(ours), expected, TOLERANCE.get(name, 5e-6))

    foundling.save(ours, tmp_path / "ours")
    back, info = type(theirs).from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"], info
    close(reference.theirs(back.eval()), expected, TOLERANCE.get(name, 5e-6))
    for (key, a), (_, b) in zip(theirs.state_dict().items(), back.state_dict().items(), strict=True):
        assert torch.equal(a, b), key
    again = foundling.load(tmp_path / "ours")
    assert foundling.weights.directory.weights_hash(again) == foundling.weights.directory.weights_hash(ours)


@pytest.mark.parametrize("name", [n for n in REFERENCES if FAMILIES[n].kind == "decoder" and n != "mamba2"])
@torch.inference_mode()
def test_padded_and_packed_rows(name: str, tmp_path) -> None:
    """Theirs is told by an attention mask, and given the documents one by one."""
    theirs = randomise(REFERENCES[name][0].make())
    theirs.save_pretrained(tmp_path)
    ours, x = foundling.load(tmp_path), tokens()
    mask = torch.ones_like(x)
    mask[1, 20:] = 0
    padded = theirs(x, attention_mask=mask).logits
    close(ours.logits(ours(x, documents=mask - 1).hidden)[1, :20], padded[1, :20], 1e-5)
    documents = (torch.arange(31) >= 12).long()[None].expand(3, -1)
    packed = ours.logits(ours(x, documents=documents).hidden)
    close(packed[:, 12:], theirs(x[:, 12:]).logits, 1e-5)


@torch.inference_mode()
def test_padding_of_a_source(tmp_path) -> None:
    theirs, x, y = randomise(REFERENCES["t5"][0].make()), tokens(), tokens(2, 17)
    theirs.save_pretrained(tmp_path)
    ours = foundling.load(tmp_path)
    mask = torch.ones_like(x)
    mask[1, 20:] = 0
    expected = theirs(input_ids=x, attention_mask=mask, decoder_input_ids=y).logits
    close(ours.logits(ours(y, memory=ours.encode(x, documents=mask - 1)).hidden), expected)


@pytest.mark.parametrize("name", ["mixtral", "jamba"])
@torch.inference_mode()
def test_the_router_loss_is_theirs(name: str, tmp_path) -> None:
    theirs, x = randomise(REFERENCES[name][0].make()), tokens()
    theirs.save_pretrained(tmp_path)
    ours = foundling.load(tmp_path)
    mask = torch.ones_like(x)
    mask[1, 20:] = 0
    for documents, attention in ((None, None), (mask - 1, mask)):
        expected = theirs(x, attention_mask=attention, output_router_logits=True).aux_loss
        term = ours(x, documents=documents).aux["router_balance"]
        assert float(term.sum) == pytest.approx(float(expected), rel=1e-5)


@torch.inference_mode()
def test_contrastive_loss_is_theirs() -> None:
    from foundling.objectives.contrastive import info_nce

    theirs = randomise(REFERENCES["clip"][0].make())
    pixels, x = torch.randn(5, 3, 16, 16), torch.randint(3, 63, (5, 9))
    out = theirs(input_ids=x, pixel_values=pixels, return_loss=True)
    assert float(info_nce(out.logits_per_image).mean()) == pytest.approx(float(out.loss), rel=1e-6)
