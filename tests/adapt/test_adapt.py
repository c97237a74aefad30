# SPDX-License-Identifier: Apache-2.0
"""LoRA against peft, int8 by hand, and what they refuse."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import foundling
from foundling.adapt.added import adapter_tensors, base_tensors, merge
from foundling.adapt.lora import LoRA, LoRAOptions, lora
from foundling.adapt.method import apply
from foundling.adapt.options import AdaptOptions
from foundling.adapt.quantize import Int8GroupedLinear, Int8Linear, dequantize, quantize, to_int8
from foundling.adapt.rewrite import matches, pattern_of
from foundling.blocks.moe import GroupedLinear
from foundling.errors import AdaptError
from foundling.models import FAMILIES
from foundling.runtime.device import Runtime
from foundling.runtime.rng import generator
from foundling.train.loop import train
from foundling.train.options import OptimOptions, TrainOptions
from foundling.train.schedule import Schedule
from foundling.train.state import TrainState
from foundling.weights.directory import weights_hash
from tests.contract.cases import case, close, tokens
from tests.contract.matrix import ADAPTED, families
from tests.parity.references import REFERENCES, randomise
from tests.parity.references import tokens as ids


@torch.no_grad()
def test_the_output_is_that_of_peft(tmp_path) -> None:
    peft = pytest.importorskip("peft")
    theirs = randomise(REFERENCES["llama"][1].make())
    theirs.save_pretrained(tmp_path)
    ours = foundling.load(tmp_path)
    names = lora(ours, LoRAOptions("layers.*.mixer.[qv],layers.*.ffn.down", rank=3, alpha=5.0), generator("lora"))
    assert len(names) == 9
    wrapped = peft.get_peft_model(
        theirs, peft.LoraConfig(r=3, lora_alpha=5.0, target_modules=["q_proj", "v_proj", "down_proj"])
    )
    places = {"mixer.q": "self_attn.q_proj", "mixer.v": "self_attn.v_proj", "ffn.down": "mlp.down_proj"}
    theirs_by_name = dict(wrapped.named_parameters())
    for name, p in adapter_tensors(ours).items():
        p.copy_(torch.randn(p.shape, generator=generator(name)) * 0.3)
        _, layer, part, projection, which = name.split(".")
        place = f"model.layers.{layer}.{places[f'{part}.{projection}']}.lora_{which.upper()}.default.weight"
        theirs_by_name[f"base_model.model.{place}"].copy_(p)
    expected = wrapped.eval()(ids()).logits
    close(ours.logits(ours(ids()).hidden), expected)
    merge(ours)
    close(ours.logits(ours(ids()).hidden), wrapped.merge_and_unload()(ids()).logits)


def test_int8_by_hand() -> None:
    weight = torch.tensor([[127.0, -1.0, 0.4], [0.0, 0.0, 0.0], [2.54, 1.27, -0.01]])
    integers, scale = to_int8(weight)
    assert integers.tolist() == [[127, -1, 0], [0, 0, 0], [127, 64, 0]]  # 63.5 rounds to the even
    assert scale[:, 0].tolist() == pytest.approx([1.0, 1.0, 0.02])
    linear = nn.Linear(3, 3)
    with torch.no_grad():
        linear.weight.copy_(weight)
    x = torch.tensor([[1.0, 2.0, 3.0]])
    expected = x @ (integers * scale).T + linear.bias
    torch.testing.assert_close(Int8Linear(linear)(x), expected)
    torch.testing.assert_close(Int8Linear(linear).dequantized()(x), expected)


def test_a_quarter_of_the_bytes() -> None:
    model = case("llama").tiny()
    before = sum(p.nbytes for n, p in model.named_parameters() if n.startswith("layers") and p.ndim == 2)
    quantize(model)
    after = sum(b.nbytes for n, b in model.named_buffers() if n.startswith("layers"))
    assert after < 0.28 * before
    x = tokens()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model(x).hidden.isfinite().all()


@pytest.mark.parametrize("pattern", ["layer.*", "", "layers.*.mixer.Q", "embedding"])
def test_a_pattern_that_matches_nothing(pattern: str) -> None:
    model = case("llama").tiny()
    for act in (lambda: quantize(model, pattern), lambda: lora(model, LoRAOptions(pattern), generator(0))):
        with pytest.raises(AdaptError, match="matches no projection") as caught:
            act()
        assert "\n" not in str(caught.value)
    assert all(p.requires_grad for p in model.parameters()), "nothing was frozen"


def test_what_makes_no_sense_is_refused() -> None:
    model = case("gpt2").tiny()
    with pytest.raises(AdaptError, match="rank 0"):
        LoRAOptions("*", rank=0)
    with pytest.raises(AdaptError, match="'head' shares its weight with 'embedding'"):
        quantize(model, "*")
    with pytest.raises(AdaptError, match="no adapters"):
        merge(model)
    lora(model, LoRAOptions("layers.*"), generator(0))
    with pytest.raises(AdaptError, match="already"):
        lora(model, LoRAOptions("head"), generator(0))
    assert not dequantize(model)


def test_a_tied_head_that_was_adapted_is_tied_no_more(tmp_path) -> None:
    model, x = case("gpt2").tiny(), tokens()
    table = model.embedding.weight.detach().clone()
    lora(model, LoRAOptions("head"), generator(0))
    with torch.no_grad():
        model.head.b.normal_(generator=generator(1))
    expected = model.logits(model(x).hidden)
    merge(model)
    assert torch.equal(model.embedding.weight, table) and not model.config.tie_embeddings
    close(model.logits(model(x).hidden), expected)
    foundling.save(model, tmp_path / "m")
    assert weights_hash(foundling.load(tmp_path / "m")) == weights_hash(model)


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=9))
def test_no_weight_is_off_by_more_than_half_a_step(row: list[float]) -> None:
    weight = torch.tensor([row]).double()
    integers, scale = to_int8(weight.float())
    assert integers.abs().max() <= 127
    assert ((weight - integers.double() * scale.double()).abs() <= 0.500001 * scale.double()).all()


def grouped(n_experts: int = 3, wide: int = 5, out: int = 4) -> tuple[GroupedLinear, torch.Tensor, torch.Tensor]:
    """Experts, of which the second gets no row, and their rows."""
    torch.manual_seed(0)
    return GroupedLinear(n_experts, wide, out), torch.randn(7, wide), torch.tensor([4, 4, 7], dtype=torch.int32)


@torch.no_grad()
def test_what_comes_out_is_off_by_half_a_step_of_what_goes_in() -> None:
    """|y − y'| ≤ scale / 2 · Σ |x|, in each output channel; of weights off at random, far less."""
    torch.manual_seed(0)
    linear, x = nn.Linear(256, 100), torch.randn(50, 256)
    small = Int8Linear(linear)
    error, bound = (small(x) - linear(x)).abs(), small.scale[:, 0] / 2 * x.abs().sum(1, keepdim=True)
    assert (error <= bound).all()
    # uniform in ± scale / 2: a standard deviation of scale / √12 for each weight, so scale · ‖x‖ / √12 for their sum
    expected = small.scale[:, 0] * x.norm(dim=1, keepdim=True) / math.sqrt(12)
    assert 0.95 < float(error.square().mean().sqrt() / expected.square().mean().sqrt()) < 1.05
    experts, x, ends = grouped()
    small = Int8GroupedLinear(experts)
    bound = torch.cat([small.scale[0, :, 0].expand(4, -1), small.scale[2, :, 0].expand(3, -1)]) / 2
    assert ((small(x, ends) - experts(x, ends)).abs() <= bound * x.abs().sum(1, keepdim=True)).all()


