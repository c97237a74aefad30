# SPDX-License-Identifier: Apache-2.0
"""Adapters in directories of their own: what they are bound to, and what is refused before anything is changed."""

import json
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from foundling.adapt.added import adapter_tensors
from foundling.adapt.lora import LoRAOptions, lora
from foundling.adapt.quantize import quantize
from foundling.errors import AdaptError, FoundlingError, MismatchError, OutputError, WeightsError
from foundling.runtime.rng import generator
from foundling.weights.adapter_layout import CONFIG, FILE
from foundling.weights.adapters import load_adapter, save_adapter
from foundling.weights.directory import weights_hash
from foundling.weights.manifest import MANIFEST, check, write_manifest
from tests.contract.cases import case
from tests.processes import SERVER, leave_group

OPTIONS = LoRAOptions("layers.*.mixer.[qv]", rank=2, alpha=3.0)
TARGETS = ["layers.0.mixer.q", "layers.0.mixer.v", "layers.1.mixer.q", "layers.1.mixer.v"]


def adapted(model: Any) -> Any:
    lora(model, OPTIONS, generator("lora"))
    for name, p in adapter_tensors(model).items():
        p.data.normal_(generator=generator(name))
    return model


@pytest.fixture
def directory(tmp_path):
    return save_adapter(adapted(case("llama").tiny()), tmp_path / "adapter", about={"by": "hand"})


def rewrite(directory, tensors: dict[str, torch.Tensor] | None = None, **changes: Any) -> None:
    """Other tensors, or another manifest, with hashes that fit."""
    manifest = json.loads((directory / MANIFEST).read_text())
    if tensors is not None:
        save_file(tensors, directory / FILE)
    write_manifest(directory, {k: v for k, v in manifest.items() if k != "files"} | changes)


def refused(directory, error: type[FoundlingError], match: str) -> None:
    """In one line, and the model is as it was."""
    of = case("llama")
    model = of.tiny()
    before = of.outputs(model)
    with pytest.raises(error, match=match) as caught:
        load_adapter(model, directory)
    assert "\n" not in str(caught.value)
    assert not adapter_tensors(model) and all(p.requires_grad for p in model.parameters())
    assert torch.equal(of.outputs(model), before)


def test_the_files_say_what_it_is_and_what_it_belongs_to(directory) -> None:
    manifest = json.loads((directory / MANIFEST).read_text())
    assert manifest["kind"] == "adapter" and manifest["by"] == "hand" and manifest["quantized"] == ""
    assert manifest["adapters"] == {"lora": {"modules": {key: [2, 3.0] for key in TARGETS}}}
    assert manifest["base"] == weights_hash(case("llama").tiny()) and manifest["base_dtype"] == "float32"
    config = json.loads((directory / CONFIG).read_text())
    assert config["peft_type"] == "LORA" and config["task_type"] == "CAUSAL_LM"
    assert (config["r"], config["lora_alpha"], config["target_modules"]) == (2, 3.0, ["q_proj", "v_proj"])
    assert check(directory)["ok"] and list(manifest["files"]) == [CONFIG, FILE]
    assert load_file(directory / FILE).keys() == {
        f"base_model.model.model.layers.{i}.self_attn.{name}_proj.lora_{part}.weight"
        for i in range(2) for name in "qv" for part in "AB"
    }  # fmt: skip
    assert sum(p.stat().st_size for p in directory.iterdir()) < 9000, "the adapters alone"


def test_the_hash_of_an_adapted_model_is_that_of_its_base() -> None:
    model = case("mixtral").tiny()
    plain = weights_hash(model)
    assert weights_hash(adapted(model)) == plain
    model = case("mixtral").tiny()
    quantize(model)
    small = weights_hash(model)
    assert small != plain and weights_hash(adapted(model)) == small
    model.layers[0].ffn.up.scale[0, 0] *= 2
    assert weights_hash(model) != small, "scales count"


def test_a_directory_is_not_written_over(directory) -> None:
    with pytest.raises(OutputError, match="not empty"):
        save_adapter(adapted(case("llama").tiny(seed=1)), directory)
    assert check(directory)["ok"]
    with pytest.raises(AdaptError, match="no adapters"):
        save_adapter(case("llama").tiny(), directory.parent / "none")
    assert not (directory.parent / "none").exists()


def test_another_base_is_refused_with_both_hashes_and_the_way_out(directory, tmp_path) -> None:
    other = case("llama").tiny(seed=1)
    theirs, here = weights_hash(case("llama").tiny())[:12], weights_hash(other)[:12]
    with pytest.raises(MismatchError, match=f"{theirs}.*{here}.*load that base"):
        load_adapter(other, directory)
    small = case("llama").tiny()
    quantize(small, "layers.*.mixer.*")
    saved = save_adapter(adapted(small), tmp_path / "small")
    refused(saved, MismatchError, r"quantize\(model, 'layers\.\*\.mixer\.k,layers\.\*\.mixer\.o,")
    rewrite(saved, quantized=None)  # as it was written before the pattern was
    refused(saved, MismatchError, "quantised only if it was$")
    again = case("llama").tiny()
    quantize(again, "layers.*.mixer.*")
    assert load_adapter(again, saved) == TARGETS
    assert torch.equal(case("llama").outputs(again), case("llama").outputs(small))


