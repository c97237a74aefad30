# SPDX-License-Identifier: Apache-2.0
"""Pruning by magnitude: which weights become zero, that they stay so, and the bytes that this saves."""

import zlib
from typing import Any

import pytest
import torch
from torch import nn

from foundling.adapt.added import adapter_tensors, merge
from foundling.adapt.lora import LoRAOptions, lora
from foundling.adapt.prune import (
    PruneOptions,
    finish,
    keep_zeros,
    masks,
    prune,
    smallest,
    sparsity,
    stored_bytes,
    two_of_four,
    unsupported_reason,
)
from foundling.errors import AdaptError
from foundling.runtime.rng import generator
from foundling.train.optim import Optimizer
from foundling.train.options import OptimOptions
from tests.contract.cases import case, close


def test_which_weights_are_removed_by_hand() -> None:
    weight = torch.tensor([[4.0, -1.0, 2.0, -3.0, 0.5, 0.5, 0.5, 0.5]])
    expected = torch.tensor([[False, True, True, False, False, False, True, True]])
    assert torch.equal(two_of_four(weight), expected), "of equal ones the last"
    assert smallest(weight.abs(), 0.5).nonzero()[:, 1].tolist() == [4, 5, 6, 7]
    assert smallest(weight.abs(), 0.25).nonzero()[:, 1].tolist() == [4, 5], "of equal ones the first"
    assert not smallest(weight, 0.0).any()


def pair() -> Any:
    model: Any = nn.Module()
    model.layers = nn.ModuleList()
    for scale in (1, 10):
        linear = nn.Linear(4, 2, bias=False)
        linear.weight = nn.Parameter(torch.arange(1.0, 9.0).view(2, 4) * scale)
        model.layers.append(linear)
    return model


def test_of_each_matrix_or_of_all_together() -> None:
    model = pair()
    assert prune(model, PruneOptions(0.5)) == ["layers.0", "layers.1"]
    assert sparsity(model) == {"layers.0": 0.5, "layers.1": 0.5}
    together = pair()
    prune(together, PruneOptions(0.5, scope="global", pattern="layers.*"))
    assert sparsity(together) == {"layers.0": 1.0, "layers.1": 0.0}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"share": 1.0}, "expected 0 to 0.99"),
        ({"share": -0.1}, "expected 0 to 0.99"),
        ({"share": 0.3, "structure": "2:4"}, "two of four are half"),
        ({"structure": "1:4"}, "use 'none' or '2:4'"),
        ({"pattern": "nothing"}, "matches no projection"),
    ],
)
def test_what_cannot_be_pruned_is_refused(options: dict, message: str) -> None:
    with pytest.raises(AdaptError, match=message):
        prune(pair(), PruneOptions(**options))


def test_a_tied_head_broken_weights_and_odd_inputs_are_refused_before_any_change() -> None:
    model = case("gpt2").tiny()
    before = {n: p.clone() for n, p in model.named_parameters()}
    with pytest.raises(AdaptError, match=r"'head' shares its weight with 'embedding'"):
        prune(model, PruneOptions(pattern="*layers.*,head"))
    odd = pair()
    odd.layers.append(nn.Linear(6, 2))
    with pytest.raises(AdaptError, match=r"'layers.2' has 6 inputs, no multiple of 4"):
        prune(odd, PruneOptions(structure="2:4"))
    assert sparsity(odd) == {"layers.0": 0.0, "layers.1": 0.0, "layers.2": 0.0}
    odd.layers[2].weight.data[0, 0] = torch.nan
    with pytest.raises(AdaptError, match="not finite"):
        prune(odd, PruneOptions())
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_the_zeros_get_no_gradient_and_decay_moves_none(optimizer) -> None:
    model = case("mixtral").tiny().train()
    prune(model, PruneOptions(0.7))
    follower = Optimizer(model, OptimOptions(optimizer, weight_decay=0.1))
    for _ in range(2):
        tokens = torch.arange(16).view(1, 16)
        model.logits(model(tokens).hidden).square().mean().backward()
        for name, mask in masks(model).items():
            assert not model.get_parameter(name).grad[mask == 0].any(), name
        follower.step(1.0, torch.tensor(0.0))
        follower.zero_grad()
    for name, mask in masks(model).items():
        weight = model.get_parameter(name)
        assert (weight[mask == 0] == 0).all() and weight[mask == 1].all(), name


def test_a_fresh_models_zero_matrices_are_not_taken_for_pruned() -> None:
    model = case("llama").fresh()
    assert sparsity(model)["layers.0.mixer.o"] == 1.0 and keep_zeros(model) == []


def test_an_adapter_on_a_pruned_base_learns_and_merges_into_a_dense_model() -> None:
    of = case("llama")
    model = of.tiny()
    names = prune(model, PruneOptions(structure="2:4"))
    before = of.outputs(model)
    assert lora(model, LoRAOptions("layers.*.mixer.q", rank=2), generator("lora")) == [
        "layers.0.mixer.q", "layers.1.mixer.q",
    ]  # fmt: skip
    assert torch.equal(of.outputs(model), before)
    for p in adapter_tensors(model).values():
        p.data.normal_(std=0.2, generator=generator("p"))
    after = of.outputs(model)
    merge(model)
    close(of.outputs(model), after)
    shares = sparsity(model)
    assert shares["layers.0.mixer.q"] == 0 and shares["layers.0.mixer.k"] == 0.5
    assert finish(model) == [n for n in names if not n.endswith("mixer.q")]


def test_bytes_of_sparse_files_by_hand() -> None:
    dense, sparse = torch.randn(64, 64), torch.randn(64, 64)
    sparse[two_of_four(sparse)] = 0
    assert stored_bytes([sparse]) == {
        "dense": 64 * 64 * 4,
        "bitmask": 64 * 64 // 8 + 64 * 64 * 4 // 2,
        "deflate": len(zlib.compress(sparse.numpy().tobytes(), 6)),
    }
    both = stored_bytes([dense, sparse.bfloat16()], deflate=False)
    assert both == {"dense": 64 * 64 * 6, "bitmask": 64 * 64 * 4 + 64 * 64 // 8 + 64 * 64}, "a dense one stays as it is"


def test_kernels_are_named_where_there_are_none() -> None:
    assert "no 2:4 kernels for cpu" in (unsupported_reason("cpu") or "")
