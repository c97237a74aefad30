# SPDX-License-Identifier: Apache-2.0
"""A memory gets its gradient through layers that are sharded (FSDP2) or copied (DDP), inside their context."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor

from foundling.runtime.device import Runtime
from foundling.train.parallel import gathered, local, wrap
from foundling.train.step import Step
from tests.contract.cases import case
from tests.processes import SERVER, leave_group

NAMES = ("t5", "bart")


def gradients(name: str, rank: int, world_size: int, shard: bool) -> dict[str, Tensor]:
    """Of the mean loss over all ranks' rows, whole, by name."""
    of = case(name)
    model = of.tiny()
    batch = of.batch(0)
    count, share = int(batch["loss_mask"].sum()), len(batch["tokens"]) // world_size
    runtime = Runtime(rank=rank, world_size=world_size, shard=shard)
    step = wrap(Step(model, of.objective(), runtime), runtime)
    loss = step({key: value[rank * share : (rank + 1) * share] for key, value in batch.items()})["loss"]
    (loss.sum * world_size / count).backward()  # wrappers average over ranks
    return {n: gathered(local(p.grad), p).clone() for n, p in model.named_parameters()}


def work(rank: int, directory: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{directory}/rendezvous", rank=rank, world_size=2)
    for name in NAMES:
        for shard in (False, True):
            found = gradients(name, rank, 2, shard)
            save_file(found, f"{directory}/{name}-{shard}-{rank}.safetensors")
    leave_group()


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("memory")
    processes = [SERVER.Process(target=work, args=(rank, str(directory)), daemon=True) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0]
    return directory


@pytest.mark.parametrize("shard", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_the_encoder_learns_through_the_memory(name: str, shard: bool, directory: Path) -> None:
    alone = gradients(name, 0, 1, False)
    encoder = [n for n in alone if n.startswith("encoder.layers.")]
    assert encoder and all(alone[n].abs().max() > 0 for n in encoder)
    for rank in range(2):
        found = load_file(directory / f"{name}-{shard}-{rank}.safetensors")
        assert found.keys() == alone.keys()
        least = 1e-4 * max(float(g.norm()) for g in alone.values())  # some are nothing but rounding: a key's bias
        for n, gradient in alone.items():
            assert (found[n] - gradient).norm() <= 1e-5 * gradient.norm().clamp_min(least), n
