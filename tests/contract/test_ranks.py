# SPDX-License-Identifier: Apache-2.0
"""Two processes equal one that uses the same micro-batches: copied (DDP) and sharded (FSDP2), over gloo."""

from pathlib import Path

import pytest

from foundling.train.checkpoint import latest_checkpoint, load_checkpoint
from foundling.weights.directory import load, weights_hash
from tests.contract.cases import case
from tests.contract.matrix import covers
from tests.contract.ranks import STEPS, Workers, losses
from tests.rounding import bound


@pytest.fixture(scope="module")
def workers(tmp_path_factory):
    pool = Workers(tmp_path_factory.mktemp("ranks"))
    yield pool
    pool.close()


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """What one process finds, computed once a family, and where it was saved."""
    found: dict[str, tuple[dict, Path]] = {}

    def run(name: str) -> tuple[dict, Path]:
        if name not in found:
            directory = tmp_path_factory.mktemp(name)
            found[name] = losses(name, False, directory, 0, 1), directory
        return found[name]

    return run


def compare(name: str, one: tuple[dict, Path], two: list[dict], directory: Path) -> None:
    alone, saved = one
    assert len(alone["losses"]) == STEPS and two[0]["losses"] == two[1]["losses"] and two[0]["hash"] == two[1]["hash"]
    for a, b in zip(alone["losses"], two[0]["losses"], strict=True):
        assert a.keys() == b.keys()
        assert max(abs(a[n] - b[n]) for n in a) <= 1e-5, (a, b)
    # what two ranks wrote is read by one, and is what one writes
    assert weights_hash(load(directory / "model")) == two[0]["hash"]
    states = []
    for root in (saved, directory):
        state = case(name).state()
        path, damaged = latest_checkpoint(root / "checkpoints")
        assert path and not damaged
        load_checkpoint(path, state)
        states.append(state)
    assert weights_hash(states[1].model) == two[0]["hash"] and states[1].step == STEPS
    moments = [state.optimizer.state_tensors() | state.ema["model"].state_tensors() for state in states]
    assert moments[0].keys() == moments[1].keys()
    sizes = {key: float(a.norm()) for key, a in moments[0].items()}
    for key, a in moments[0].items():
        b = moments[1][key]
        # equal where sums associate alike; else a step of Muon or AdamW may multiply a rounding by ten, and then twice.
        # A key's bias has no gradient (softmax does not see it): its moments are roundings of those of the queries
        size = sizes.get(key.replace(".k.bias", ".q.bias"), 0.0)
        assert a.shape == b.shape and (a - b).norm() <= 100 * bound() * max(sizes[key], size) + 1e-6, key


@covers("DDP", quick=("llama", "mixtral", "clip"))
def test_two_processes_equal_one(name: str, workers, alone, tmp_path) -> None:
    compare(name, alone(name), workers.run(name, False, tmp_path), tmp_path)


@covers("FSDP2", quick=("llama", "mixtral", "t5"))
def test_two_processes_that_share_the_parameters_equal_one(name: str, workers, alone, tmp_path) -> None:
    two = workers.run(name, True, tmp_path)
    compare(name, alone(name), two, tmp_path)
    total = sum(p.numel() for p in case(name).fresh().parameters())
    assert sum(rank["held"] for rank in two) == total, "each parameter is held once"
    assert max(rank["held"] for rank in two) < 0.6 * total
