# SPDX-License-Identifier: Apache-2.0
"""The loop: what it skips, what ranks and restarts must not change."""

import json
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from foundling.blocks.init import initialise
from foundling.data.loader import PackedBatches
from foundling.data.shards import TokenShards, write_shards
from foundling.errors import DivergedError, WeightsError
from foundling.models import build, family
from foundling.objectives.causal import Causal
from foundling.runtime.device import Runtime
from foundling.runtime.rng import generator
from foundling.text import Tokenizer
from foundling.train.checkpoint import checkpoints, latest_checkpoint, load_checkpoint, save_checkpoint
from foundling.train.loop import train
from foundling.train.options import OptimOptions, TrainOptions
from foundling.train.schedule import Schedule
from foundling.train.state import TrainState
from foundling.weights.directory import weights_hash
from tests.processes import SERVER, leave_group

TEXTS = [f"Document {i}: {'words and more words ' * (i % 7 + 1)}{i * i}.\n" for i in range(200)]


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    directory = tmp_path_factory.mktemp("shards")
    return write_shards(directory, TEXTS, Tokenizer.train(TEXTS, 320))


def state_of(optimizer="muon") -> TrainState:
    model = build("llama", **family("llama").module.sized(320, 16, 32, 2))
    initialise(model, generator("init", 0))
    return TrainState.build(model, OptimOptions(optimizer=optimizer))


def run(state: TrainState, batches, steps: int, until: int | None = None) -> list[float]:
    losses = []
    for step in train(state, Causal(), batches, Schedule(steps, warmup_steps=3), TrainOptions(2), Runtime()):
        losses.append(step.loss)
        if step.n == until:
            break
    return losses


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_broken_off_and_resumed_is_bitwise_the_same(shards, tmp_path, optimizer) -> None:
    batches = PackedBatches(shards, seq_len=16, batch_size=4, seed=0)
    unbroken = state_of(optimizer)
    losses = run(unbroken, batches, 12)
    first = state_of(optimizer)
    run(first, batches, 12, until=5)
    save_checkpoint(tmp_path, first, {"seconds": 1.5})
    second = state_of(optimizer)
    path, damaged = latest_checkpoint(tmp_path)
    assert path and not damaged
    assert load_checkpoint(path, second)["seconds"] == 1.5
    assert second.step == 5
    assert run(second, batches, 12) == losses[5:]
    assert weights_hash(second.model) == weights_hash(unbroken.model)


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(shards, tmp_path) -> None:
    batches, state = PackedBatches(shards, seq_len=16, batch_size=4, seed=0), state_of()
    for step in train(state, Causal(), batches, Schedule(4), TrainOptions(4), Runtime()):
        save_checkpoint(tmp_path, state, {"n": step.n})
    assert [p.name for p in checkpoints(tmp_path)] == ["step-00000003", "step-00000004"]
    file = tmp_path / "step-00000004" / "state.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    path, damaged = latest_checkpoint(tmp_path)
    assert path and path.name == "step-00000003" and "state.safetensors: damaged" in damaged[0]


def test_a_checkpoint_of_another_model_is_refused(shards, tmp_path) -> None:
    path = save_checkpoint(tmp_path, state_of(), {})
    other = build("gpt2", **family("gpt2").module.sized(320, 16, 32, 2))
    with pytest.raises(WeightsError, match="not those of this model"):
        load_checkpoint(path, TrainState.build(other, OptimOptions()))


class Poisoned:
    """An objective whose gradient is not finite at the given micro-batches."""

    def __init__(self, bad: set[int]) -> None:
        self.bad, self.seen = bad, 0

    def normalizers(self, batch):
        return Causal().normalizers(batch)

    def __call__(self, model, batch):
        loss = Causal()(model, batch)
        factor = float("nan") if self.seen in self.bad else 1.0
        self.seen += 1
        return {"loss": loss["loss"]._replace(sum=loss["loss"].sum * factor)}


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_a_non_finite_step_moves_nothing_and_is_counted(shards, optimizer) -> None:
    batches, state = PackedBatches(shards, seq_len=16, batch_size=4, seed=0), state_of(optimizer)
    hashes, skipped = [], []
    for step in train(state, Poisoned({1}), batches, Schedule(3), TrainOptions(4), Runtime()):
        hashes.append(weights_hash(state.model))
        skipped.append(step.skipped)
    assert skipped == [False, True, False] and state.skipped == 1
    assert hashes[0] == hashes[1] != hashes[2]
    assert all(t.isfinite().all() for t in state.optimizer.state_tensors().values())


