# SPDX-License-Identifier: Apache-2.0
"""Parts of a model that are trained, and weights that are pruned, for every family."""

from typing import Any

import pytest
import torch

from foundling.adapt.freeze import depth_of, train_biases, train_top
from foundling.adapt.prune import PrunedLinear, PruneOptions, finish, keep_zeros, prune, sparsity
from foundling.contracts.model import named_layers
from foundling.runtime.device import Runtime
from foundling.train.checkpoint import load_checkpoint, save_checkpoint
from foundling.train.loop import train
from foundling.train.options import OptimOptions, TrainOptions
from foundling.train.schedule import Schedule
from foundling.train.state import TrainState
from foundling.weights.directory import load, save, weights_hash
from tests.contract.cases import case
from tests.contract.matrix import FAMILIES, covers

ADAMW, MUON = OptimOptions(optimizer="adamw", learning_rate=0.003), OptimOptions(learning_rate=0.003)


class Same:
    def __init__(self, batch: Any) -> None:
        self.batch = batch

    def __getitem__(self, n: int) -> Any:
        return self.batch


def fit(of: Any, state: TrainState, steps: int, total: int = 6, **options: Any) -> list[float]:
    """Losses of `steps` more updates, of a run of `total`."""
    losses = []
    batches = Same(of.batch(0))
    for step in train(state, of.objective(), batches, Schedule(total), TrainOptions(4, **options), Runtime()):
        losses.append(step.loss)
        if len(losses) == steps:
            break
    return losses


def weights(model: Any) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def changed(model: Any, before: dict[str, torch.Tensor]) -> set[str]:
    return {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}


@pytest.mark.parametrize("name", FAMILIES)
def test_depth_follows_the_computation(name: str) -> None:
    """What is above a depth changes no output of the layers at or below it; every embedding changes some layer."""
    of = case(name)
    model = of.tiny().double()
    depths, layers = depth_of(model), named_layers(model)
    assert depths.keys() == weights(model).keys()
    of_layer = {path: max(d for n, d in depths.items() if n.startswith(f"{path}.")) for path in layers}
    top = max(of_layer.values())
    assert {*depths.values()} - {top + 1} == {*range(top + 1)}, "0 to the last layer, and what comes after"
    seen: dict[str, Any] = {}

    def remember(path: str, output: Any) -> None:
        seen[path] = output[0] if isinstance(output, tuple) else output

    hooks = [
        layer.register_forward_hook(lambda module, x, output, path=path: remember(path, output))
        for path, layer in layers.items()
    ]

    def outputs() -> dict[str, torch.Tensor]:
        seen.clear()
        of.outputs(model)
        return {path: y.clone() for path, y in seen.items()}

    before, start = outputs(), weights(model)
    for depth in {d for d in depths.values() if d > 0}:
        with torch.no_grad():
            for n, p in model.named_parameters():
                p.copy_(start[n] + (0.5 if depths[n] >= depth else 0.0))
        for path, y in outputs().items():
            assert of_layer[path] >= depth or torch.equal(y, before[path]), f"{path} depends on depth {depth}"
    for n in [n for n, d in depths.items() if d == 0]:
        with torch.no_grad():
            for other, p in model.named_parameters():
                p.copy_(start[other] + (torch.randn_like(p) if other == n else 0.0))
        after = outputs()
        assert any(not torch.equal(after[path], before[path]) for path in layers), f"no layer reads '{n}'"
    for hook in hooks:
        hook.remove()


@covers("partial", quick=("llama", "t5"))
def test_a_part_is_trained(name: str, tmp_path) -> None:
    of = case(name)
    for choose in (train_biases, lambda model: train_top(model, 1)):
        model = of.tiny().train()
        trained, before = choose(model), weights(model)
        assert 0 < len(trained) < len(before)
        losses = fit(of, TrainState.build(model, ADAMW), 6)
        assert losses[-1] < losses[0]
        assert changed(model, before) == set(trained)

    model, depths = of.tiny().train(), depth_of(of.tiny())
    order = sorted({*depths.values()}, reverse=True)
    before, state = weights(model), TrainState.build(model, OptimOptions(learning_rate=0.003, layer_decay=0.5))
    total, path = 2 * len(order), tmp_path
    for n, depth in enumerate(order):
        fit(of, state, 2, total, unfreeze_every=2)
        assert {depths[name] for name in changed(model, before)} <= {*order[: n + 1]}, f"not below depth {depth} yet"
        if n == 0:
            path = save_checkpoint(tmp_path, state, {})
    assert all(p.requires_grad for p in model.parameters())
    again = TrainState.build(of.tiny(seed=1).train(), OptimOptions(learning_rate=0.003, layer_decay=0.5))
    load_checkpoint(path, again)
    fit(of, again, total - 2, total, unfreeze_every=2)
    assert weights_hash(again.model) == weights_hash(model), "resumed bitwise"


@covers("prune", quick=("llama", "mixtral"))
@pytest.mark.parametrize("structure", ["none", "2:4"])
def test_zeros_stay_zero(name: str, structure: Any, tmp_path) -> None:
    of, options = case(name), PruneOptions(structure=structure)
    model = of.tiny()
    names = prune(model, options)
    zeros = {n: m.weight == 0 for n, m in model.named_modules() if n in names}
    assert len(names) >= (2 if name == "ffn_lm" else 4) and all(
        abs(2 * z.sum() - z.numel()) <= 1 for z in zeros.values()
    )

    state = TrainState.build(model.train(), MUON)
    losses = fit(of, state, 3)
    path = save_checkpoint(tmp_path / "checkpoints", state, {})
    losses += fit(of, state, 3)
    assert losses[-1] < losses[0]
    again = of.tiny()
    prune(again, options)
    resumed = TrainState.build(again.train(), MUON)
    load_checkpoint(path, resumed)
    assert fit(of, resumed, 3) == losses[3:] and weights_hash(again) == weights_hash(model), "resumed bitwise"

    model.eval()
    assert all((model.get_submodule(n).weight[z] == 0).all() for n, z in zeros.items())
    outputs, shares = of.outputs(model), sparsity(model)
    save(model, tmp_path / "pruned")
    loaded = load(tmp_path / "pruned")
    assert torch.equal(of.outputs(loaded), outputs) and sparsity(loaded) == shares
    assert keep_zeros(loaded) == names, "recovery goes on from a directory"
    fit(of, TrainState.build(loaded.train(), ADAMW), 2)
    assert all((loaded.get_submodule(n).weight[z] == 0).all() for n, z in zeros.items())
    assert finish(model) == names and not any(isinstance(m, PrunedLinear) for m in model.modules())
    assert torch.equal(of.outputs(model), outputs)