def test_gradients_pass_through_integers_as_through_what_they_stand_for() -> None:
    linear, x = nn.Linear(6, 5), torch.randn(2, 3, 6, requires_grad=True)
    experts, rows, ends = grouped()
    rows.requires_grad_()
    for small, args, plain in (
        (Int8Linear(linear), (x,), Int8Linear(linear).dequantized()),
        (Int8GroupedLinear(experts), (rows, ends), Int8GroupedLinear(experts).dequantized()),
    ):
        (got,) = torch.autograd.grad(small(*args).square().sum(), args[0])
        (expected,) = torch.autograd.grad(plain(*args).square().sum(), args[0])
        close(got, expected)


def test_adapters_of_experts_by_hand() -> None:
    experts, x, ends = grouped()
    model = nn.Module()
    model.up = experts
    assert lora(model, LoRAOptions("up", rank=2, alpha=3.0), generator(0)) == ["up"]
    a, b = model.up.a.data, model.up.b.data.normal_(generator=generator(1))
    assert (a.shape, b.shape) == ((3, 2, 5), (3, 4, 2))
    rows = [(0, slice(0, 4)), (2, slice(4, 7))]
    expected = torch.cat([x[r] @ (experts.weight[e] + 1.5 * b[e] @ a[e]).T for e, r in rows])
    close(model.up(x, ends), expected)
    merge(model)
    assert type(model.up) is GroupedLinear and model.up is not experts, "the base is left as it was"
    close(model.up(x, ends), expected)


