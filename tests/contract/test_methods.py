# SPDX-License-Identifier: Apache-2.0
"""What is done to a raised model, for every family: adapters, quantisation, a second model in the step."""

import pytest
import torch

from foundling.adapt.added import adapter_tensors, merge
from foundling.adapt.lora import LoRAOptions, lora
from foundling.adapt.nf4 import LEVELS
from foundling.adapt.quantize import Kind, dequantize, quantize
from foundling.errors import MismatchError, WeightsError
from foundling.objectives.distill import Distill
from foundling.objectives.preference import DPO, Referenced
from foundling.runtime.device import Runtime
from foundling.runtime.rng import generator
from foundling.train.checkpoint import load_checkpoint, save_checkpoint
from foundling.train.loop import train
from foundling.train.options import OptimOptions, TrainOptions
from foundling.train.schedule import Schedule
from foundling.train.state import MODEL, TrainState
from foundling.weights.adapters import load_adapter, save_adapter
from foundling.weights.directory import load, save, weights_hash
from tests.contract.cases import Counted, Data, case, close, preferences
from tests.contract.matrix import ADAPTED, UNLIKE, covers
from tests.rounding import bound

ADAMW = OptimOptions(optimizer="adamw", learning_rate=0.003)
EVERY = LoRAOptions("*layers.*,*proj*", rank=4, alpha=16.0)


class Same:
    def __init__(self, batch) -> None:
        self.batch = batch

    def __getitem__(self, n: int):
        return self.batch


def fit(model, objective, batches, steps: int = 6, micro: int = 4, until: int | None = None, state=None) -> list[float]:
    state = state or TrainState.build(model, ADAMW)
    losses = []
    for step in train(state, objective, batches, Schedule(steps), TrainOptions(micro), Runtime()):
        losses.append(step.loss)
        if step.n == until:
            break
    return losses


@covers("LoRA", quick=ADAPTED)
def test_adapters_train_alone_are_saved_alone_and_merge(name: str, tmp_path) -> None:
    of = case(name)
    model = of.tiny()
    save(model, tmp_path / "base")
    model.requires_grad_(False)  # as adapters leave it: torch multiplies by weights that get no gradient another way
    before, base, objective = of.outputs(model), weights_hash(model), of.objective()
    names = lora(model, EVERY, generator("lora"))
    assert len(names) >= (2 if name == "ffn_lm" else 4) and torch.equal(of.outputs(model), before), (
        "nothing changes at first"
    )
    trainable = {n for n, p in model.named_parameters() if p.requires_grad}
    assert trainable == adapter_tensors(model).keys()

    model.train()
    state = TrainState.build(model, ADAMW)
    losses = fit(model, objective, Same(of.batch(0)), state=state, until=3)
    path = save_checkpoint(tmp_path / "checkpoints", state, {})
    losses += fit(model, objective, Same(of.batch(0)), state=state)
    assert losses[-1] < losses[0] and weights_hash(model) == base, "the base is not touched by a bit"

    again = load(tmp_path / "base")
    lora(again, EVERY, generator("lora"))
    resumed = TrainState.build(again, ADAMW)
    load_checkpoint(path, resumed)
    assert fit(again.train(), objective, Same(of.batch(0)), state=resumed) == losses[3:], "resumed bitwise"

    model.eval()
    after = of.outputs(model)
    with pytest.raises(WeightsError, match="merge"):
        save(model, tmp_path / "refused")
    save_adapter(model, tmp_path / "adapter")
    fresh = load(tmp_path / "base")
    assert load_adapter(fresh, tmp_path / "adapter") == names
    assert torch.equal(of.outputs(fresh), after)
    with pytest.raises(MismatchError, match="base"):
        load_adapter(of.tiny(seed=1), tmp_path / "adapter")

    merge(model)
    close(of.outputs(model), after)
    save(model, tmp_path / "merged")
    assert torch.equal(of.outputs(load(tmp_path / "merged")), of.outputs(model))


def levels_rms() -> float:
    """Root of the mean squared error of normal weights, in blocks of 64, at the nearest of NF4's levels: 0.094 of a
    standard deviation."""
    x = torch.randn(4096, 64, generator=generator("normal"))
    x = x / x.abs().amax(1, keepdim=True)
    nearest = (x[..., None] - torch.tensor(LEVELS)).abs().amin(-1)
    return float(nearest.norm() / x.norm())


