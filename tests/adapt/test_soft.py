# SPDX-License-Identifier: Apache-2.0
"""Prompt and prefix tuning: what they start as, and what is refused."""

import dataclasses
import math

import pytest
import torch

from foundling.adapt.added import merge
from foundling.adapt.prefix import prefix_tuning
from foundling.adapt.soft import prompt_tuning, virtual_ids
from foundling.decode.engine.engine import Engine, EngineOptions
from foundling.decode.plain import generate
from foundling.decode.request import Request
from foundling.decode.sampling import Sampling
from foundling.decode.text import TextGenerator
from foundling.errors import AdaptError, GenerationError
from foundling.runtime.rng import generator
from foundling.text import Tokenizer
from foundling.text.framing import Framing
from foundling.weights.adapters import save_adapter
from foundling.weights.directory import save
from foundling.weights.text_spec import text_spec
from tests.contract.cases import VOCAB, case, close, tokens

IDS = [7, 8, 9, 10, 11]


@pytest.mark.parametrize("name", ["llama", "mixtral", "gemma3", "bloom", "mamba2"])
@torch.no_grad()
def test_a_soft_prompt_of_tokens_is_these_tokens(name: str) -> None:
    model, x = case(name).tiny(), tokens(2, 9)
    read = torch.cat((torch.tensor(IDS).expand(2, -1), x), dim=1)
    expected = model.logits(model(read).hidden)
    assert prompt_tuning(model, 5, generator("x"), IDS) == ["embedding"]
    virtual = torch.tensor(virtual_ids(model)).expand(2, -1)
    assert virtual[0].tolist() == [VOCAB + i for i in range(5)]
    assert torch.equal(model.logits(model(torch.cat((virtual, x), dim=1)).hidden), expected)


@pytest.mark.parametrize("name", ["llama", "gpt_neox", "gemma2", "gpt_oss", "mixtral"])
@torch.no_grad()
def test_a_prefix_of_tokens_is_these_tokens_read_before(name: str) -> None:
    """Rotary positions tell distances alone, so it makes no difference that the text begins at position 0; 14 tokens
    are inside of every window."""
    model, x = case(name).tiny(), tokens(2, 9)
    read = torch.cat((torch.tensor(IDS).expand(2, -1), x), dim=1)
    expected = model.logits(model(read).hidden)[:, 5:]
    assert len(prefix_tuning(model, 5, generator("x"), IDS)) == 2
    close(model.logits(model(x).hidden), expected)


def test_start() -> None:
    def rows(*more: object) -> torch.Tensor:
        model = case("llama").tiny()
        prompt_tuning(model, 4, generator("x"), *more)
        return model.embedding.rows.detach()

    weight = case("llama").tiny().embedding.weight.detach()
    assert torch.equal(rows([5, 6]), weight[[5, 6, 5, 6]]), "repeated to n"
    assert torch.equal(rows([1, 2, 3, 4, 5]), weight[[1, 2, 3, 4]]), "cut to n"
    assert torch.equal(rows(), rows()), "by the generator"
    assert all((row == weight).all(1).any() for row in rows()), "rows of the vocabulary"
    model = case("llama").tiny()
    prefix_tuning(model, 4, generator("x"))
    k = model.layers[0].mixer.attend.k
    assert k.shape == (model.config.n_kv_heads, 4, model.config.head_dim) and 0 < k.std() < 0.03


def test_what_makes_no_sense_is_refused() -> None:
    for n in (0, -1, 1 << 30, "5", True, 2.0):
        with pytest.raises(AdaptError, match="n is"):
            prompt_tuning(case("llama").tiny(), n, generator("x"))  # pyright: ignore[reportArgumentType]
        with pytest.raises(AdaptError, match="n is"):
            prefix_tuning(case("llama").tiny(), n, generator("x"))  # pyright: ignore[reportArgumentType]
    for ids, why in (([], "empty"), ([VOCAB], "rows for 0 to 63"), ([-1], "an id of init_ids"), (["a"], "'a'")):
        for tune in (prompt_tuning, prefix_tuning):
            model = case("llama").tiny()
            with pytest.raises(AdaptError, match=why):
                tune(model, 2, generator("x"), ids)
            assert all(p.requires_grad for p in model.parameters()), "nothing is changed"
    with pytest.raises(AdaptError, match="Mamba has no self-attention"):
        prefix_tuning(case("mamba").tiny(), 2, generator("x"))
    with pytest.raises(AdaptError, match="UNet reads no tokens"):
        prompt_tuning(case("unet").tiny(), 2, generator("x"))
    model = case("llama").tiny()
    prompt_tuning(model, 2, generator("x"))
    with pytest.raises(AdaptError, match="cannot be merged"):
        merge(model)


def test_a_text_of_clip_ends_where_it_ended_without_a_soft_prompt() -> None:
    """Where a configuration says eos_id 2, the end is at the largest id, and those of virtual tokens are larger."""
    model, x = case("clip").tiny(), tokens(2, 8)
    x[:, 5] = VOCAB - 1
    x[:, 6:] = 4
    for eos in (VOCAB - 1, 2):
        model.text.eos_id = eos
        fresh = case("clip").tiny()
        fresh.text.eos_id = eos
        prompt_tuning(fresh, 3, generator("x"), [5, 6, 7])
        virtual = torch.tensor([[*virtual_ids(fresh)]]).expand(2, -1)
        expected = model.embed("text", {"tokens": torch.cat((torch.tensor([[5, 6, 7]]).expand(2, -1), x), dim=1)})
        assert torch.equal(fresh.embed("text", {"tokens": torch.cat((virtual, x), dim=1)}), expected)