@pytest.mark.parametrize("name", families(FAMILIES, ADAPTED))
def test_autocast_computes_in_its_type_and_trains(name: str) -> None:
    of = case(name)
    model, wide = of.tiny(), set()
    names = quantize(model, "*layers.*")
    lora(model, LoRAOptions("*layers.*", rank=4), generator("lora"))
    for path in names:
        if not path.endswith("router"):  # which computes in float32 whatever surrounds it
            model.get_submodule(path).register_forward_hook(lambda m, x, y: wide.add(y.dtype))
    state = TrainState.build(model, OptimOptions("adamw", learning_rate=0.003))
    batch, runtime = of.batch(0), Runtime(precision="bfloat16")
    steps = train(state, of.objective(), [batch] * 6, Schedule(6), TrainOptions(4), runtime)
    losses = [step.loss for step in steps]
    assert wide == {torch.bfloat16} and losses[-1] < losses[0]


@pytest.mark.parametrize("name", ["llama", "mixtral"])
def test_no_floats_of_integer_weights_wait_for_the_backward_pass(name: str) -> None:
    model = case(name).tiny()
    quantize(model)
    lora(model, LoRAOptions("layers.*", rank=4), generator(0))
    sizes = {b.numel() for n, b in model.named_buffers() if n.endswith("weight")}
    kept: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        model(tokens(rows=3, length=7))
    there = {t.data_ptr() for t in [*model.parameters(), *model.buffers()]}
    floats = [t for t in kept if t.is_floating_point() and t.numel() in sizes and t.data_ptr() not in there]
    assert any(t.dtype == torch.int8 for t in kept) and not floats


def test_an_adapter_is_of_the_type_of_its_base() -> None:
    of = case("llama")
    model = of.tiny().to(torch.bfloat16)
    before = of.outputs(model)
    lora(model, LoRAOptions("*"), generator(0))
    assert torch.equal(of.outputs(model), before)
    merge(model)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


def test_what_is_dequantised_under_an_adapter_stays_frozen() -> None:
    model = case("mixtral").tiny()
    quantize(model)
    lora(model, LoRAOptions("layers.*.mixer.q"), generator(0))
    chance = torch.get_rng_state()
    assert "layers.0.mixer.q.base" in dequantize(model)
    assert torch.equal(torch.get_rng_state(), chance)
    assert {n for n, p in model.named_parameters() if p.requires_grad} == adapter_tensors(model).keys()
    merge(model)
    assert all(p.requires_grad for p in model.parameters())


def test_weights_that_are_not_finite_are_refused_and_nothing_is_changed() -> None:
    model = case("llama").tiny()
    with torch.no_grad():
        model.layers[1].ffn.down.weight[3, 5] = math.nan
    with pytest.raises(AdaptError, match=r"'layers\.1\.ffn\.down' has weights that are not finite"):
        quantize(model)
    assert not any(isinstance(m, Int8Linear) for m in model.modules())


def test_a_projection_that_is_used_twice_is_adapted_at_both_places() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Tanh())
    model.append(model[0])
    assert lora(model, LoRAOptions("*"), generator(0)) == ["0"]
    assert model[0] is model[2] and model[0].in_features == 3
    merge(model)
    assert model[0] is model[2] and isinstance(model[0], nn.Linear)


def test_names_of_the_base_are_those_before_adapters() -> None:
    """A module that a family itself calls `base` keeps its name."""
    model = nn.Module()
    model.base = nn.Linear(2, 2)
    model.inner = nn.Module()
    model.inner.base = nn.Linear(2, 2)
    before = {name: p.data_ptr() for name, p in model.named_parameters()}
    lora(model, LoRAOptions("inner.*,base", rank=1), generator(0))
    assert {name: t.data_ptr() for name, t in base_tensors(model).items()} == before