def quantised(name: str, path, kind: Kind, worst: float, spread: float) -> None:
    """`worst` is the most by which quantisation may change a weight, in parts of the largest weight beside it, `spread`
    the root mean square of a matrix, in parts of the matrix. Errors of matrices add up in the outputs like a random
    walk, to √n times that of one."""
    of = case(name)
    model = of.fresh()
    fit(model, of.objective(), Same(of.batch(0)), steps=3)
    model.eval()
    exact, weights = of.outputs(model), {n: p.detach().clone() for n, p in model.named_parameters()}
    names = quantize(model, "*layers.*", kind)
    rounded = of.outputs(model)
    for n in names:
        change = model.get_submodule(n).dequantized_weight() - weights[f"{n}.weight"]  # pyright: ignore
        assert change.norm() <= spread * weights[f"{n}.weight"].norm(), n
    assert (rounded - exact).norm() < spread * len(names) ** 0.5 * exact.norm()
    assert len(names) >= (2 if name == "ffn_lm" else 4)
    base = weights_hash(model)

    lora(model, EVERY, generator("lora"))
    losses = fit(model.train(), of.objective(), Same(of.batch(0)))
    assert losses[-1] < losses[0] and weights_hash(model) == base
    model.eval()
    after = of.outputs(model)
    with pytest.raises(WeightsError, match="Linear"):
        save(model, path / "refused")
    save_adapter(model, path / "adapter")
    with pytest.raises(MismatchError, match=f"quantised.*{kind}"):
        load_adapter(of.fresh(), path / "adapter")
    merge(model)
    dequantize(model)
    close(of.outputs(model), after, bound(depth=32))  # each product becomes two: the weights and their adapter
    save(model, path / "merged")
    assert torch.equal(of.outputs(load(path / "merged")), of.outputs(model))
    plain = of.fresh()
    plain.load_state_dict({n: p for n, p in weights.items()}, strict=False)
    quantize(plain, "*layers.*", kind)
    assert weights_hash(plain) == base
    load_adapter(plain, path / "adapter")
    assert torch.equal(of.outputs(plain.eval()), after), "on the same base, quantised in the same way"
    merge(plain)
    again = of.fresh()
    again.load_state_dict({n: p for n, p in weights.items()}, strict=False)
    quantize(again, "*layers.*", kind)
    dequantize(again)
    for n, p in again.named_parameters():
        largest = weights[n].abs().amax(-1, keepdim=True) if kind == "int8" else weights[n].abs().max()
        assert ((p - weights[n]).abs() <= (worst * largest if p.ndim > 1 else 0) + 1e-12).all(), n


@covers("int8", quick=("llama",))
def test_quantised_adapted_trained_and_merged(name: str, tmp_path) -> None:
    """Each weight is off by at most half of 1/127 of its row's largest, which is some three times what is usual there,
    and by 1/√12 of a step as a rule."""
    quantised(name, tmp_path, "int8", worst=0.5001 / 127, spread=2 * 3 / 127 / 12**0.5)


@covers("QLoRA", quick=("llama", "mixtral", "bert", "t5"))
def test_a_4_bit_base_is_adapted(name: str, tmp_path) -> None:
    """Each weight is off by at most half of the widest gap of the levels, 0.3038, of its block's largest, and the
    rounding of that, 1/254 of the difference of scales. Trained weights have longer tails than normal ones."""
    quantised(name, tmp_path, "nf4", worst=0.1519 + 2 / 254, spread=1.4 * levels_rms())


@covers("distill", quick=("llama", "mixtral", "bert", "t5"))
def test_learns_from_a_frozen_teacher(name: str) -> None:
    of = case(name)
    teacher, student = of.tiny(seed=3), of.fresh()
    before = weights_hash(teacher)
    objective = Distill(teacher, temperature=2.0, alpha=0.9)
    state = TrainState.build(student, ADAMW)
    losses = fit(student, objective, Same(of.batch(0)), state=state, steps=12)
    assert losses[-1] < 0.95 * losses[0] and weights_hash(teacher) == before
    registered = {id(p) for p in state.steps[MODEL][0].parameters()}
    assert not registered & {id(p) for p in teacher.parameters()}, "the teacher is no part of the step"
    whole, parts = (fit(of.fresh(), Counted(objective), Same(of.batch(0)), steps=2, micro=m) for m in (8, 3))
    assert parts == pytest.approx(whole, rel=1e-5)


class Preferences(Data):
    """The same prompt, two completions."""

    def __getitem__(self, n: int):
        return preferences(self.of)


@covers("DPO", quick=UNLIKE)
def test_learns_from_preferences(name: str) -> None:
    of = case(name)
    model = of.tiny()
    batches = Referenced(Preferences(of), of.tiny())
    steps = list(train(TrainState.build(model, ADAMW), DPO(), batches, Schedule(8), TrainOptions(4), Runtime()))
    assert steps[0].loss == pytest.approx(0.6931472, abs=1e-3), "policy and reference are equal at first: −log σ(0)"
    assert steps[-1].loss < 0.6 and steps[-1].losses["accuracy"] > steps[0].losses["accuracy"]
