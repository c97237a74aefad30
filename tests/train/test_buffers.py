# SPDX-License-Identifier: Apache-2.0
"""State beyond parameters: buffers are trained, saved, resumed and loaded like parameters."""

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from foundling.adapt.added import adapter_tensors
from foundling.adapt.method import apply
from foundling.adapt.options import AdaptOptions
from foundling.adapt.prune import PruneOptions, prune
from foundling.adapt.quantize import quantize
from foundling.contracts.objective import Term
from foundling.errors import ConfigError, WeightsError
from foundling.models import build, family
from foundling.runtime.device import Runtime
from foundling.runtime.rng import generator
from foundling.train.buffers import changing_buffers, copies
from foundling.train.checkpoint import STATE, load_checkpoint, save_checkpoint
from foundling.train.loop import train
from foundling.train.options import OptimOptions, TrainOptions
from foundling.train.schedule import Schedule
from foundling.train.state import TrainState
from foundling.weights.directory import load, persistent_tensors, save, weights_hash
from foundling.weights.inspect import inspect
from foundling.weights.manifest import check
from tests.contract.cases import Data, case
from tests.train.conv_family import Classify, Conv, Pictures, fresh, register

ADAMW = OptimOptions("adamw")


def fit(state: TrainState, steps: int = 6, until: int | None = None, **options) -> list[float]:
    losses = []
    for step in train(state, Classify(), Pictures(), Schedule(steps), TrainOptions(4, **options), Runtime()):
        losses.append(step.loss)
        if step.n == until:
            break
    return losses


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_buffers_are_checkpointed_and_resumed_bit_for_bit(tmp_path, optimizer) -> None:
    options = OptimOptions(optimizer)
    unbroken = TrainState.build(fresh(), options)
    losses = fit(unbroken)
    first = TrainState.build(fresh(), options)
    fit(first, until=3)
    second = TrainState.build(fresh(seed=1), options)
    load_checkpoint(save_checkpoint(tmp_path, first, {}), second)
    assert torch.equal(second.model.layers[0].codebook, first.model.layers[0].codebook)
    assert fit(second) == losses[3:]
    assert weights_hash(second.model) == weights_hash(unbroken.model)
    assert int(second.model.layers[1].norm.num_batches_tracked) == 12, "two micro-batches a step"
    second.model.layers[1].norm.running_var += 0.25
    assert weights_hash(second.model) != weights_hash(unbroken.model)


def test_a_checkpoint_without_the_buffers_is_refused(tmp_path) -> None:
    class Other(Conv):
        def __init__(self, config) -> None:
            super().__init__(config)
            self.register_buffer("more", torch.zeros(2))

    path = save_checkpoint(tmp_path, TrainState.build(fresh(), ADAMW), {})
    with pytest.raises(WeightsError, match="models/model/more"):
        load_checkpoint(path, TrainState.build(Other(fresh().config), ADAMW))


def test_directories_hold_persistent_buffers_and_loading_computes_the_others(tmp_path, monkeypatch) -> None:
    register(monkeypatch)
    state = TrainState.build(fresh(), ADAMW)
    fit(state)
    model, pixels = state.model.eval(), Pictures()[0]["pixels"]
    save(model, tmp_path / "model")
    again = load(tmp_path / "model")
    assert check(tmp_path / "model")["ok"] and weights_hash(again) == weights_hash(model)
    assert not any(t.is_meta for t in [*again.parameters(), *again.buffers()])
    assert torch.equal(again(pixels), model(pixels))
    assert again.layers[0].norm.num_batches_tracked.dtype == torch.int64
    assert "ramp" not in persistent_tensors(again) and "layers.0.codebook" in persistent_tensors(again)
    half = load(tmp_path / "model", dtype=torch.bfloat16)
    assert half.layers[0].norm.running_mean.dtype == torch.bfloat16
    assert int(half.layers[0].norm.num_batches_tracked) == 12

    found = inspect(tmp_path / "model")
    assert found["parameters"]["total"] == sum(p.numel() for p in model.parameters())
    assert found["tensors"] == len(model.state_dict())


def test_a_directory_whose_counter_is_no_integer_is_refused(tmp_path, monkeypatch) -> None:
    register(monkeypatch)
    model = fresh()
    model.layers[1].norm.num_batches_tracked = torch.tensor(1.5)
    save(model, tmp_path / "model")
    with pytest.raises(WeightsError, match=r"blocks.1.norm.num_batches_tracked.*F32.*I64"):
        load(tmp_path / "model")


