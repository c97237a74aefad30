# SPDX-License-Identifier: Apache-2.0
"""LoRA against peft, int8 by hand, and what they refuse."""

import pytest
import torch
from torch import nn

import foundling
from foundling.adapt.lora import LoRAOptions, adapter_tensors, lora, merge
from foundling.adapt.quantize import Int8Linear, dequantize, quantize, to_int8
from foundling.errors import AdaptError, WeightsError
from foundling.runtime import generator
from foundling.weights.adapters import load_adapter, save_adapter
from foundling.weights.directory import MANIFEST, weights_hash
from tests.contract.cases import case, close, tokens
from tests.parity.references import REFERENCES, randomise
from tests.parity.references import tokens as ids


@torch.no_grad()
def test_the_output_is_that_of_peft(tmp_path) -> None:
    peft = pytest.importorskip("peft")
    theirs = randomise(REFERENCES["llama"][1].make())
    theirs.save_pretrained(tmp_path)
    ours = foundling.load(tmp_path)
    names = lora(ours, LoRAOptions("layers.*.mixer.[qv],layers.*.ffn.down", rank=3, alpha=5.0), generator("lora"))
    assert len(names) == 9
    wrapped = peft.get_peft_model(
        theirs, peft.LoraConfig(r=3, lora_alpha=5.0, target_modules=["q_proj", "v_proj", "down_proj"])
    )
    places = {"mixer.q": "self_attn.q_proj", "mixer.v": "self_attn.v_proj", "ffn.down": "mlp.down_proj"}
    theirs_by_name = dict(wrapped.named_parameters())
    for name, p in adapter_tensors(ours).items():
        p.copy_(torch.randn(p.shape, generator=generator(name)) * 0.3)
        _, layer, part, projection, which = name.split(".")
        place = f"model.layers.{layer}.{places[f'{part}.{projection}']}.lora_{which.upper()}.default.weight"
        theirs_by_name[f"base_model.model.{place}"].copy_(p)
    expected = wrapped.eval()(ids()).logits
    close(ours.logits(ours(ids()).hidden), expected)
    merge(ours)
    close(ours.logits(ours(ids()).hidden), wrapped.merge_and_unload()(ids()).logits)


def test_int8_by_hand() -> None:
    weight = torch.tensor([[127.0, -1.0, 0.4], [0.0, 0.0, 0.0], [2.54, 1.27, -0.01]])
    integers, scale = to_int8(weight)
    assert integers.tolist() == [[127, -1, 0], [0, 0, 0], [127, 64, 0]]  # 63.5 rounds to the even
    assert scale[:, 0].tolist() == pytest.approx([1.0, 1.0, 0.02])
    linear = nn.Linear(3, 3)
    with torch.no_grad():
        linear.weight.copy_(weight)
    x = torch.tensor([[1.0, 2.0, 3.0]])
    expected = x @ (integers * scale).T + linear.bias
    torch.testing.assert_close(Int8Linear(linear)(x), expected)
    torch.testing.assert_close(Int8Linear(linear).dequantized()(x), expected)


def test_a_quarter_of_the_bytes() -> None:
    model = case("llama").tiny()
    before = sum(p.nbytes for n, p in model.named_parameters() if n.startswith("layers") and p.ndim == 2)
    quantize(model)
    after = sum(b.nbytes for n, b in model.named_buffers() if n.startswith("layers"))
    assert after < 0.28 * before
    x = tokens()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model(x).hidden.isfinite().all()


@pytest.mark.parametrize("pattern", ["layer.*", "", "layers.*.mixer.Q", "embedding"])
def test_a_pattern_that_matches_nothing(pattern: str) -> None:
    model = case("llama").tiny()
    for act in (lambda: quantize(model, pattern), lambda: lora(model, LoRAOptions(pattern), generator(0))):
        with pytest.raises(AdaptError, match="matches no projection") as caught:
            act()
        assert "\n" not in str(caught.value)
    assert all(p.requires_grad for p in model.parameters()), "nothing was frozen"


def test_what_makes_no_sense_is_refused() -> None:
    model = case("gpt2").tiny()
    with pytest.raises(AdaptError, match="rank 0"):
        LoRAOptions("*", rank=0)
    with pytest.raises(AdaptError, match="'head' shares its weight with 'embedding'"):
        quantize(model, "*")
    with pytest.raises(AdaptError, match="no adapters"):
        merge(model)
    lora(model, LoRAOptions("layers.*"), generator(0))
    with pytest.raises(AdaptError, match="already"):
        lora(model, LoRAOptions("head"), generator(0))
    assert not dequantize(model)


def test_a_tied_head_that_was_adapted_is_tied_no_more(tmp_path) -> None:
    model, x = case("gpt2").tiny(), tokens()
    table = model.embedding.weight.detach().clone()
    lora(model, LoRAOptions("head"), generator(0))
    with torch.no_grad():
        model.head.b.normal_(generator=generator(1))
    expected = model.logits(model(x).hidden)
    merge(model)
    assert torch.equal(model.embedding.weight, table) and not model.config.tie_embeddings
    close(model.logits(model(x).hidden), expected)
    foundling.save(model, tmp_path / "m")
    assert weights_hash(foundling.load(tmp_path / "m")) == weights_hash(model)


def test_a_damaged_adapter_is_named(tmp_path) -> None:
    model = case("llama").tiny()
    lora(model, LoRAOptions("layers.*.mixer.q", rank=2), generator(0))
    with pytest.raises(AdaptError, match="no adapters"):
        save_adapter(case("llama").tiny(), tmp_path / "none")
    directory = save_adapter(model, tmp_path / "adapter")
    assert sum(p.stat().st_size for p in directory.iterdir()) < 8000
    file = directory / "adapter.safetensors"
    good = file.read_bytes()
    file.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    with pytest.raises(WeightsError, match=r"adapter\.safetensors: damaged"):
        load_adapter(case("llama").tiny(), directory)
    file.unlink()
    with pytest.raises(WeightsError, match=r"adapter\.safetensors: missing"):
        load_adapter(case("llama").tiny(), directory)
    (directory / MANIFEST).unlink()
    with pytest.raises(WeightsError, match="is this an adapter"):
        load_adapter(case("llama").tiny(), directory)