def test_tensors_that_do_not_fit_are_named_before_anything_is_changed(directory) -> None:
    good, layers = load_file(directory / FILE), "base_model.model.model.layers"
    first = f"{layers}.0.self_attn.q_proj.lora_A.weight"
    rewrite(directory, {name: t for name, t in good.items() if name != first})
    refused(directory, WeightsError, rf"{FILE}: lacks tensor '{first}'")
    rewrite(directory, {name: t for name, t in good.items() if "0.self_attn.q" not in name})
    refused(directory, WeightsError, rf"{FILE}: lacks tensor '{first}'")
    rewrite(directory, good | {f"{layers}.0.self_attn.q_proj.lora_C.weight": torch.zeros(2)})
    refused(directory, WeightsError, rf"{FILE}: unknown tensor '{layers}\.0\.self_attn\.q_proj\.lora_C")
    rewrite(directory, good | {f"{layers}.1.self_attn.v_proj.lora_B.weight": torch.zeros(64, 3)})
    refused(directory, WeightsError, rf"{FILE}: tensor '{layers}.1.self_attn.v_proj.lora_B.weight' is \[64, 3\], not")
    rewrite(directory, good | {first: torch.zeros(2, 64, dtype=torch.int64)})
    refused(directory, WeightsError, rf"'{first}' is I64")
    rewrite(directory, good | {first: torch.full((2, 64), torch.inf)})
    refused(directory, WeightsError, rf"'.*{first}' holds 128 NaN or infinite values")
    for pair in ([10**12, 3.0], [3, 3.0]):
        rewrite(directory, good, adapters={"lora": {"modules": dict.fromkeys(TARGETS, pair)}})
        refused(directory, WeightsError, rf"has rank 2, {MANIFEST} says {pair[0]}")
    for pair in ([0, 3.0], [2, -1.0], [2, "x"], [True, 1.0], 2):
        rewrite(directory, good, adapters={"lora": {"modules": dict.fromkeys(TARGETS, pair)}})
        refused(directory, WeightsError, "damaged, rank and alpha of")
    rewrite(directory, good, adapters={"lora": {"modules": {key: [2, 3.0] for key in [*TARGETS, "nowhere"]}}})
    refused(directory, AdaptError, "'nowhere'.* is not a projection")
    rewrite(directory, good, adapters={"lora": []})
    refused(directory, WeightsError, "damaged, adapters.lora is")


def test_damage_is_named(directory) -> None:
    file, manifest = directory / FILE, directory / MANIFEST
    good = file.read_bytes()
    file.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    refused(directory, WeightsError, r"adapter_model\.safetensors: damaged")
    file.unlink()
    refused(directory, WeightsError, r"adapter_model\.safetensors: missing")
    file.write_bytes(good)
    rewrite(directory, adapter=False)
    refused(directory, WeightsError, "not the manifest of an adapter")
    manifest.unlink()
    (directory / CONFIG).unlink()
    refused(directory, WeightsError, "is this an adapter")


def test_adapters_are_not_put_on_adapters(directory) -> None:
    model = case("llama").tiny()
    load_adapter(model, directory)
    with pytest.raises(AdaptError, match="already"):
        load_adapter(model, directory)


def share(rank: int, root: str, answers: Any) -> None:
    import torch.distributed as dist

    from foundling.runtime.device import Runtime
    from foundling.train.loop import train
    from foundling.train.options import OptimOptions, TrainOptions
    from foundling.train.schedule import Schedule
    from foundling.train.state import TrainState
    from tests.contract.cases import Data

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{root}/rendezvous", rank=rank, world_size=2)
    of = case("llama")
    model = adapted(of.tiny())
    state = TrainState.build(model, OptimOptions("adamw"))
    runtime = Runtime(rank=rank, world_size=2, shard=True)
    losses = [s.loss for s in train(state, of.objective(), Data(of, rank, 2), Schedule(2), TrainOptions(4), runtime)]
    save_adapter(model, f"{root}/adapter")
    answers.put(losses)
    del state, model
    leave_group()


def test_two_processes_that_share_the_parameters_write_what_one_does(tmp_path) -> None:
    from foundling.runtime.device import Runtime
    from foundling.train.loop import train
    from foundling.train.options import OptimOptions, TrainOptions
    from foundling.train.schedule import Schedule
    from foundling.train.state import TrainState
    from tests.contract.cases import Data

    answers = SERVER.Queue()
    processes = [SERVER.Process(target=share, args=(rank, str(tmp_path), answers), daemon=True) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        process.kill()
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    of = case("llama")
    alone = adapted(of.tiny())
    state = TrainState.build(alone, OptimOptions("adamw"))
    losses = [s.loss for s in train(state, of.objective(), Data(of), Schedule(2), TrainOptions(4), Runtime())]
    assert [answers.get(timeout=5) for _ in processes] == [losses, losses]
    fresh = of.tiny()
    load_adapter(fresh, tmp_path / "adapter")
    for name, p in adapter_tensors(fresh).items():
        assert torch.equal(p, adapter_tensors(alone)[name]), name
