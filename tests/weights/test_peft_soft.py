# SPDX-License-Identifier: Apache-2.0
"""Soft prompts and prefixes beside peft: its models and ours compute the same, both ways."""

import json
from typing import Any

import peft
import pytest
import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor

from foundling.adapt.added import adapter_tensors, added
from foundling.adapt.lora import LoRAOptions, lora
from foundling.adapt.prefix import prefix_tuning
from foundling.adapt.soft import prompt_tuning, virtual_ids
from foundling.errors import AdaptError, WeightsError
from foundling.models import build, family
from foundling.runtime.rng import generator
from foundling.weights.adapter_layout import CONFIG, FILE, Kind, Source
from foundling.weights.adapters import save_adapter
from foundling.weights.directory import load, save
from foundling.weights.peft_soft import PREFIX, PROMPT
from foundling.weights.tensors import tensors_of
from tests.contract.cases import case, close, tokens

N = 5


def write(model: Any, directory, kind: Kind) -> None:
    directory.mkdir()
    written = kind.write(model, added(model), {name: p.detach() for name, p in adapter_tensors(model).items()})
    (directory / CONFIG).write_text(json.dumps(written.config), encoding="utf-8")
    save_file(written.tensors, directory / FILE)


def read(model: Any, directory, kind: Kind) -> list[str]:
    with tensors_of(directory, FILE) as tensors:
        source = Source(directory, json.loads((directory / CONFIG).read_text()), None, tensors)
        assert kind.applies(source)
        attach = kind.read(model, source)
        source.check_all_taken()
        return attach()


@torch.no_grad()
def ours(model: Any, x: Tensor) -> Tensor:
    virtual = torch.tensor(virtual_ids(model), dtype=torch.int64).expand(len(x), -1)
    if model.capabilities.reads_source:
        memory = model.encode(torch.cat((virtual, x), dim=1))
        return model.logits(model(x[:, :4], memory=memory).hidden)
    return model.logits(model(torch.cat((virtual, x), dim=1)).hidden)


@torch.no_grad()
def theirs(model: Any, x: Tensor) -> Tensor:
    more = {"decoder_input_ids": x[:, :4]} if model.config.is_encoder_decoder else {}
    return model.eval()(input_ids=x, attention_mask=torch.ones_like(x), **more).logits


HEADS = {"CAUSAL_LM": "AutoModelForCausalLM", "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM"}


def reference(directory, task: str) -> Any:
    return getattr(transformers, HEADS.get(task, "AutoModelForMaskedLM")).from_pretrained(directory)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        pytest.param(name, kind, id=f"{name}-{kind.name}", marks=[] if name in quick else pytest.mark.slow)
        for kind, quick, others in (
            (PROMPT, ("llama", "gpt2", "gemma2"), ("bert", "t5", "mamba")),
            (PREFIX, ("llama", "gpt_neox"), ("qwen3", "olmo2", "mixtral", "gemma")),
        )
        for name in (*quick, *others)
    ],
)  # fmt: skip
def test_peft_computes_the_same_with_our_files_and_we_with_its(name: str, kind: Kind, tmp_path) -> None:
    of, x = case(name), tokens(2, 9)
    base = of.tiny()
    save(base, tmp_path / "base")
    task = kind.write(*adapted(of.tiny(), kind)).config["task_type"]
    plain = theirs(reference(tmp_path / "base", task), x)

    model = adapted(of.tiny(), kind)[0]
    with torch.no_grad():
        for p in adapter_tensors(model).values():
            p.mul_(3)
    write(model, tmp_path / "ours", kind)
    their = theirs(peft.PeftModel.from_pretrained(reference(tmp_path / "base", task), tmp_path / "ours"), x)
    close(ours(model, x), their)
    assert (their[:, -plain.shape[1] :] - plain).abs().max() > 0.05, "it shows in the outputs"

    if kind is PROMPT:
        config: Any = peft.PromptTuningConfig(task_type=task, num_virtual_tokens=N)
        config.num_attention_heads = 1  # peft asks every model for it, and Mamba has none
    else:
        config = peft.PrefixTuningConfig(task_type=task, num_virtual_tokens=N)
    torch.manual_seed(0)
    made = peft.get_peft_model(reference(tmp_path / "base", task), config)
    made.save_pretrained(tmp_path / "theirs")
    fresh = load(tmp_path / "base")
    read(fresh, tmp_path / "theirs", kind)
    close(ours(fresh, x), theirs(made, x))
    trainable = {name for name, p in fresh.named_parameters() if p.requires_grad}
    assert trainable == adapter_tensors(fresh).keys()


def adapted(model: Any, kind: Kind) -> tuple[Any, Any, Any]:
    (prompt_tuning if kind is PROMPT else prefix_tuning)(model, N, generator("soft"), [7, 8, 9])
    return model, added(model), {name: p.detach() for name, p in adapter_tensors(model).items()}


@pytest.mark.parametrize("name", ["gpt2", "mistral", "bloom", "jamba"])
def test_a_prefix_that_peft_would_shift_is_refused_by_name(name: str, tmp_path) -> None:
    of = case(name)
    written = PREFIX.write(*adapted(of.tiny(), PREFIX))
    assert "peft_type" not in written.config and written.about["not_peft"]
    write(adapted(case("llama").tiny(), PREFIX)[0], tmp_path / "theirs", PREFIX)
    with pytest.raises(WeightsError, match=type(of.tiny()).__name__):
        read(of.tiny(), tmp_path / "theirs", PREFIX)


def test_two_kinds_of_one_directory_are_refused_where_peft_has_one(tmp_path) -> None:
    model = case("llama").tiny()
    lora(model, LoRAOptions(rank=2), generator("lora"))
    prompt_tuning(model, N, generator("soft"))
    with pytest.raises(AdaptError, match="LORA and PROMPT_TUNING cannot share"):
        save_adapter(model, tmp_path / "both")
    assert not (tmp_path / "both").exists()


def test_damaged_files_are_refused_before_any_change(tmp_path) -> None:
    of = case("llama")
    write(adapted(of.tiny(), PROMPT)[0], tmp_path / "prompt", PROMPT)
    config = json.loads((tmp_path / "prompt" / CONFIG).read_text())
    for value in (0, -1, "5", None, 6, 1 << 40):
        (tmp_path / "prompt" / CONFIG).write_text(json.dumps(config | {"num_virtual_tokens": value}))
        model = of.tiny()
        with pytest.raises(WeightsError, match=r"num_virtual_tokens|rows"):
            read(model, tmp_path / "prompt", PROMPT)
        assert not added(model)


def test_a_prompt_that_fills_all_positions_is_refused_before_any_change(tmp_path) -> None:
    model = build("gpt2", **family("gpt2").module.sized(64, 32, 64, 1))
    prompt_tuning(model, 31, generator("soft"))
    write(model, tmp_path / "prompt", PROMPT)
    small = build("gpt2", **family("gpt2").module.sized(64, 31, 64, 1))
    with pytest.raises(WeightsError, match="num_virtual_tokens is 31; the model reads 31 tokens"):
        read(small, tmp_path / "prompt", PROMPT)
    assert not added(small) and all(p.requires_grad for p in small.parameters())