def test_recomputed_layers_change_their_buffers_once(tmp_path) -> None:
    """The codebook that a layer reads is the one it had before it changed it, in the recomputation too."""
    plain, recomputed = (TrainState.build(fresh(), ADAMW) for _ in range(2))
    assert fit(plain) == fit(recomputed, activation_checkpointing=True)
    for (name, a), b in zip(
        persistent_tensors(plain.model).items(), persistent_tensors(recomputed.model).values(), strict=True
    ):
        assert torch.equal(a, b), name


def test_buffers_in_recomputed_layers_that_are_compiled_are_refused() -> None:
    options = TrainOptions(4, activation_checkpointing=True)
    steps = train(TrainState.build(fresh(), ADAMW), Classify(), Pictures(), Schedule(1), options, Runtime(compile=True))
    with pytest.raises(ConfigError, match="Block has buffers"):
        next(steps)


def test_a_step_that_is_not_finite_changes_no_buffer() -> None:
    class Poisoned(Pictures):
        def __getitem__(self, n: int):
            batch = super().__getitem__(n)
            return batch | {"pixels": batch["pixels"] * (float("nan") if n == 1 else 1)}

    state, seen = TrainState.build(fresh(), ADAMW), []
    for _ in train(state, Classify(), Poisoned(), Schedule(3), TrainOptions(4), Runtime()):
        seen.append({n: b.clone() for n, b in state.model.named_buffers() if n != "ramp"})
    assert state.skipped == 1
    assert all(torch.equal(seen[0][n], seen[1][n]) for n in seen[0])
    assert not any(torch.equal(seen[1][n], seen[2][n]) for n in seen[0])


class Similar:
    """A contrastive objective on the conv net."""

    def normalizers(self, batch) -> dict[str, int]:
        return {"loss": len(batch["pixels"])}

    def represent(self, model, batch):
        return {"all": F.normalize(model(batch["pixels"]), dim=1)}

    def loss(self, representations):
        x = representations["all"]
        return {"loss": Term((x @ x.T).sum(), len(x))}

    def __call__(self, model, batch):
        return self.loss(self.represent(model, batch))


def test_gradient_caching_passes_twice_and_changes_buffers_and_dropout_once() -> None:
    state, parts = TrainState.build(fresh(), ADAMW), []
    state.model.register_forward_hook(lambda m, args, out: parts.append(out.detach().clone()))
    next(train(state, Similar(), Pictures(), Schedule(1), TrainOptions(4), Runtime()))
    assert len(parts) == 4 and int(state.model.layers[0].norm.num_batches_tracked) == 2
    assert torch.equal(parts[0], parts[2]) and torch.equal(parts[1], parts[3]), "both passes see the same"


def test_the_weights_of_a_4_bit_base_are_neither_copied_nor_saved(tmp_path) -> None:
    of = case("llama")
    model = of.tiny()
    apply(model, AdaptOptions("qlora", rank=2), generator("lora"))
    assert list(model.buffers()) and copies(model) == {}
    state = TrainState.build(model.train(), ADAMW)
    next(train(state, of.objective(), Data(of), Schedule(1), TrainOptions(8), Runtime()))
    path = save_checkpoint(tmp_path, state, {})
    stored = {n for n in load_file(path / STATE) if n.startswith("models/")}
    assert stored == {f"models/model/{n}" for n in adapter_tensors(model)}
    assert {n.rpartition(".")[2] for n in stored} == {"a", "b"}
    other = of.tiny(seed=1)
    apply(other, AdaptOptions("qlora", rank=2), generator("lora"))
    with pytest.raises(WeightsError, match="the frozen weights are not those"):
        load_checkpoint(path, TrainState.build(other, ADAMW))


def test_masks_and_8_bit_weights_are_constant_and_other_buffers_of_any_type_are_not() -> None:
    model = case("llama").tiny()
    quantize(model, "layers.0.*")
    prune(model, PruneOptions(pattern="layers.1.*"))
    assert len(list(model.buffers())) > 10 and changing_buffers(model) == {}
    model.register_buffer("codes", torch.zeros(3, dtype=torch.int8))
    assert list(changing_buffers(model)) == ["codes"]


def test_families_without_buffers_have_the_hash_that_they_had() -> None:
    """Over names, shapes and bytes of parameters, worked out here."""
    import hashlib

    model = build("llama", **family("llama").module.sized(64, 16, 32, 1))
    digest = hashlib.sha256()
    for name, p in sorted(model.named_parameters()):
        digest.update(f"{name} {p.dtype} {tuple(p.shape)}\n".encode() + p.detach().numpy().tobytes())
    assert weights_hash(model) == digest.hexdigest()
    model.register_buffer("computed", torch.ones(3), persistent=False)
    assert weights_hash(model) == digest.hexdigest()
    model.register_buffer("counted", torch.ones(3))
    assert weights_hash(model) != digest.hexdigest()