def test_a_run_that_only_skips_is_stopped(shards) -> None:
    batches, state = PackedBatches(shards, seq_len=16, batch_size=4, seed=0), state_of()
    with pytest.raises(DivergedError, match="not finite"):
        for _ in train(
            state, Poisoned(set(range(99))), batches, Schedule(50), TrainOptions(4, max_skipped=3), Runtime()
        ):
            pass
    assert state.step == 5, "read one step late"


def rank_trains(rank: int, world: int, directory: Path, out: Path, micro: int, optimizer: str) -> None:
    torch.set_num_threads(1)
    if world > 1:
        dist.init_process_group("gloo", init_method=f"file://{out}.rendezvous", rank=rank, world_size=world)
    batches = PackedBatches(TokenShards(directory), seq_len=16, batch_size=8, seed=7, rank=rank, world_size=world)
    state, runtime = state_of(optimizer), Runtime(rank=rank, world_size=world)
    # a micro-batch drops the same on one rank as on two; a counted buffer is the first rank's
    state.model.norm = torch.nn.Sequential(state.model.norm, torch.nn.Dropout(0.2))
    state.model.norm.register_buffer("seen", torch.zeros(320))

    def count(model, args) -> None:
        if model.training:
            model.norm.seen += args[0].flatten().bincount(minlength=320)

    state.model.register_forward_pre_hook(count)
    options, schedule = TrainOptions(micro), Schedule(20, warmup_steps=3)
    losses = [s.loss for s in train(state, Causal(), batches, schedule, options, runtime)]
    ids = [batches[n]["sample_ids"].tolist() for n in range(20)]
    found = {"losses": losses, "ids": ids, "hash": weights_hash(state.model)}
    Path(f"{out}.{rank}").write_text(json.dumps(found))
    del state
    if world > 1:
        leave_group()


@pytest.mark.parametrize(("micro", "optimizer"), [(4, "muon"), (4, "adamw")])
def test_two_processes_equal_one(shards, tmp_path, micro: int, optimizer: str) -> None:
    """DDP over gloo, the same micro-batches (one a rank, so sums associate alike): same samples, equal losses, with
    dropout; buffers are equal on all ranks."""
    directory = Path(shards.arrays[0].filename).parent

    def launch(world: int) -> list[dict]:
        out = tmp_path / f"out{world}"
        args = (world, directory, out, micro, optimizer)
        ranks = [SERVER.Process(target=rank_trains, args=(rank, *args)) for rank in range(world)]
        for process in ranks:
            process.start()
        for process in ranks:
            process.join(240)
            assert process.exitcode == 0
        return [json.loads(Path(f"{out}.{r}").read_text()) for r in range(world)]

    (one,), two = launch(1), launch(2)
    assert [a + b for a, b in zip(two[0]["ids"], two[1]["ids"], strict=True)] == one["ids"]
    assert two[0]["losses"] == two[1]["losses"] and two[0]["hash"] == two[1]["hash"]
    assert max(abs(a - b) for a, b in zip(one["losses"], two[0]["losses"], strict=True)) <= 1e-5


def test_schedule_by_hand() -> None:
    wsd = Schedule(10, "wsd", warmup_steps=1, decay_share=0.5)
    assert wsd(0) == 0.5 and wsd(1) == 1.0 and wsd(5) == 1.0
    assert wsd(9) == pytest.approx((1 - 8.5 / 9) / 0.5)
    cosine = Schedule(10, "cosine", final=0.1)
    assert cosine(4) + cosine(5) == pytest.approx(1.1)  # symmetric about the middle
    assert cosine(0) > 0.99 and cosine(9) < 0.11  # and it falls
    assert all(0 < Schedule(7, kind)(n) <= 1 for kind in ("wsd", "cosine") for n in range(7))
