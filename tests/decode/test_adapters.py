# SPDX-License-Identifier: Apache-2.0
"""Requests with different adapters in one batch generate what each adapter generates alone on its base."""

from pathlib import Path

import pytest
import torch

import foundling
from foundling.adapt.added import adapter_tensors, added
from foundling.blocks.moe import MoE
from foundling.decode.engine.engine import Engine, EngineOptions
from foundling.decode.plain import generate
from foundling.decode.request import Request
from foundling.decode.sampling import Sampling
from foundling.decode.text import TextGenerator
from foundling.errors import AdaptError, GenerationError, WeightsError
from foundling.models import FAMILIES, build, family
from foundling.runtime.rng import generator
from foundling.weights.adapters import load_adapters
from foundling.weights.directory import weights_hash
from tests.contract.cases import case, close
from tests.contract.matrix import UNLIKE, families
from tests.text.kinds import tokenizer

WRITERS = tuple(name for name, entry in FAMILIES.items() if entry.kind in ("decoder", "seq2seq"))


def adapter(name: str, directory: Path, pattern: str, rank: int, seed: int) -> Path:
    model, draw = case(name).tiny(), torch.Generator().manual_seed(seed)
    foundling.lora(model, foundling.LoRAOptions(pattern, rank=rank, alpha=16.0), draw)
    for key, p in model.named_parameters():
        if key.endswith(".b"):
            p.data.copy_(torch.randn(p.shape, generator=draw) * 0.3)
    return foundling.save_adapter(model, directory)


@pytest.mark.parametrize("name", families(WRITERS, UNLIKE))
def test_each_request_uses_its_own_adapter(name: str, tmp_path: Path) -> None:
    part = "mixer.*" if any(isinstance(m, MoE) for m in case(name).tiny().modules()) else "*"  # experts cannot share
    adapter(name, tmp_path / "one", f"*layers.*.{part},head", 4, 1)
    adapter(name, tmp_path / "two", f"layers.0.{part}", 2, 2)
    prompts, chosen = [[5, 9, 11] * 7, [7], [5, 9, 11] * 7, [4, 4, 9]], ["one", "two", None, "one"]
    expected = []
    for prompt, which in zip(prompts, chosen, strict=True):
        alone = case(name).tiny()
        if which:
            foundling.load_adapter(alone, tmp_path / which)
        expected += [a.tokens for a in generate(alone, [prompt], max_tokens=10, temperature=0)]
    model = case(name).tiny()
    bank = load_adapters(model, {"one": tmp_path / "one", "two": tmp_path / "two"})
    engine = Engine(model, EngineOptions(max_num_seqs=3, max_step_tokens=16))
    assert bank.names == ("one", "two") and not engine.native
    asked = [Request(p, 10, Sampling(0), adapter=which) for p, which in zip(prompts, chosen, strict=True)]
    for _ in range(2):  # the second time prefixes are shared, per adapter
        assert [a.tokens for a in engine.generate(asked)] == expected
    assert expected[0] != expected[2], "an adapter shows"
    assert [a.tokens for a in generate(model, prompts[2:3], max_tokens=10, temperature=0)] == [expected[2]]


@pytest.mark.parametrize("change", ["lora", "int8", "hook"])
def test_torch_serves_a_changed_model(change: str) -> None:
    model = case("llama").tiny()
    if change == "lora":
        foundling.lora(model, foundling.LoRAOptions("*q"), torch.Generator().manual_seed(0))
        model.layers[0].mixer.q.b.data.fill_(0.1)
    elif change == "int8":
        foundling.quantize(model, "layers.*")
    else:
        model.layers[1].mixer.attend.register_forward_hook(lambda module, inputs, output: output * 2)
    engine = Engine(model)
    assert not engine.native and engine.reason
    expected = generate(model, [[5, 9]], max_tokens=8, temperature=0)
    assert engine.generate([Request([5, 9], 8, Sampling(0))])[0].tokens == expected[0].tokens


