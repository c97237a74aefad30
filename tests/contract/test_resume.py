# SPDX-License-Identifier: Apache-2.0
"""Every family by the same loop: killed by SIGKILL at some moment and resumed, it ends in the same bits."""

import os
import random
import shutil
import signal
import time
from pathlib import Path
from typing import Any

from tests.contract.matrix import covers
from tests.processes import SERVER

STEPS = 6


def go(name: str, directory: Path, out: Path) -> None:
    """Trains from the newest whole checkpoint to the end, saving after every step."""
    import torch

    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    from foundling.runtime.device import Runtime
    from foundling.train.checkpoint import latest_checkpoint, load_checkpoint, save_checkpoint
    from foundling.train.loop import train
    from foundling.train.options import TrainOptions
    from foundling.train.schedule import Schedule
    from foundling.weights.directory import weights_hash
    from tests.contract.cases import Data, case

    of = case(name)
    state = of.state()
    path, _ = latest_checkpoint(directory)
    if path:
        load_checkpoint(path, state)
    for _ in train(state, of.objective(), Data(of), Schedule(STEPS), TrainOptions(4), Runtime()):
        save_checkpoint(directory, state, {})
    out.write_text(weights_hash(state.model))


@covers("resume", quick=("llama", "clip", "unet"))
def test_killed_and_resumed_is_bitwise_the_same(name: str, tmp_path) -> None:
    def start(directory: str) -> Any:
        process = SERVER.Process(target=go, args=(name, tmp_path / directory, tmp_path / f"{directory}.hash"))
        process.start()
        return process

    unbroken = start("unbroken")
    unbroken.join(120)
    assert unbroken.exitcode == 0
    chance, directory, ended = random.Random(name), tmp_path / "broken", tmp_path / "broken.hash"
    stops = [2, 4]
    for _ in range(10):
        process = start("broken")
        while process.is_alive() and not any(directory.glob(f"*{stops[0]:08d}*")):
            time.sleep(0.001)
        time.sleep(chance.random() * 0.05)  # somewhere in a step, or in a save
        if process.is_alive():
            os.kill(process.pid, signal.SIGKILL)
            stops.pop(0)
        process.join()
        if ended.exists():  # on a busy machine it may reach its end first: once more from the beginning
            shutil.rmtree(directory)
            ended.unlink()
            stops = [2, 4]
        elif not stops:
            break
    assert not stops, "it was killed twice before its end"
    process = start("broken")
    process.join(120)
    assert process.exitcode == 0
    assert (tmp_path / "broken.hash").read_text() == (tmp_path / "unbroken.hash").read_text()
