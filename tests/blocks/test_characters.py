# SPDX-License-Identifier: Apache-2.0
"""Words from their characters: limits, damaged spellings, and what a tokenizer says of its tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import foundling
from foundling.adapt.heads import HeadOptions, add_head
from foundling.adapt.lora import LoRAOptions, lora
from foundling.adapt.vocabulary import extend_vocabulary
from foundling.blocks.heads import scores
from foundling.errors import AdaptError, ConfigError, WeightsError
from foundling.models import configuration, family
from foundling.objectives.bilm import BiLM
from foundling.plan.flops import training_flops_per_token
from foundling.runtime.rng import generator
from foundling.text import Tokenizer
from foundling.weights.adapters import load_adapter, save_adapter
from foundling.weights.directory import load, save
from tests.contract.cases import case, text_batch, tokens
from tests.text.kinds import tokenizer


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"max_word_len": 1}, "max_word_len"),
        ({"max_word_len": 1 << 20}, "max_word_len"),
        ({"n_highway": 20000}, "n_highway"),
        ({"filters": []}, "the number of widths in filters"),
        ({"filters": [[1, 2]] * 200_000}, "the number of widths in filters"),
        ({"filters": [[1, 10**12]]}, "their number"),
        ({"filters": [[0, 4]]}, "filters of 0 characters"),
        ({"filters": [[17, 4]]}, "expected 1 to max_word_len 16"),
        ({"d_model": 33}, "d_model 33 is odd"),
    ],
)
def test_sizes_out_of_range_are_one_short_line(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        configuration(family("elmo"), case("elmo").fields() | fields, where="elmo")
    assert says in str(caught.value) and len(str(caught.value)) < 300


def test_damaged_spellings_are_refused(tmp_path: Path) -> None:
    model = case("elmo").tiny()
    model.embedding.spelling[3, 2] = 999
    save(model, tmp_path / "damaged")
    with pytest.raises(WeightsError, match="spelling"):
        load(tmp_path / "damaged")


def test_spellings_are_saved_with_the_model(tmp_path: Path) -> None:
    model, x = case("elmo").tiny(), tokens(1, 8)
    model.spell([b"one", b"two", "drei ä".encode()])
    save(model, tmp_path / "model")
    again = load(tmp_path / "model")
    assert torch.equal(again.embedding.spelling, model.embedding.spelling)
    assert torch.equal(again.encode(x).states, model.encode(x).states)


@pytest.mark.parametrize("kind", ["gpt2", "llama 2", "bert", "t5"])
def test_spellings_are_the_bytes_of_tokens(kind: str) -> None:
    """Put together they are the text's bytes, whatever the alphabet of the vocabulary."""
    made: Tokenizer = tokenizer(kind)
    spellings = made.spellings()
    assert len(spellings) == made.vocab_size
    text = "the cat"
    joined = b"".join(spellings[i] for i in made.encode(text)).replace(b"##", b"")
    assert joined.replace(b" ", b"") == text.encode().replace(b" ", b"")


def test_a_byte_level_tokenizer_spells_other_alphabets() -> None:
    made = Tokenizer.train(["родной язык, ξένη γλῶσσα"] * 50, 384)
    text = "родной"
    assert b"".join(made.spellings()[i] for i in made.encode(text)) == text.encode()


def test_an_adapter_with_a_head_is_bound_to_the_same_base(tmp_path: Path) -> None:
    model, batch = case("elmo").tiny(), {"tokens": tokens(2, 9)}
    save(model, tmp_path / "base")
    add_head(model, HeadOptions("classify", ("a", "b")), generator("head"))
    lora(model, LoRAOptions("layers.*", rank=2), generator("lora"))
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.requires_grad:
                p.copy_(torch.randn(p.shape, generator=generator(name)) * 0.1)
    assert model.score.mix.requires_grad
    save_adapter(model, tmp_path / "adapter")
    again = load(tmp_path / "base")
    load_adapter(again, tmp_path / "adapter")
    with torch.no_grad():
        assert torch.equal(scores(again, batch), scores(model, batch))


def test_a_vocabulary_of_characters_is_not_extended() -> None:
    made = Tokenizer.train(["the cat sat on the mat"] * 50, 320)
    model = foundling.build("elmo", **family("elmo").module.sized(made.vocab_size, 64, 64, 2))
    with pytest.raises(AdaptError, match="from their characters"):
        extend_vocabulary(model, made, ["<new>"], generator("new"))


def test_the_operations_of_an_elmo_are_counted() -> None:
    """By the shapes of all products of one forward pass: three times its multiplications and additions. What h adds is
    no call of a module; tokens without a neighbour, under a hundredth of all products, are not predicted."""
    of = case("elmo")
    model, batch = of.tiny(), text_batch(2, 0)
    batch["loss_mask"] = torch.ones_like(batch["loss_mask"])
    n, count = batch["tokens"].numel(), 0

    def counted(module: Any, args: Any, out: torch.Tensor) -> None:
        nonlocal count
        count += 2 * out.numel() * module.in_features

    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_hook(counted)
    with torch.no_grad():
        BiLM()(model, batch)
    recurrent = [m for name, m in model.named_modules() if "layers" in name and name.endswith(".h")]
    hidden = sum(2 * n * m.in_features * m.out_features for m in recurrent)
    cnn = [m for name, m in model.named_modules() if name.startswith("embedding.") and isinstance(m, torch.nn.Linear)]
    assert cnn
    assert training_flops_per_token(model, 24) == pytest.approx(3 * (count + hidden) / n, rel=0.01)
