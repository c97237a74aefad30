# SPDX-License-Identifier: Apache-2.0
"""One update: several models in turn, what it logs, what it waits for."""

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from foundling.contracts.objective import Term
from foundling.errors import ConfigError
from foundling.runtime.device import Runtime
from foundling.runtime.rng import generator
from foundling.train.checkpoint import load_checkpoint, save_checkpoint
from foundling.train.ema import EMA
from foundling.train.loop import train
from foundling.train.optim import Optimizer
from foundling.train.options import OptimOptions, TrainOptions
from foundling.train.schedule import Schedule
from foundling.train.state import TrainState
from foundling.train.update import micro_batches, update
from foundling.weights.directory import weights_hash
from tests.contract.cases import Data, case
from tests.train.conv_family import Classify, Pictures, fresh


class Discriminate:
    """−log D(real) − log(1 − D(G(z))) (Goodfellow et al. 2014, equation 1)."""

    def __init__(self, generator: nn.Module) -> None:
        self.generator = generator

    def normalizers(self, batch) -> dict[str, int]:
        return {"loss": len(batch["real"])}

    def __call__(self, model, batch) -> dict[str, Term]:
        nats = F.softplus(-model(batch["real"])) + F.softplus(model(self.generator(batch["z"]).detach()))
        return {"loss": Term(nats.sum(), len(nats))}


class Deceive:
    """−log D(G(z)), the generator's loss that does not saturate (section 3)."""

    def __init__(self, discriminator: nn.Module) -> None:
        self.discriminator = discriminator

    def normalizers(self, batch) -> dict[str, int]:
        return {"loss": len(batch["z"])}

    def __call__(self, model, batch) -> dict[str, Term]:
        nats = F.softplus(-self.discriminator(model(batch["z"])))
        return {"loss": Term(nats.sum(), len(nats))}


def gan() -> TrainState:
    """A generator and a discriminator of points in the plane, with dropout and BatchNorm."""
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        models = {
            "discriminator": nn.Sequential(nn.Linear(2, 32), nn.SiLU(), nn.Dropout(0.1), nn.Linear(32, 1)),
            "generator": nn.Sequential(nn.Linear(2, 32), nn.BatchNorm1d(32), nn.SiLU(), nn.Linear(32, 2)),
        }
    options = OptimOptions("adamw", learning_rate=0.0005, betas=(0.5, 0.9), weight_decay=0.0)
    optimizers = {name: Optimizer(model, options) for name, model in models.items()}
    ema = {"generator": EMA(models["generator"], 0.9)}
    return TrainState(models, optimizers, buffers={"distance": torch.zeros(())}, ema=ema)


CENTRE = torch.tensor([2.0, -1.0])