@pytest.mark.parametrize("tune", [prompt_tuning, prefix_tuning])
def test_half_types_train_in_float32(tune) -> None:
    of = case("gemma2")
    model = of.tiny().bfloat16()
    tune(model, 3, generator("x"), IDS)
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    x = torch.cat((torch.tensor([virtual_ids(model)], dtype=torch.int64).expand(2, -1), tokens(2, 9)), dim=1)
    hidden = model(x).hidden
    assert hidden.dtype == torch.bfloat16
    hidden.float().square().sum().backward()
    assert all(p.grad.abs().max() > 0 for p in model.parameters() if p.requires_grad)


def test_native_code_reads_soft_prompts_and_refuses_prefixes() -> None:
    model = case("llama").tiny()
    prompt_tuning(model, 5, generator("x"))
    ids = [*virtual_ids(model), *tokens(1, 9)[0].tolist()]
    asked = [Request(ids, 6, Sampling(temperature=0.0), logprobs=0)]
    (native,), (torch_,) = (Engine(model, EngineOptions(native=n)).generate(asked) for n in (True, False))
    assert native.tokens == torch_.tokens and native.logprobs == pytest.approx(torch_.logprobs, abs=1e-2)
    model = case("llama").tiny()
    prefix_tuning(model, 5, generator("x"))
    with pytest.raises(GenerationError, match=r"'mixer.attend' of layer 0 is an adapter \(PrefixAttend\); use torch"):
        Engine(model, EngineOptions(native=True))


def test_ids_of_a_soft_prompt_are_read_and_never_predicted() -> None:
    model = case("llama").tiny()
    prompt_tuning(model, 20, generator("x"))
    ids = [*virtual_ids(model), *tokens(1, 30)[0].tolist()]
    options = {"temperature": 0.0, "repetition_penalty": 1.3, "frequency_penalty": 0.1}
    (plain,) = generate(model, [ids], max_tokens=8, prompt_logprobs=2, **options)
    assert max(plain.tokens) < VOCAB and plain.prompt_logprobs is not None
    assert plain.prompt_logprobs[1:20] == [-math.inf] * 19 and all(map(math.isfinite, plain.prompt_logprobs[20:]))
    engine = Engine(model, EngineOptions(native=False, share_prefixes=True))
    request = Request(ids, 8, Sampling(**options))
    assert [c.tokens for c in engine.generate([request])] == [c.tokens for c in engine.generate([request])]
    assert engine.generate([request])[0].tokens == plain.tokens, "blocks of virtual tokens are shared as others are"
    (engine_,) = engine.generate([dataclasses.replace(request, prompt_logprobs=2)])
    assert engine_.prompt_logprobs is not None and engine_.prompt_logprobs[1:20] == [-math.inf] * 19
    with pytest.raises(GenerationError, match="outside the vocabulary"):
        generate(model, [[VOCAB + 20]], max_tokens=1)


def test_an_adapters_directory_answers_with_its_soft_prompt_before_each_text(tmp_path) -> None:
    tokenizer = Tokenizer.train(["one two three four five six seven eight nine ten " * 9], 320)
    of = case("llama")
    model = of.tiny(vocab_size=tokenizer.vocab_size)
    save(model, tmp_path / "base", tokenizer=tokenizer)
    base = TextGenerator.load(tmp_path / "base")
    spoken = [*tokenizer.encode(" ten"), *tokenizer.frame[0], *tokenizer.encode("one two")]
    expected = base.answer(spoken, max_tokens=9)[0]["text"]
    prompt_tuning(model, len(tokenizer.encode(" ten")), generator("x"), tokenizer.encode(" ten"))
    save_adapter(model, tmp_path / "adapter", base=tmp_path / "base")
    adapted = TextGenerator.load(tmp_path / "adapter")
    assert adapted.framing.spec.virtual == virtual_ids(model) != ()
    streamed: list[str] = []
    (answer,) = adapted.generate("one two", max_tokens=9, on_text=streamed.append)
    assert answer["text"] == "".join(streamed) == expected != base.generate("one two", max_tokens=9)[0]["text"]


def test_every_text_begins_with_the_virtual_tokens() -> None:
    tokenizer, model = Tokenizer.train(["one two three"], 320), case("llama").tiny()
    plain = Framing(tokenizer)
    prompt_tuning(model, 2, generator("x"))
    framing = Framing(tokenizer, text_spec(model))
    virtual, messages = [*virtual_ids(model)], [{"role": "user", "content": "two"}]
    assert framing.prompt("one") == virtual + plain.prompt("one")
    assert framing.prompt("") == virtual + plain.prompt("")
    assert framing.beginning("one") == virtual + plain.beginning("one")
    assert framing.chat(messages) == virtual + plain.chat(messages)
    assert framing.fill_in_the_middle("one", "three") == virtual + plain.fill_in_the_middle("one", "three")
    ids = tokenizer.encode(" three")
    assert framing.answer(framing.prompt("one"))(ids) == plain.answer(plain.prompt("one"))(ids) == " three"
    assert not set(framing.unnamed_rows()) & set(virtual)
