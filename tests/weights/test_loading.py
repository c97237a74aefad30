# SPDX-License-Identifier: Apache-2.0
"""The directory of an adapter, wherever a model's is expected: its base is found, adapted, merged for generation."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import foundling
from foundling.adapt.added import adapter_tensors, merge, unmerge
from foundling.adapt.lora import LoRAOptions, lora
from foundling.adapt.prefix import prefix_tuning
from foundling.adapt.quantised import QuantisedWeight
from foundling.adapt.quantize import dequantize, quantize
from foundling.adapt.soft import prompt_tuning
from foundling.adapt.vocabulary import extend
from foundling.errors import AdaptError, MismatchError, WeightsError
from foundling.runtime.rng import generator
from foundling.weights.adapter_layout import CONFIG
from foundling.weights.adapters import save_adapter
from foundling.weights.directory import weights_hash
from foundling.weights.inspect import inspect
from foundling.weights.loading import load
from foundling.weights.manifest import MANIFEST, check
from tests.contract.cases import case


def adapted(model: Any, **options: Any) -> Any:
    lora(model, LoRAOptions(rank=2, **options), generator("lora"))
    with torch.no_grad():
        for name, p in adapter_tensors(model).items():
            p.copy_(torch.randn(p.shape, generator=generator(name)) * 0.1)
    return model


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return foundling.save(case("llama").tiny(), tmp_path / "base")


def test_the_base_is_found_where_it_was_also_after_both_were_moved(base: Path, tmp_path: Path) -> None:
    model = adapted(load(base))
    save_adapter(model, tmp_path / "runs" / "adapter")
    of, outputs = case("llama"), case("llama").outputs(model)
    assert json.loads((tmp_path / "runs" / "adapter" / CONFIG).read_text())["base_model_name_or_path"] == str(base)
    assert torch.equal(of.outputs(load(tmp_path / "runs" / "adapter")), outputs)
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    shutil.move(tmp_path / "runs", moved / "runs")
    shutil.move(base, moved / "base")
    again = load(moved / "runs" / "adapter")
    assert torch.equal(of.outputs(again), outputs) and not again.training
    assert {n for n, p in again.named_parameters() if p.requires_grad} == adapter_tensors(again).keys()
    shutil.move(moved / "base", tmp_path / "other")
    with pytest.raises(WeightsError, match=r"base model '.*' is not there; give it as --base-model"):
        load(moved / "runs" / "adapter")
    assert torch.equal(of.outputs(load(moved / "runs" / "adapter", base=tmp_path / "other")), outputs)


def test_another_base_is_refused_with_the_way_out(base: Path, tmp_path: Path) -> None:
    save_adapter(adapted(load(base)), tmp_path / "adapter")
    other = foundling.save(case("llama").tiny(seed=1), tmp_path / "other")
    with pytest.raises(MismatchError, match=r"the base was read from .*other, --base-model") as caught:
        load(tmp_path / "adapter", base=other)
    assert "\n" not in str(caught.value)
    with pytest.raises(WeightsError, match="leave the base out"):
        load(base, base=other)
    config = json.loads((tmp_path / "adapter" / CONFIG).read_text())
    (tmp_path / "adapter" / MANIFEST).unlink()
    (tmp_path / "adapter" / CONFIG).write_text(json.dumps(config | {"base_model_name_or_path": None}))
    with pytest.raises(WeightsError, match="names no base model"):
        load(tmp_path / "adapter")
    (tmp_path / "adapter" / CONFIG).write_text(json.dumps(config | {"base_model_name_or_path": "../base"}))
    assert len(adapter_tensors(load(tmp_path / "adapter"))) == 28, "as written, from the adapter's directory"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_quantised_base_of_its_type_is_made_again_and_merged_to_the_same_bits(dtype: Any, tmp_path: Path) -> None:
    of = case("llama")
    foundling.save(of.tiny(), tmp_path / "base")
    model = load(tmp_path / "base", dtype=dtype)
    quantize(model, "layers.*.ffn.*")
    save_adapter(adapted(model), tmp_path / "adapter")
    outputs = of.outputs(model)
    again = load(tmp_path / "adapter", dtype=dtype)
    assert torch.equal(of.outputs(again), outputs) and sum(isinstance(m, QuantisedWeight) for m in again.modules()) == 6
    assert load(tmp_path / "adapter").embedding.weight.dtype == torch.float32, "in whichever type is asked for"
    merge(model)
    dequantize(model)
    merged = load(tmp_path / "adapter", dtype=dtype, merged=True)
    foundling.save(model, tmp_path / "merged")
    assert weights_hash(merged) == weights_hash(model) == weights_hash(load(tmp_path / "merged", dtype=dtype))


ROWS = torch.linspace(-1, 1, 2 * 64).view(2, 64)


@pytest.mark.parametrize(
    "add",
    [
        lambda m: prompt_tuning(m, 2, generator("prompt")),
        lambda m: prefix_tuning(m, 2, generator("prefix")),
        lambda m: extend(m, 64, ROWS, -ROWS, None),
    ],
)
def test_what_learns_in_float32_is_bound_to_a_bfloat16_base(base: Path, tmp_path: Path, add: Any) -> None:
    model = load(base, dtype=torch.bfloat16)
    add(model)
    assert {p.dtype for p in adapter_tensors(model).values()} == {torch.float32}
    save_adapter(model, tmp_path / "adapter")
    assert json.loads((tmp_path / "adapter" / MANIFEST).read_text())["base_dtype"] == "bfloat16"
    outputs = case("llama").outputs
    assert torch.equal(outputs(load(tmp_path / "adapter", dtype=torch.bfloat16)), outputs(model))


def test_a_merged_model_says_no_more_that_it_is_its_base(base: Path, tmp_path: Path) -> None:
    save_adapter(adapted(load(base)), tmp_path / "adapter")
    assert Path(load(tmp_path / "adapter").loaded_from).resolve() == base.resolve()
    model = load(tmp_path / "adapter", merged=True)
    assert not hasattr(model, "loaded_from")
    save_adapter(adapted(model), tmp_path / "second")
    with pytest.raises(WeightsError, match="names no base model"):
        load(tmp_path / "second")


def test_names_and_patterns_too_long_are_refused_in_a_line(base: Path, tmp_path: Path) -> None:
    save_adapter(adapted(load(base)), tmp_path / "adapter")
    file = tmp_path / "adapter" / MANIFEST
    manifest = json.loads(file.read_text())
    file.write_text(json.dumps(manifest | {"quantized": "a*" * 10_000}))
    with pytest.raises(WeightsError, match=r"quantized is 'a\*a.*20,002 characters"):
        load(tmp_path / "adapter")
    file.unlink()
    config = tmp_path / "adapter" / CONFIG
    values = json.loads(config.read_text())
    for name in ("b" * 5000, "b" * 2500 + "/" + "c" * 2500, "b\0c", "~b" * 200):
        config.write_text(json.dumps(values | {"base_model_name_or_path": name}))
        with pytest.raises(WeightsError, match="is not there; give it as --base-model") as caught:
            load(tmp_path / "adapter")
        assert len(str(caught.value)) < 500


@pytest.mark.parametrize("name", ["llama", "gpt2", "mixtral", "t5"])
def test_a_merge_is_taken_back_to_the_last_bit(name: str) -> None:
    of = case(name)
    model = of.tiny()
    digest = weights_hash(model)
    outputs = of.outputs(adapted(model, pattern="*layers.*,head"))
    config, trained = model.config, {n for n, p in model.named_parameters() if p.requires_grad}
    names = merge(model, reversible=True)
    assert not adapter_tensors(model) and weights_hash(model) != digest
    with pytest.raises(AdaptError, match="no adapters to merge"):
        merge(model)
    assert unmerge(model) == names
    assert weights_hash(model) == digest and torch.equal(of.outputs(model), outputs) and model.config == config
    assert {n for n, p in model.named_parameters() if p.requires_grad} == trained
    merge(model)
    with pytest.raises(AdaptError, match="no merge to take back"):
        unmerge(model)


def test_nothing_is_merged_where_one_cannot_be() -> None:
    from foundling.adapt.added import Added

    class Prefixed(Added):
        own = ("rows",)

        def __init__(self, base: Any) -> None:
            super().__init__()
            self.base, self.rows = base, torch.nn.Parameter(torch.zeros(2))

        def forward(self, *args: Any, **more: Any) -> Any:
            return self.get_submodule("base")(*args, **more)

    model = adapted(case("llama").tiny())
    setattr(model, "norm", Prefixed(model.norm))  # noqa: B010
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    with pytest.raises(AdaptError, match="Prefixed cannot be merged"):
        merge(model)
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())


def test_inspect_and_check_read_an_adapter(base: Path, tmp_path: Path) -> None:
    model = adapted(load(base))
    save_adapter(model, tmp_path / "adapter")
    found = inspect(tmp_path / "adapter")
    assert found["kind"] == "adapter" and found["base"]["weights_hash"] == weights_hash(model)
    assert found["parameters"] == sum(p.numel() for p in adapter_tensors(model).values())
    assert found["tensors"] == 28 and found["bytes"] == 4 * found["parameters"]
    assert check(tmp_path / "adapter")["ok"]


def test_a_vast_adapter_is_refused_by_its_header(base: Path, tmp_path: Path) -> None:
    """Before anything is allocated: shapes come from the header, and the header from whoever made the file."""
    save_adapter(adapted(load(base)), tmp_path / "adapter")
    (tmp_path / "adapter" / MANIFEST).unlink()
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    header = (
        b'{"base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight":{"dtype":"F32","shape":[1000000000,64],'
    )
    header += b'"data_offsets":[0,256000000000]}}'
    file.write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(WeightsError, match="damaged, not safetensors"):
        load(tmp_path / "adapter")
    for text in ("[]", "{", '{"peft_type": ' + "[" * 10_000, '{"peft_type": {"a": 1}, "base_model_name_or_path": 3}'):
        (tmp_path / "adapter" / CONFIG).write_text(text)
        with pytest.raises(WeightsError) as caught:
            load(tmp_path / "adapter", base=base)
        assert "\n" not in str(caught.value)