def alternate(state: TrainState, until: int) -> list[float]:
    """A step is an update of the discriminator and one of the generator; state.step counts both."""
    losses, options = [], TrainOptions(8)
    networks = state.models
    while state.step < until:
        draw = generator("points", state.step // 2)
        batch = {"real": torch.randn(16, 2, generator=draw) * 0.1 + CENTRE, "z": torch.randn(16, 2, generator=draw)}
        if state.step % 2 == 0:
            objective, name = Discriminate(networks["generator"]), "discriminator"
        else:
            objective, name = Deceive(networks["discriminator"]), "generator"
        losses.append(update(state, objective, batch, options, Runtime(), name=name).loss)
        with torch.no_grad():
            state.buffers["distance"].copy_((networks["generator"](batch["z"]).mean(0) - CENTRE).norm())
    return losses


@pytest.mark.parametrize("stop", [10, 13])  # between two steps, and between the two updates of one
def test_two_models_alternate_and_resume_bit_for_bit(tmp_path, stop: int) -> None:
    unbroken, first, second = gan(), gan(), gan()
    losses = alternate(unbroken, 20)
    assert alternate(first, stop) == losses[:stop]
    load_checkpoint(save_checkpoint(tmp_path, first, {}), second)
    assert second.step == stop and torch.equal(second.buffers["distance"], first.buffers["distance"])
    assert alternate(second, 20) == losses[stop:]
    assert torch.equal(second.buffers["distance"], unbroken.buffers["distance"])
    for name, model in unbroken.models.items():
        assert weights_hash(second.models[name]) == weights_hash(model)
    for name, average in unbroken.ema["generator"].averages.items():
        assert torch.equal(second.ema["generator"].averages[name], average)


def test_the_generator_learns() -> None:
    state = gan()
    alternate(state, 2)
    before = float(state.buffers["distance"])
    alternate(state, 400)
    assert before > 2 and float(state.buffers["distance"]) < 0.5


def test_an_update_touches_its_own_model_alone() -> None:
    state = gan()
    alternate(state, 1)
    before = {name: weights_hash(model) for name, model in state.models.items()}
    alternate(state, 2)
    assert weights_hash(state.models["generator"]) != before["generator"]
    assert weights_hash(state.models["discriminator"]) == before["discriminator"]
    parameters = list(state.models["discriminator"].parameters())
    assert all(p.grad is None and p.requires_grad for p in parameters)


def test_the_logged_router_balance_is_the_mean_over_micro_batches() -> None:
    of = case("mixtral")
    state, objective, batch = of.state(), of.objective(), of.batch(0)
    with torch.no_grad():
        parts = [objective(state.model, part) for part in micro_batches(batch, 3)]
    balance = sum(float(part["router_balance"].sum) / int(part["router_balance"].count) for part in parts) / 3
    loss = sum(float(part["loss"].sum) for part in parts) / int(batch["loss_mask"].sum())
    record = update(state, objective, batch, TrainOptions(3), Runtime())
    assert len(parts) == 3 and set(record.losses) == {"loss", "router_balance"}
    assert record.normalizers == {"loss": int(batch["loss_mask"].sum())}
    assert record.losses["router_balance"] == pytest.approx(balance, rel=1e-6) and balance > 1
    assert record.loss == pytest.approx(loss, rel=1e-6)


class Reads(TorchDispatchMode):
    """Counts what waits for the device: a tensor's number read by the CPU."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[torch.dtype] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._local_scalar_dense.default or func is torch.ops.aten.nonzero.default:
            self.seen.append(args[0].dtype)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_an_update_waits_for_nothing_but_the_one_before(optimizer) -> None:
    state, batch, counts = TrainState.build(fresh(), OptimOptions(optimizer)), Pictures()[0], []
    for _ in range(3):
        with Reads() as reads:
            update(state, Classify(), batch, TrainOptions(4, ema_decay=0.9), Runtime())
        counts.append(reads.seen)
    assert counts == [[], [torch.bool], [torch.bool]]


def test_a_model_without_trainable_parameters_is_refused() -> None:
    state = TrainState.build(fresh().requires_grad_(False), OptimOptions())
    with pytest.raises(ConfigError, match="every parameter of the model is frozen"):
        next(train(state, Classify(), Pictures(), Schedule(1), TrainOptions(4), Runtime()))


def test_options_and_schedule_import_no_torch() -> None:
    code = "import foundling.train.options, foundling.train.schedule, sys; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (lambda: TrainOptions(0), "'micro_batch_size' is 0"),
        (lambda: TrainOptions(1, clip=0.0), "'clip' is 0.0"),
        (lambda: TrainOptions(1, max_skipped=-1), "'max_skipped' is -1"),
        (lambda: OptimOptions("sgd"), "'optimizer' is 'sgd'; use 'muon' or 'adamw'"),  # type: ignore[arg-type]
        (lambda: OptimOptions(learning_rate=-1.0), "'learning_rate' is -1.0"),
    ],
)
def test_options_out_of_range_are_refused(make, names: str) -> None:
    with pytest.raises(ConfigError, match=names):
        make()


def grads_seen(model: nn.Module) -> list[Tensor]:
    return [p.grad for p in model.parameters() if p.grad is not None]


def test_updates_of_one_state_by_hand_are_what_train_does() -> None:
    of = case("llama")
    by_hand, by_train, data, schedule = of.state(), of.state(), Data(of), Schedule(3)
    for n in range(3):
        record = update(by_hand, of.objective(), data[n], TrainOptions(4), Runtime(), lr_scale=schedule(n))
        assert record.n == by_hand.step == n + 1 and not grads_seen(by_hand.model)
    list(train(by_train, of.objective(), data, schedule, TrainOptions(4), Runtime()))
    assert weights_hash(by_hand.model) == weights_hash(by_train.model)
