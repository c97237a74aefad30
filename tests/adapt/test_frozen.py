# SPDX-License-Identifier: Apache-2.0
"""Frozen weights stored rounded, and the product with adapters in three passes, against the plain ones."""

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from foundling.adapt.added import adapter_tensors, merge
from foundling.adapt.freeze import unfreeze
from foundling.adapt.frozen import FROZEN, store_frozen
from foundling.adapt.lora import LoRA, LoRAOptions, lora
from foundling.adapt.nf4 import NF4Linear
from foundling.adapt.quantize import quantize
from foundling.blocks.norm import RMSNorm
from foundling.errors import AdaptError, WeightsError
from foundling.runtime.device import Runtime
from foundling.runtime.rng import generator
from foundling.train.checkpoint import STATE, load_checkpoint, save_checkpoint
from foundling.train.loop import train
from foundling.train.options import OptimOptions, TrainOptions
from foundling.train.schedule import Schedule
from foundling.train.state import TrainState
from foundling.train.update import update
from foundling.weights.adapters import load_adapter, save_adapter
from foundling.weights.directory import load, save, weights_hash
from tests.contract.cases import Data, case


def gradients(of, model) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss and gradients of a batch under autocast."""
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        loss = sum(term.sum for term in of.objective()(model, of.batch(0)).values())
    loss.backward()  # pyright: ignore[reportAttributeAccessIssue]
    return loss, {n: p.grad.clone() for n, p in adapter_tensors(model).items()}  # pyright: ignore


@pytest.mark.parametrize("name", ["llama", "mixtral", "gpt2", "t5"])
def test_stored_rounded_computes_the_same_bits(name: str, tmp_path) -> None:
    of = case(name)
    model = of.tiny()
    save(model, tmp_path / "base")
    lora(model, LoRAOptions("*layers.*", rank=4), generator("lora"))
    for n, p in adapter_tensors(model).items():
        p.data.copy_(torch.randn(p.shape, generator=generator(n)) * 0.1)
    base, (loss, grads) = weights_hash(model), gradients(of, model)
    before = sum(p.nbytes for n, p in model.named_parameters() if "layers" in n and not p.requires_grad)
    names = store_frozen(model, base)
    after = sum(p.nbytes for n, p in model.named_parameters() if "layers" in n and not p.requires_grad)
    assert len(names) >= 4 and after < 0.6 * before
    assert {p.dtype for p in adapter_tensors(model).values()} == {torch.float32}
    stored_loss, stored_grads = gradients(of, model)
    assert torch.equal(stored_loss, loss) and all(torch.equal(stored_grads[n], grads[n]) for n in grads)
    assert weights_hash(model) == base
    assert of.outputs(model.eval()).isfinite().all(), "without autocast too"

    save_adapter(model, tmp_path / "adapter")
    with pytest.raises(AdaptError, match="load the base again"):
        merge(model)
    with pytest.raises(WeightsError, match="Frozen"):
        save(model, tmp_path / "refused")
    again = load(tmp_path / "base")
    plain = {n: p.detach().clone() for n, p in again.named_parameters()}
    assert load_adapter(again, tmp_path / "adapter")
    learnt = {n: p.detach() for n, p in adapter_tensors(model).items()}
    for n in merge(again):  # the exact base and the adapter, not the rounded one
        expected = plain[f"{n}.weight"] + 32.0 / 4 * learnt[f"{n}.b"] @ learnt[f"{n}.a"]
        torch.testing.assert_close(again.get_submodule(n).weight, expected, rtol=0, atol=1e-5)
    stored = load(tmp_path / "base")
    stored.requires_grad_(False)
    store_frozen(stored, weights_hash(stored))
    load_adapter(stored, tmp_path / "adapter")
    assert {p.dtype for p in adapter_tensors(stored).values()} == {torch.float32}
    with pytest.raises(AdaptError, match="stored rounded"):
        quantize(stored, "*layers.*.base")


def test_a_change_of_the_base_changes_the_hash_of_a_rounded_model() -> None:
    model = case("llama").tiny()
    model.requires_grad_(False)
    base = weights_hash(model)
    store_frozen(model, base)
    lora(model, LoRAOptions(rank=2), generator("lora"))
    for p in adapter_tensors(model).values():
        p.data.add_(1.0)
    assert weights_hash(model) == base, "an adapter is not the base"
    for change in (model.norm.weight, model.get_submodule("layers.0.mixer.q.base").weight):
        before = change.detach().clone()
        change.data[0] += 1.0
        assert weights_hash(model) != base
        change.data.copy_(before)
    assert weights_hash(model) == base
    unfreeze(model, "norm")
    of = case("llama")
    state = TrainState.build(model.train(), OptimOptions("adamw", learning_rate=0.1))
    update(state, of.objective(), of.batch(0), TrainOptions(8), Runtime())
    assert weights_hash(model) != base


def rounded(seed: int = 0) -> TrainState:
    """A run of LoRA on a base that is stored rounded."""
    model = case("llama").tiny(seed=seed)
    lora(model, LoRAOptions(rank=2), generator("lora"))
    store_frozen(model, weights_hash(model))
    return TrainState.build(model.train(), OptimOptions("adamw"))


def test_a_run_on_a_rounded_base_is_resumed_bit_for_bit_and_on_no_other(tmp_path) -> None:
    of = case("llama")

    def fit(state: TrainState, until: int | None = None) -> list[float]:
        losses = []
        for step in train(state, of.objective(), Data(of), Schedule(4), TrainOptions(8), Runtime()):
            losses.append(step.loss)
            if step.n == until:
                break
        return losses

    unbroken, first, second = rounded(), rounded(), rounded()
    losses = fit(unbroken)
    fit(first, until=2)
    path = save_checkpoint(tmp_path, first, {})
    stored = load_file(path / STATE)
    assert {n.rpartition(".")[2] for n in stored if n.startswith("models/")} == {"a", "b"}
    load_checkpoint(path, second)
    assert fit(second) == losses[2:]
    ours, theirs = adapter_tensors(second.model), adapter_tensors(unbroken.model)
    assert all(torch.equal(p, theirs[n]) for n, p in ours.items())
    other = rounded(seed=1)
    before = {n: p.detach().clone() for n, p in adapter_tensors(other.model).items()}
    with pytest.raises(WeightsError, match="the frozen weights are not those"):
        load_checkpoint(path, other)
    assert all(torch.equal(p, before[n]) for n, p in adapter_tensors(other.model).items())


def test_what_is_trained_or_tied_or_a_router_stays() -> None:
    model = case("mixtral").tiny()
    model.requires_grad_(False)
    model.layers[0].mixer.q.weight.requires_grad_(True)
    names = store_frozen(model, "0" * 64)
    assert "layers.0.mixer.q" not in names and not any(name.endswith("router") for name in names)
    assert type(model.head) is nn.Linear and model.embedding.weight.dtype == torch.float32
    assert all(isinstance(model.get_submodule(name), FROZEN) for name in names)


@pytest.mark.parametrize("bias", [False, True])
def test_the_product_and_its_gradient(bias: bool) -> None:
    """Against autograd in float64."""
    linear = nn.Linear(24, 40, bias=bias).double()
    linear.requires_grad_(False)
    module = LoRA(linear, 3, 5.0)
    with torch.no_grad():
        for p in (module.a, module.b):
            p.copy_(torch.randn(p.shape, generator=generator(str(p.shape)), dtype=torch.float64))
    x = torch.randn(2, 5, 24, generator=generator("x"), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, a, b: module(x), (x, module.a, module.b))
    plain = linear(x) + 5 / 3 * F.linear(F.linear(x, module.a), module.b)
    torch.testing.assert_close(module(x), plain)
    torch.testing.assert_close(F.linear(x, module.weight, module.bias), plain)
    first = torch.autograd.grad(module(x).square().sum(), x, create_graph=True)[0]
    with pytest.raises(RuntimeError, match="once_differentiable"):  # not a wrong number
        first.sum().backward()


def test_a_bias_beside_4_bits_gets_its_gradient() -> None:
    linear = nn.Linear(64, 8)
    module = LoRA(NF4Linear(linear), 2, 4.0)
    module.base.bias.requires_grad_(True)
    x, by = torch.randn(5, 64, generator=generator("x")), torch.randn(5, 8, generator=generator("by"))
    frozen = LoRA(NF4Linear(linear), 2, 4.0)
    torch.testing.assert_close(module(x), frozen(x))
    module(x).backward(by)
    torch.testing.assert_close(module.base.bias.grad, by.sum(0))


@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_a_norm_with_a_frozen_gain(offset: float) -> None:
    norm = RMSNorm(48, 1e-6, offset=offset)
    norm.weight.data.normal_(generator=generator("gain"))
    x = torch.randn(3, 5, 48, generator=generator("x"), requires_grad=True)
    by = torch.randn(3, 5, 48, generator=generator("by"))
    plain = norm(x)
    expected = torch.autograd.grad(plain, x, by)[0]
    norm.requires_grad_(False)
    frozen = norm(x)
    assert torch.equal(frozen, plain)
    torch.testing.assert_close(torch.autograd.grad(frozen, x, by)[0], expected)
    first = torch.autograd.grad(norm(x).square().sum(), x, create_graph=True)[0]
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()
