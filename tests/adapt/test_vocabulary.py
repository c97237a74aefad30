# SPDX-License-Identifier: Apache-2.0
"""New tokens: the base and its adapters stay as they are, and merging gives a plain model of more rows."""

from typing import Any

import pytest
import torch
import transformers

from foundling.adapt.added import adapter_tensors, merge
from foundling.adapt.lora import LoRAOptions, lora
from foundling.adapt.vocabulary import extend_vocabulary
from foundling.decode.plain import generate
from foundling.errors import AdaptError, ConfigError, MismatchError
from foundling.objectives.causal import Causal
from foundling.runtime.rng import generator
from foundling.text import Tokenizer
from foundling.train.options import OptimOptions
from foundling.train.state import TrainState
from foundling.weights.adapters import load_adapter, save_adapter
from foundling.weights.directory import load, save, weights_hash
from tests.contract.cases import case, close
from tests.contract.test_methods import Same, fit

MARKS = ["<|think|>", "<|answer|>"]
TEXT = "one two three four five six seven eight nine ten " * 9


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train([TEXT], 320)


def x_of(tokenizer: Tokenizer) -> torch.Tensor:
    return torch.tensor([tokenizer.encode_marked(f"one {MARKS[0]} two three {MARKS[1]} four")])


@torch.no_grad()
def logits(model: Any, x: torch.Tensor) -> torch.Tensor:
    memory = {"memory": model.encode(x)} if model.capabilities.reads_source else {}
    return model.logits(model(x, **memory).hidden)


@pytest.mark.parametrize(
    ("name", "fields", "auto"),
    [
        ("llama", {"tie_embeddings": False}, "AutoModelForCausalLM"),
        pytest.param("gpt2", {"tie_embeddings": True}, "AutoModelForCausalLM", marks=pytest.mark.slow),
        ("bert", {}, "AutoModelForMaskedLM"),
        pytest.param("t5", {}, "AutoModelForSeq2SeqLM", marks=pytest.mark.slow),
        pytest.param("gemma2", {"tie_embeddings": True}, "AutoModelForCausalLM", marks=pytest.mark.slow),
        pytest.param("mamba", {}, "AutoModelForCausalLM", marks=pytest.mark.slow),
    ],
)
def test_new_tokens_learn_beside_the_base_and_merge(name, fields, auto, tokenizer, tmp_path) -> None:
    of, rows = case(name), tokenizer.vocab_size
    model = of.tiny(vocab_size=rows, **fields)
    save(model, tmp_path / "base")
    base, x = weights_hash(model), torch.tensor([tokenizer.encode(TEXT[:60])])
    before = logits(model, x)
    mean = model.embedding.weight.detach()[sorted(tokenizer.ids)].mean(0)

    extended = extend_vocabulary(model, tokenizer, MARKS, generator("x"))
    assert weights_hash(model) == base and model.config.vocab_size == rows + 2 == extended.vocab_size
    assert torch.equal(logits(model, x)[..., :rows], before), "what it said of old tokens it says"
    assert (model.embedding.rows - mean).abs().max() < 0.1 * model.embedding.weight.std()
    assert extended.encode_marked("".join(MARKS)) == [rows, rows + 1] and extended.decode([rows]) == ""
    assert tokenizer.backend.token_to_id(MARKS[0]) is None, "the old one is left as it is"

    model.requires_grad_(False)
    lora(model, LoRAOptions(rank=2), generator("lora"))
    trainable = {n for n, p in model.named_parameters() if p.requires_grad}
    assert trainable == adapter_tensors(model).keys() and "embedding.rows" in trainable
    x = x_of(extended)
    batch = {"tokens": x, "targets": x.roll(-1, 1), "loss_mask": x >= 0, "documents": x * 0}
    batch |= {"sample_ids": torch.tensor([0])}
    batch |= {"source": x, "source_documents": x * 0} if model.capabilities.reads_source else {}
    state = TrainState.build(model.train(), OptimOptions(optimizer="adamw", learning_rate=0.01))
    losses = fit(model, Causal(), Same(batch), micro=1, state=state)
    assert losses[-1] < losses[0] and weights_hash(model) == base
    after = logits(model.eval(), x)
    save_adapter(model, tmp_path / "adapter", base=tmp_path / "base", tokenizer=extended)
    fresh = load(tmp_path / "base")
    load_adapter(fresh, tmp_path / "adapter")
    assert torch.equal(logits(fresh, x), after) and fresh.config.vocab_size == rows + 2
    with pytest.raises(MismatchError, match="base"):
        load_adapter(of.tiny(seed=1, vocab_size=rows, **fields), tmp_path / "adapter")

    merge(model)
    close(logits(model, x), after)
    assert (model.head.weight is model.embedding.weight) == model.config.tie_embeddings
    assert model.config.tie_embeddings == load(tmp_path / "base").config.tie_embeddings
    save(model, tmp_path / "merged", tokenizer=extended)
    assert torch.equal(logits(load(tmp_path / "merged"), x), logits(model, x))
    theirs = getattr(transformers, auto).from_pretrained(tmp_path / "merged").eval()
    more = {"decoder_input_ids": x} if model.capabilities.reads_source else {}
    with torch.no_grad():
        close(theirs(x, **more).logits, logits(model, x))
    their_tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "merged")
    assert their_tokenizer(f"one{MARKS[1]}")["input_ids"][-1] == rows + 1