def test_a_pattern_matches_what_it_was_made_of_and_no_more() -> None:
    known = [f"layers.{i}.mixer.{p}" for i in range(12) for p in "qk"] + ["layers.0.conv1", "layers.0.conv2", "head"]
    queries = [name for name in known if name.endswith("q")]
    assert pattern_of(queries, known) == "layers.*.mixer.q"
    assert pattern_of(["layers.0.conv1", "head"], known) == "head,layers.*.conv1"
    assert pattern_of([], known) == ""
    for names in (queries[:2], known[5:9], known):
        assert {name for name in known if matches(name, pattern_of(names, known))} == set(names)


def test_sums_of_integers_stay_within_float16() -> None:
    """1,000 products of 4 with 127 are 508,000; with the weights that they stand for, 40."""
    linear = nn.Linear(1000, 2, bias=False).half()
    nn.init.constant_(linear.weight, 0.01)
    x = torch.full((1, 1000), 4.0, dtype=torch.float16, requires_grad=True)
    y = Int8Linear(linear)(x)
    assert y.tolist() == [[pytest.approx(40, rel=2e-3)] * 2]
    (grad,) = torch.autograd.grad(y.sum() * 100, x)
    assert grad[0].tolist() == [pytest.approx(2, rel=2e-3)] * 1000


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", families(FAMILIES, ("llama", "mixtral", "t5")))
def test_a_model_of_half_types_is_quantised_adapted_merged_and_saved(name: str, dtype: torch.dtype, tmp_path) -> None:
    of = case(name)
    model = of.tiny().to(dtype)
    before = {n: p.dtype for n, p in model.named_parameters()}
    names = quantize(model, "*layers.*")
    scales = {n: m.scale.clone() for n, m in model.named_modules() if isinstance(m, Int8Linear | Int8GroupedLinear)}
    model = model.float().to(dtype)  # neither way are scales rounded
    assert all(torch.equal(model.get_submodule(n).scale, scale) for n, scale in scales.items())
    lora(model, LoRAOptions("*layers.*", rank=2, alpha=16.0), generator("lora"))
    assert {p.dtype for p in adapter_tensors(model).values()} == {dtype}
    with torch.no_grad():
        for n, p in adapter_tensors(model).items():
            p.copy_(torch.randn(p.shape, generator=generator(n)) * 0.1)
    foundling.save_adapter(model, tmp_path / "adapter")
    adapted = of.outputs(model)
    assert adapted.isfinite().all() and adapted.dtype in (dtype, torch.float32)
    loss = of.objective()(model, {k: v.to(dtype) if v.is_floating_point() else v for k, v in of.batch(0).items()})
    loss["loss"].sum.backward()
    assert all(p.grad is not None and p.grad.dtype == dtype for p in adapter_tensors(model).values())

    merge(model)
    dequantize(model)
    assert {n: p.dtype for n, p in model.named_parameters()} == before
    assert not any(isinstance(m, Int8Linear | Int8GroupedLinear) for m in model.modules()) and names
    scale = float(adapted.float().abs().max())
    # merged weights are rounded once more, by a half of the last place; a router may choose another expert for that
    off = ((of.outputs(model) - adapted).abs() > 64 * torch.finfo(dtype).eps * scale).flatten(0, -2).any(-1)
    routed = any(isinstance(m, GroupedLinear) for m in model.modules())
    assert float(off.float().mean()) <= (0.25 if routed else 0.0)
    foundling.save(model, tmp_path / "merged")
    again = foundling.load(tmp_path / "merged", dtype=dtype)
    assert weights_hash(again) == weights_hash(model)


def test_two_ways_to_ask_for_the_defaults_are_the_same() -> None:
    by_method, by_hand = case("mixtral").tiny(), case("mixtral").tiny()
    apply(by_method, AdaptOptions("lora"), generator("lora"))
    lora(by_hand, LoRAOptions(), generator("lora"))
    ours, theirs = adapter_tensors(by_method), adapter_tensors(by_hand)
    assert ours.keys() == theirs.keys() and all(torch.equal(p, theirs[n]) for n, p in ours.items())
    assert {(m.rank, m.alpha) for m in by_hand.modules() if isinstance(m, LoRA)} == {(16, 32.0)}
    rounded = quantize(case("mixtral").tiny())
    assert len(rounded) > 4 and not any(name.endswith("router") for name in rounded), "what chooses experts stays exact"
