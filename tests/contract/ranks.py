# SPDX-License-Identifier: Apache-2.0
"""Two worker processes that serve every test of parallel training: started once, joined by gloo, fed by pipes."""

from __future__ import annotations

import os
import traceback
from pathlib import Path
from typing import Any

from tests.processes import SERVER, leave_group

STEPS, MICRO = 6, 4


def losses(name: str, shard: bool, directory: Path, rank: int, world_size: int) -> dict[str, Any]:
    """Trains, saves a checkpoint and a model directory."""
    from foundling.runtime.device import Runtime
    from foundling.train.checkpoint import save_checkpoint
    from foundling.train.loop import train
    from foundling.train.options import TrainOptions
    from foundling.train.schedule import Schedule
    from foundling.weights.directory import save, weights_hash
    from tests.contract.cases import Data, case

    of = case(name)
    state = of.state()
    runtime = Runtime(rank=rank, world_size=world_size, shard=shard)
    options = TrainOptions(MICRO, ema_decay=0.9)
    steps = train(state, of.objective(), Data(of, rank, world_size), Schedule(STEPS), options, runtime)
    found = [step.losses for step in steps]
    held = sum(p.to_local().numel() if hasattr(p, "to_local") else p.numel() for p in state.model.parameters())
    save_checkpoint(directory / "checkpoints", state, {})
    save(state.model, directory / "model")
    return {"losses": found, "hash": weights_hash(state.model), "held": held}


def work(rank: int, rendezvous: str, pipe: Any) -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
    while (job := pipe.recv()) is not None:
        try:
            pipe.send(losses(*job, rank, 2))
        except Exception:
            pipe.send(traceback.format_exc())
    leave_group()


class Workers:
    def __init__(self, directory: Any) -> None:
        self.pipes, self.processes = [], []
        for rank in range(2):
            ours, theirs = SERVER.Pipe()
            process = SERVER.Process(target=work, args=(rank, str(directory / "rendezvous"), theirs), daemon=True)
            process.start()
            self.pipes.append(ours)
            self.processes.append(process)

    def run(self, *job: Any) -> list[dict[str, Any]]:
        for pipe in self.pipes:
            pipe.send(job)
        answers = []
        for pipe, process in zip(self.pipes, self.processes, strict=True):
            assert pipe.poll(120), f"a worker does not answer (exit code {process.exitcode})"
            answers.append(pipe.recv())
        for answer in answers:
            assert isinstance(answer, dict), answer
        return answers

    def close(self) -> None:
        for pipe, process in zip(self.pipes, self.processes, strict=True):
            pipe.send(None)
            process.join(20)
            process.kill()