def test_older_adapters_of_the_base_still_load(tokenizer, tmp_path) -> None:
    of, x = case("llama"), torch.tensor([tokenizer.encode(TEXT[:60])])
    old = of.tiny(vocab_size=tokenizer.vocab_size)
    lora(old, LoRAOptions(rank=2), generator("lora"))
    for p in adapter_tensors(old).values():
        p.data.normal_(0, 0.3, generator=generator("values"))
    save_adapter(old, tmp_path / "old")
    model = of.tiny(vocab_size=tokenizer.vocab_size)
    extend_vocabulary(model, tokenizer, MARKS, generator("x"))
    load_adapter(model, tmp_path / "old")
    assert torch.equal(logits(model, x)[..., : tokenizer.vocab_size], logits(old, x))


def test_rows_that_stood_for_no_token_are_taken_first(tokenizer) -> None:
    """Of a vocabulary padded to a round number."""
    of, rows = case("llama"), tokenizer.vocab_size
    for padding, size in ((1, rows + 2), (2, rows + 2), (30, rows + 30)):
        model = of.tiny(vocab_size=rows + padding)
        base, x = weights_hash(model), torch.tensor([tokenizer.encode(TEXT[:60])])
        before = logits(model, x)
        extended = extend_vocabulary(model, tokenizer, MARKS, generator("x"), rows=torch.ones(2, 64))
        after = logits(model, x)
        assert model.config.vocab_size == after.shape[-1] == size and weights_hash(model) == base
        assert torch.equal(after[..., :rows], before[..., :rows])
        assert torch.equal(after[..., rows + 2 :], before[..., rows + 2 :])
        assert torch.equal(model.embedding(torch.tensor([rows, rows + 1])), torch.ones(2, 64)), "as given"
        merge(model)
        close(logits(model, x), after)
        assert model.embedding.weight.shape[0] == size
        assert torch.equal(model.embedding.weight[rows : rows + 2], torch.ones(2, 64))
        (answer,) = generate(model, [x_of(extended)[0].tolist()], max_tokens=3, temperature=0.0)
        assert len(answer.tokens) == 3


def test_what_makes_no_sense_is_refused_before_any_change(tokenizer) -> None:
    of = case("llama")

    def refused(error: type[Exception], why: str, texts: list[str], rows: int = tokenizer.vocab_size) -> None:
        model = of.tiny(vocab_size=rows)
        with pytest.raises(error, match=why):
            extend_vocabulary(model, tokenizer, texts, generator("x"))
        assert not adapter_tensors(model) and model.config.vocab_size == rows

    refused(ConfigError, "number of new tokens is 0", [])
    refused(ConfigError, "is empty", [""])
    refused(ConfigError, "comes twice", ["<a>", "<a>"])
    refused(ConfigError, "is a token already", ["<|im_start|>"])
    refused(AdaptError, "64 rows", ["<a>"], rows=64)
    model = of.tiny(vocab_size=tokenizer.vocab_size)
    extended = extend_vocabulary(model, tokenizer, ["<a>"], generator("x"))
    with pytest.raises(AdaptError, match="merge first"):
        extend_vocabulary(model, extended, ["<b>"], generator("x"))
    with pytest.raises(AdaptError, match=r"rows are \[1, 3\]; expected \[1, 64\]"):
        extend_vocabulary(
            of.tiny(vocab_size=tokenizer.vocab_size), tokenizer, ["<b>"], generator("x"), rows=torch.ones(1, 3)
        )