def test_errors_are_one_line(tmp_path: Path) -> None:
    adapter("mixtral", tmp_path / "experts", "*ffn.up", 2, 1)
    with pytest.raises(AdaptError, match="experts"):
        load_adapters(case("mixtral").tiny(), {"experts": tmp_path / "experts"})
    adapter("llama", tmp_path / "one", "*q", 2, 1)
    model = case("llama").tiny()
    load_adapters(model, {"one": tmp_path / "one"})
    with pytest.raises(AdaptError, match="already"):
        foundling.load_adapter(model, tmp_path / "one")
    with pytest.raises(WeightsError, match="Banked"):
        foundling.save(model, tmp_path / "banked")
    with pytest.raises(GenerationError, match="adapter 'two' is unknown; known adapters: one"):
        Engine(model).add(Request([1], 1, adapter="two"))
    with pytest.raises(GenerationError, match="load_adapters"):
        Engine(case("llama").tiny()).add(Request([1], 1, adapter="one"))


@torch.no_grad()
def test_adapters_are_stacked_and_switched(tmp_path: Path) -> None:
    """A sum of adapters is what the sum of their updates is, in a row beside others and for all rows."""
    of, weights = case("llama"), {"one": 1.0, "two": -0.5}
    adapter("llama", tmp_path / "one", "layers.*", 4, 1)
    adapter("llama", tmp_path / "two", "layers.0.*,head", 2, 2)
    alone: dict[str | None, torch.Tensor] = {None: of.outputs(of.tiny())}
    summed = of.tiny()
    for name, weight in weights.items():
        model = of.tiny()
        foundling.load_adapter(model, tmp_path / name)
        alone[name] = of.outputs(model)
        for path, module in added(model).items():
            change = weight * module.scale * module.b @ module.a  # pyright: ignore
            summed.get_submodule(path).weight += change  # pyright: ignore
    alone["both"] = of.outputs(summed)
    model = of.tiny()
    bank = load_adapters(model, {name: tmp_path / name for name in weights})
    bank.stack("both", weights)
    for name in ("both", "one", None, "two"):
        foundling.switch(model, name)
        close(of.outputs(model), alone[name])
    foundling.switch(model, "one")
    for rows in (("both", None), ("two", "both")):
        bank.bind(rows)
        close(of.outputs(model), torch.stack([alone[name][i] for i, name in enumerate(rows)]))
    bank.bind(())
    close(of.outputs(model), alone["one"])
    bank.stack("more", {"both": 2.0, "one": -1.0})
    assert bank.parts("more") == {"one": 1.0, "two": -1.0}
    foundling.switch(model, None)
    prompts = [[5, 9, 11] * 3, [7]]
    for name in ("both", "one"):
        foundling.switch(model, name)
        expected = generate(model, prompts, max_tokens=6, temperature=0)
        foundling.switch(model, None)
        asked = [Request(p, 6, Sampling(0), adapter=name) for p in prompts]
        assert [a.tokens for a in Engine(model).generate(asked)] == [a.tokens for a in expected]
    for refused in (lambda: bank.stack("one", {"two": 1.0}), lambda: bank.stack("x", {"none": 1.0}),
                    lambda: bank.stack("x", {"one": float("nan")}), lambda: foundling.switch(model, "none"),
                    lambda: foundling.switch(of.tiny(), "one")):  # fmt: skip
        with pytest.raises(AdaptError) as caught:
            refused()
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("own", [True, False])
def test_text_from_an_adapter_is_that_of_the_merged_directory(own: bool, tmp_path: Path) -> None:
    """With a tokenizer of its own, or that of its base."""
    reader = tokenizer("llama 3")
    model = build("llama", **family("llama").module.sized(reader.vocab_size, 128, 64, 2))
    for name, p in model.named_parameters():
        p.data.copy_(torch.randn(p.shape, generator=generator(name)) * 0.2 + (p.ndim == 1))
    foundling.save(model, tmp_path / "base", tokenizer=reader)
    model = foundling.load(tmp_path / "base")
    foundling.lora(model, foundling.LoRAOptions(rank=2), generator("lora"))
    for name, p in adapter_tensors(model).items():
        p.data.copy_(torch.randn(p.shape, generator=generator(name)) * 0.3)
    foundling.save_adapter(model, tmp_path / "adapter", tokenizer=reader if own else None)
    foundling.merge(model)
    foundling.save(model, tmp_path / "merged", tokenizer=reader)
    writers = [TextGenerator.load(tmp_path / name) for name in ("adapter", "merged", "base")]
    assert weights_hash(writers[0].model) == weights_hash(writers[1].model)
    texts = [writer.generate("Hello, world", max_tokens=12) for writer in writers]
    assert texts[0] == texts[1] != texts[2]
    native = TextGenerator.load(tmp_path / "adapter", weights="int8", base=tmp_path / "base")
    assert native.engine is not None and native.engine.native
